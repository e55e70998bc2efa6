"""``python -m sidecar.tap.transformers serve MODEL ...``: ``transformers serve`` with every model that it loads tapped.

There is no plugin entry point in transformers, so the launcher wraps a few of its methods before it hands over. If this
version has other names, it says which one is missing and serves untapped.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from sidecar.tap.asked import CANARY_VARIABLE, is_canary
from sidecar.tap.limits import limits_from_environment
from sidecar.tap.patches import Method, MissingNameError, hold, owner_of
from sidecar.tap.step import RequestInfo
from sidecar.tap.transformers.context import CALLER, ROWS, Caller
from sidecar.tap.transformers.finish import wrap_answer

log = logging.getLogger("stethoscope.tap")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

STOP_OPTION, STOP_VARIABLE = "--stop-on-block", "STETHOSCOPE_STOP_ON_BLOCK"
USAGE = f"""usage: python -m sidecar.tap.transformers serve MODEL [{STOP_OPTION}] [options of `transformers serve`]

  {STOP_OPTION}  end a generation when the sidecar's verdict on its request is BLOCK (also {STOP_VARIABLE}=1)

  {CANARY_VARIABLE}: a request with the header x-stethoscope-canary of that value is a canary and no traffic"""
_SERVING = "transformers.cli.serving"
_ROUTES = {"/v1/chat/completions": "chat", "/v1/completions": "completion", "/v1/responses": "responses"}
_REQUEST_ID_ARGUMENT = 4  # of generate_streaming and generate_non_streaming, if it comes by position


def main(arguments: Sequence[str]) -> int:
    """Serve until stopped. Exit status 2 for anything but ``serve``, and for a variable of ours that makes no sense."""
    if not arguments or arguments[0] != "serve":
        sys.stderr.write(f"{USAGE}\n")
        return int(list(arguments) not in (["-h"], ["--help"])) * 2
    try:
        arguments = _stop_option(arguments)
        limits_from_environment()  # read where a model is tapped; what is wrong with it is said before anything is served
    except ValueError as error:
        sys.stderr.write(f"{error}\n{USAGE}\n")
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("stethoscope").setLevel(logging.INFO)
    one_thread_on_cpu()
    try:
        patch_serving()
    except MissingNameError as missing:
        log.error("not_tapped missing=%s: this version of transformers is served as it is", missing)  # noqa: TRY400 - no bug of ours
    from transformers.cli.transformers import app

    app(args=list(arguments), prog_name="python -m sidecar.tap.transformers")
    return 0


def _stop_option(arguments: Sequence[str]) -> list[str]:
    """The arguments without our own one, which becomes the variable: whoever taps a model reads it there."""
    if STOP_OPTION in arguments:
        os.environ[STOP_VARIABLE] = "1"
    elif os.environ.get(STOP_VARIABLE, "") not in ("", "0", "1"):
        raise ValueError(f"{STOP_VARIABLE}: want 0 or 1")
    return [one for one in arguments if one != STOP_OPTION]


def _stops_on_block() -> bool:
    return os.environ.get(STOP_VARIABLE) == "1"


def one_thread_on_cpu() -> None:
    """Without a GPU, a decode step on several OpenMP threads is ten times slower than on one. The user's own setting wins."""
    has_gpu = Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()
    if sys.platform == "linux" and not has_gpu and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        log.info("omp_num_threads value=1: no GPU found; set OMP_NUM_THREADS to choose")


def patch_serving() -> None:
    """Wrap what the tap needs. Raises MissingNameError before anything is wrapped."""
    server = _module("server")
    if not callable(getattr(server, "build_server", None)):
        raise MissingNameError(f"{_SERVING}.server.build_server")
    wanted = []
    for module, cls, name, make in _WRAPPERS + (_ANSWERS if _stops_on_block() else ()):
        found = getattr(_module(module), cls, None)
        if not isinstance(found, type):
            raise MissingNameError(f"{_SERVING}.{module}.{cls}")
        wanted.append((owner_of(found, name), name, make))
    for owner, name, make in wanted:
        hold(owner, name, make)
    server.build_server = _with_middleware(server.build_server)


class TraceContext:
    """ASGI middleware: carries a request's traceparent and route to whoever gives it an id, and says goodbye at shutdown."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, _farewell(receive), send)
            return
        if scope["type"] == "http":
            CALLER.set(caller_of(scope))
        await self._app(scope, receive, send)


def caller_of(scope: Message) -> Caller:
    """Who calls, by its headers. Whoever knows the token may call itself a canary, and give its prompt a name by a route."""
    route, session = _ROUTES.get(scope.get("path", ""), ""), _header(scope, b"x-stethoscope-session-hash")
    canary = is_canary(_header(scope, b"x-stethoscope-canary"))
    if canary:
        route = _header(scope, b"x-stethoscope-route") or route
    return Caller(_header(scope, b"traceparent"), route, session, canary)


def _header(scope: Message, name: bytes) -> str:
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""  # two parents are none (W3C Trace Context 3.2)


def _farewell(receive: Receive) -> Receive:
    """Detach before the app learns of the shutdown and unloads its models; the process ends by signal soon after."""

    async def receiving() -> Message:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await asyncio.to_thread(_detach_all)
        return message

    return receiving


def _detach_all() -> None:
    from sidecar.tap.transformers.tap import all_taps

    for tap in all_taps():
        tap.detach()


def _module(name: str) -> Any:
    try:
        return import_module(f"{_SERVING}.{name}")
    except ImportError as error:
        raise MissingNameError(f"{_SERVING}.{name}") from error


def _with_middleware(original: Method) -> Method:
    def build_server(*args: Any, **kwargs: Any) -> Any:
        app = original(*args, **kwargs)
        app.add_middleware(TraceContext)
        return app

    return build_server


def _wrap_load(original: Method) -> Method:
    def load_model_and_processor(manager: Any, *args: Any, **kwargs: Any) -> Any:
        model, processor = original(manager, *args, **kwargs)
        try:
            _tap(model, getattr(processor, "tokenizer", processor))
        except Exception:
            log.exception("not_tapped model=%s", type(model).__name__)
        return model, processor

    return load_model_and_processor


def _tap(model: Any, tokenizer: Any) -> None:
    from sidecar.tap.transformers.api import attach
    from sidecar.tap.transformers.tap import tap_of

    if tap_of(model) is None:
        stop = _stops_on_block()
        tap = attach(model, tokenizer=tokenizer, limits=limits_from_environment(), stop_on_block=stop)
        log.info("tapped model=%s engine_id=%s stop_on_block=%s", type(model).__name__, tap.client.engine_id, stop)


def _wrap_generate(original: Method) -> Method:
    """Sequential serving: the id is not handed on to ``generate``, so it travels as the name of the batch's only row."""

    def generate(manager: Any, *args: Any, **kwargs: Any) -> Any:
        given = args[_REQUEST_ID_ARGUMENT] if len(args) > _REQUEST_ID_ARGUMENT else kwargs.get("request_id")
        rows: tuple[RequestInfo, ...] = (CALLER.get().info(given),) if isinstance(given, str) else ()
        ROWS.set(rows)
        return original(manager, *args, **kwargs)

    return generate


def _wrap_submit(original: Method) -> Method:
    """The context of whoever submits goes with the work to the inference thread."""

    def submit(thread: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        context = contextvars.copy_context()

        def run(*a: Any, **k: Any) -> Any:
            return context.run(function, *a, **k)

        return original(thread, run, *args, **kwargs)

    return submit


_WRAPPERS = (
    ("model_manager", "ModelManager", "load_model_and_processor", _wrap_load),
    ("utils", "GenerateManager", "generate_streaming", _wrap_generate),
    ("utils", "GenerateManager", "generate_non_streaming", _wrap_generate),
    ("utils", "InferenceThread", "submit", _wrap_submit),
    ("utils", "InferenceThread", "async_submit", _wrap_submit),
)
_ANSWERS = (
    ("chat_completion", "ChatCompletionHandler", "_build_completion", wrap_answer),
    ("chat_completion", "ChatCompletionHandler", "_build_chunk_sse", wrap_answer),
)
