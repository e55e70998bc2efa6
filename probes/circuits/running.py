"""Run a decoder over prompts and see, replace or ablate what its nodes put out: by plain hooks, gone again after each run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probes.activations.plan import BATCH_TOKENS, batches
from probes.activations.sites import Socket, find_sockets
from probes.causal.acting import Act, acting_at, acting_before, returning
from probes.circuits.pairs import Contrast
from probes.circuits.universe import heads_of
from probes.errors import LabError
from sidecar.types import TapPoint

if TYPE_CHECKING:
    import torch

# The same float32 products on the same numbers: only the order of sums differs. Of the largest metric.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that are run together, padded on the right: attention looks only to the left, so no real position sees it.

    ids: [B, T]. ends: [B], the position of each prompt's last token. right, wrong: [B, k], answers' tokens, -1 for none.
    """

    ids: torch.Tensor
    ends: torch.Tensor
    right: torch.Tensor
    wrong: torch.Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def real(self) -> torch.Tensor:
        """Which positions are not padding, bool [B, T]."""
        import torch

        return torch.arange(self.ids.shape[1]) <= self.ends[:, None]

    def repeated(self, times: int) -> Prompts:
        """All of them, one after another, ``times`` times."""
        return Prompts(*(one.repeat(times, 1) if one.ndim == 2 else one.repeat(times) for one in self._parts()))

    def chosen(self, rows: Sequence[int]) -> Prompts:
        return Prompts(*(one[list(rows)] for one in self._parts()))

    def _parts(self) -> tuple[torch.Tensor, ...]:
        return self.ids, self.ends, self.right, self.wrong


@dataclass(frozen=True, slots=True)
class Group:
    """Contrast pairs that are run together. pairs: their numbers; clean, corrupt: row by row the same answers."""

    pairs: tuple[int, ...]
    clean: Prompts
    corrupt: Prompts


@dataclass(frozen=True, slots=True)
class Below:
    """What a run goes on from: the first ``layer`` blocks are not computed, and ``states`` [B, T, D] are what they gave."""

    layer: int
    states: torch.Tensor

    @property
    def point(self) -> TapPoint:
        return TapPoint(self.layer - 1)


class Decoder:
    """A transformers decoder in evaluation mode, whose weights get no gradients. Used on one thread at a time."""

    def __init__(self, model: Any) -> None:
        from sidecar.tap.transformers.blocks import find_blocks

        self.model = model.requires_grad_(requires_grad=False)
        self.heads = heads_of(model)
        self._blocks: Any = find_blocks(model)
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise LabError(f"{type(model).__name__} has no head that answers in words")
        self._sockets: dict[TapPoint, Socket] = {}

    @property
    def layers(self) -> int:
        return len(self._blocks)

    def metrics(
        self,
        prompts: Prompts,
        acts: Mapping[TapPoint, Act] | None = None,
        below: Below | None = None,
        *,
        gradients: bool = False,
    ) -> torch.Tensor:
        """Each prompt's metric, float64 [B], with ``acts`` at work: log sum exp of right answers' logits less wrong ones'.

        gradients: keep what a backward pass needs. Raises LabError if the metrics are not finite.
        """
        import torch

        rows, ends = torch.arange(len(prompts)), prompts.ends
        with ExitStack() as hooks:
            hooks.enter_context(torch.set_grad_enabled(gradients))
            if below is not None and below.layer:
                hooks.enter_context(returning(self._blocks[: below.layer], below.states))
            for point, act in (acts or {}).items():
                hooks.enter_context(acting_at(self._socket(point), act))
            # Of each prompt the last position alone meets the head: with 50,000 words it costs as much as several blocks.
            hooks.enter_context(acting_before(self._head, lambda states: states[rows, ends][:, None]))
            logits = self.model(input_ids=prompts.ids, use_cache=False).logits[:, 0].double()  # [B, vocabulary]
            found = _mass(logits, prompts.right) - _mass(logits, prompts.wrong)
        if not bool(torch.isfinite(found).all()):
            raise LabError("the model's answers are not finite numbers")
        return found

    def read(self, prompts: Prompts, points: Iterable[TapPoint]) -> tuple[torch.Tensor, dict[TapPoint, torch.Tensor]]:
        """Metrics [B], and by tap point the states [B, T, width] of the untouched model, padding included."""
        caught: dict[TapPoint, torch.Tensor] = {}

        def catch(point: TapPoint) -> Act:
            def act(states: torch.Tensor) -> torch.Tensor:
                caught[point] = states.detach().clone()
                return states

            return act

        wanted = list(points)
        found = self.metrics(prompts, {point: catch(point) for point in wanted})
        if missing := [point.name for point in wanted if point not in caught]:
            raise LabError(f"the model ran, but nothing came by at {', '.join(missing)}")
        return found, caught

    def goes_on(self, prompts: Prompts) -> bool:
        """Whether going on from the middle and from the last block gives what the whole model gives (not where blocks share)."""
        layers = [layer for layer in sorted({self.layers // 2, self.layers - 1}) if layer]
        wanted, states = self.read(prompts, [TapPoint(layer - 1) for layer in layers])
        allowed = _TOLERANCE * (1 + float(wanted.abs().max()))
        return all(
            float((self.metrics(prompts, below=Below(layer, states[TapPoint(layer - 1)])) - wanted).abs().max())
            <= allowed
            for layer in layers
        )

    def _socket(self, point: TapPoint) -> Socket:
        if point not in self._sockets:
            (self._sockets[point],) = find_sockets(self.model, [point])
        return self._sockets[point]


def groups(pairs: Sequence[Contrast], limit: int = BATCH_TOKENS) -> Iterator[Group]:
    """Pairs of like length together, the longest first; at most ``limit`` tokens of clean prompts, padding included."""
    ordered = sorted(range(len(pairs)), key=lambda number: (-len(pairs[number].clean), number))
    for chosen in batches(ordered, [len(pairs[number].clean) for number in ordered], limit):
        those = [pairs[number] for number in chosen]
        clean = prompts([pair.clean for pair in those], those)
        corrupt = prompts([pair.corrupt for pair in those], those)
        yield Group(tuple(chosen), clean, corrupt)


def prompts(ids: Sequence[Sequence[int]], asked: Sequence[Contrast]) -> Prompts:
    """Token ids to be run together, with the answers of these pairs."""
    import torch

    longest = max(map(len, ids))
    # Padded with its own last token: a model's padding token makes it ask for a mask that nothing here needs.
    padded = [[*one, *[one[-1]] * (longest - len(one))] for one in ids]
    return Prompts(
        torch.tensor(padded),
        torch.tensor([len(one) - 1 for one in ids]),
        _rectangle([pair.right for pair in asked]),
        _rectangle([pair.wrong for pair in asked]),
    )


def _rectangle(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows])


def _mass(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Log sum exp of each row's answers, [B]."""
    import torch

    chosen = logits.gather(1, answers.clamp(min=0))
    return torch.logsumexp(chosen.masked_fill(answers < 0, -torch.inf), dim=1)
