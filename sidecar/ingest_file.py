"""Files of hidden states sent to a running sidecar, as an engine would have sent them: for what was captured elsewhere, or before.

Each file is one request, all of it prompt. It goes in batches of what one step of the sidecar's budget is made for, so that a long
file does not have the sidecar shed what live engines send.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from protos.stethoscope.v1 import control_pb2, ingest_pb2
from sidecar.address import GET_STATUS, REGISTER, STREAM
from sidecar.states_file import StatesFile, StatesFileError, read_states
from sidecar.tap.batch import BatchMessage, parts
from sidecar.tap.joined import JoinedStates
from sidecar.tap.step import CapturedStep, RequestInfo, States, StepSegment, wire_id
from sidecar.tap.wire import settings
from sidecar.types import ElementType, IndexArray, Phase, TapPoint

_CALL_S, _STREAM_S = 30.0, 3600.0
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", 64 << 20))
_STEP_ROWS = 256  # token-layers: what the default budget of a step is stated for


class IngestError(Exception):
    """The sidecar does not take it, or cannot; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which blocks the layers of the files are, in their order, and of which model. model: a folder; None is the one served."""

    blocks: tuple[int, ...]
    model: Path | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """[T, D] of one layer, as the tap's batches take them: the bits go over as they are."""

    bits: npt.NDArray[Any]
    dtype: ElementType
    projected: bool = False
    sample: None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.bits.shape[0]), int(self.bits.shape[1]))

    @property
    def held_bytes(self) -> int:
        return 0  # the file's, not ours

    def part(self, start: int, stop: int) -> _Rows:
        return _Rows(self.bits[start:stop], self.dtype)

    def joined(self, others: Sequence[States], order: IndexArray) -> JoinedStates:
        return JoinedStates.of([self, *others], order)

    def write(self, into: memoryview) -> None:
        np.copyto(np.frombuffer(into, self.bits.dtype).reshape(self.shape), self.bits)


class FileEngine:
    """An engine whose steps lie in files. To be used by one thread, inside ``with``: leaving says goodbye."""

    def __init__(self, address: str, engine_id: str, layout: Layout) -> None:
        self._address, self._engine_id, self._layout = address, engine_id, layout
        self._step = self._tokens = self._requests = 0
        self._points: dict[int, TapPoint] = {}  # by layer of the file: what the sidecar reads of it
        self._width = 0  # of the model
        self._said: SimpleQueue[ingest_pb2.StreamRequest | None] = SimpleQueue()
        self._answers: Iterable[bytes] = ()  # of the stream, once it is open

    def __enter__(self) -> Self:
        self._channel = grpc.insecure_channel(self._address, options=_OPTIONS)
        return self

    def __exit__(self, *_: object) -> None:
        self._say(goodbye=ingest_pb2.Goodbye(engine_id=self._engine_id))
        self._said.put(None)
        with suppress(grpc.RpcError):
            deque(self._answers, maxlen=0)  # to the end: the sidecar has taken all of it
        self._channel.close()

    def register(self, dtype: ElementType) -> None:
        """Introduce the model that the files' states are of. Raises IngestError if the sidecar reads blocks that they lack."""
        model = self._model(dtype)
        request = control_pb2.RegisterRequest(engine_id=self._engine_id, model=model)
        answer = control_pb2.RegisterResponse.FromString(self._call(REGISTER, request.SerializeToString()))
        asked = settings(answer.control).tap_points
        blocks = {TapPoint(block): layer for layer, block in enumerate(self._layout.blocks)}
        missing = [point.name for point in asked if point not in blocks]
        if missing or not asked:
            told = ", ".join(missing) or "nothing: none of its artifacts fits the model"
            raise IngestError(f"the sidecar reads {told}; the blocks given are {_listed(self._layout.blocks)}")
        self._points, self._width = {blocks[point]: point for point in asked}, model.width
        open_stream = self._channel.stream_stream(STREAM, ingest_pb2.StreamRequest.SerializeToString, None)
        self._answers = open_stream(iter(self._said.get, None), timeout=_STREAM_S)

    def send(self, states: StatesFile, name: str) -> ingest_pb2.StepResult:
        """All of a file as the request ``name``: the answer to its last batch, which has the verdict on the whole.

        Comes after ``register``. Raises IngestError if it is of another shape, or the sidecar refuses or drops a batch.
        """
        if (states.layers, states.width) != (len(self._layout.blocks), self._width):
            want = f"{len(self._layout.blocks)} layers ({_listed(self._layout.blocks)}), {self._width} wide"
            raise IngestError(f"it has {states.layers} layers, {states.width} wide; want {want}")
        self._requests += 1
        for part in self._parts(states, RequestInfo(name)):
            result = self._observe(part)
        self._say(finished=ingest_pb2.RequestsFinished(engine_id=self._engine_id, request_ids=[wire_id(name)]))
        return result

    def _parts(self, states: StatesFile, info: RequestInfo) -> Iterator[CapturedStep]:
        segment = StepSegment(info, wire_id(info.request_id), range(states.tokens), Phase.PREFILL, states.tokens)
        tensors = tuple((point, _Rows(states.bits[:, layer], states.dtype)) for layer, point in self._points.items())
        step = CapturedStep(time.time_ns(), 0, (segment,), tensors, states.tokens)
        return parts(step, max_rows=max(1, _STEP_ROWS // len(tensors)))

    def _observe(self, part: CapturedStep) -> ingest_pb2.StepResult:
        self._step += 1
        self._tokens += part.tokens
        message = BatchMessage(self._engine_id, uuid.uuid4().hex, part)
        batch = ingest_pb2.StreamRequest.FromString(message.inline()).step_batch
        batch.step, batch.taken_ns, batch.verdict_within_us = self._step, time.time_ns(), int(_CALL_S * 1e6)
        self._say(step_batch=batch)
        self._say(
            traffic=ingest_pb2.TrafficReport(
                engine_id=self._engine_id, step=self._step, tokens_computed=self._tokens, requests=self._requests
            )
        )
        return self._result()

    def _say(self, **body: Any) -> None:
        self._said.put(ingest_pb2.StreamRequest(**body))

    def _result(self) -> ingest_pb2.StepResult:
        """The answer to the batch that was sent; settings that come in between are of no interest here."""
        try:
            for raw in self._answers:
                answer = ingest_pb2.StreamResponse.FromString(raw)
                if answer.HasField("result"):
                    return _taken(answer.result)
        except grpc.RpcError as error:
            raise IngestError(_in_words(error)) from None
        raise IngestError("the sidecar has ended the stream")

    def _model(self, dtype: ElementType) -> control_pb2.ModelIdentity:
        if self._layout.model is not None:
            return _identity(self._layout.model, dtype)
        raw = self._call(GET_STATUS, control_pb2.GetStatusRequest().SerializeToString())
        now = control_pb2.GetStatusResponse.FromString(raw)
        if not now.HasField("model"):
            raise IngestError("the sidecar has met no model yet; say of which model the states are: --model FOLDER")
        return now.model

    def _call(self, method: str, raw: bytes) -> bytes:
        try:
            answer: bytes = self._channel.unary_unary(method, None, None)(raw, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise IngestError(_in_words(error)) from None
        return answer


def _taken(result: ingest_pb2.StepResult) -> ingest_pb2.StepResult:
    if result.outcome == ingest_pb2.OUTCOME_SCORED and not result.late:
        return result
    how = "refused" if result.outcome == ingest_pb2.OUTCOME_REJECTED else "dropped"
    raise IngestError(f"the sidecar {how} a batch: {result.reason or 'late'} {result.field}".rstrip())


def _in_words(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"


def send_files(engine: FileEngine, files: Sequence[Path], request_id: str = "") -> Iterator[str]:
    """Send one file after the other; yields lines for a terminal. Raises StatesFileError or IngestError, naming the file."""
    for number, path in enumerate(files):
        name = request_id or path.stem
        try:
            states = read_states(path)
            if not number:
                engine.register(states.dtype)
            result = engine.send(states, name)
        except (StatesFileError, IngestError) as error:
            raise type(error)(f"{path}: {error}") from None
        yield from _told(name, states.tokens, result.verdicts[0])


def _told(name: str, tokens: int, verdict: ingest_pb2.Verdict) -> Iterator[str]:
    """What the sidecar advises, and which signals that rests on."""
    yield f"{name}: {tokens} tokens: {ingest_pb2.Action.Name(verdict.action).removeprefix('ACTION_').lower()}"
    over = {one.name for one in verdict.signals}
    yield from (f"  {one.name} {one.score:.3f}, over its threshold {one.threshold:.3f}" for one in verdict.signals)
    yield from (f"  {one}: below its threshold" for one in verdict.read if one not in over)
    yield from (f"  {one}: has not judged it" for one in verdict.skipped)


def _identity(folder: Path, dtype: ElementType) -> control_pb2.ModelIdentity:
    """By its own ``config.json``; which weights they were is not known, so probes made on it are shown as stale."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config", config)
        layers, width = int(text["num_hidden_layers"]), int(text["hidden_size"])
        architecture = str((config.get("architectures") or [config["model_type"]])[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise IngestError("--model: want the folder of a model, with its config.json") from None
    return control_pb2.ModelIdentity(
        name=folder.resolve().name,
        architecture=architecture,
        layers=layers,
        width=width,
        dtype={"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype.value],
        quantisation="none",
        engine="file",
    )


def _listed(blocks: Sequence[int]) -> str:
    return " ".join(map(str, blocks))
