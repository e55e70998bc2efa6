"""Find a circuit's nodes on contrast pairs: patch every node if there is time, else those that gradients point to, and others."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from probes.causal.passes import Passes
from probes.circuits.draft import DraftCircuit, Method, Trace
from probes.circuits.drafting import Found, Settings, drafted
from probes.circuits.nodes import Node, by_point
from probes.circuits.pairs import Contrast, pairs_digest
from probes.circuits.patching import Patching
from probes.circuits.running import Decoder
from probes.circuits.shortlist import Shortlist, shortlist
from probes.circuits.tracing import Tracing, alike, traced_points
from probes.circuits.universe import PARTS, nodes_of
from probes.errors import LabError
from probes.journal import Journal
from probes.strictjson import canonical
from sidecar.types import Site, TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress

    from probes.activations.model import LabModel

Array = npt.NDArray[np.float64]
Work = Callable[[], Array]
KEPT = "discovery.passes.jsonl"


def discover(
    lab: LabModel,
    pairs: Sequence[Contrast],
    settings: Settings,
    folder: Path,
    bars: Progress,
    *,
    clock: Callable[[], float] = time.process_time,
) -> DraftCircuit:
    """Find the nodes and write the draft into ``folder``.

    What is done is kept there until all is: the same call goes on from it, after a kill too, and ends with the same bytes. The
    same model, pairs and settings give the same numbers; which method fits into a budget of seconds is told once, and kept.
    Raises LabError if the settings cannot work, or if the model does no better on clean prompts than on corrupt ones.
    """
    settings.check()
    return _Discovery(lab, pairs, settings, folder, bars, clock).run()


class _Discovery:
    """One discovery at work."""

    def __init__(
        self,
        lab: LabModel,
        pairs: Sequence[Contrast],
        settings: Settings,
        folder: Path,
        bars: Progress,
        clock: Callable[[], float],
    ) -> None:
        self._lab, self._pairs, self._settings, self._folder, self._bars = lab, pairs, settings, folder, bars
        self._clock = clock
        self._decoder = Decoder(lab.model)
        self._points = by_point(nodes_of(lab.model, PARTS))
        self._patching = Patching(self._decoder, pairs, list(self._points))
        self._kept = Journal(folder / KEPT, self._fingerprint())
        self._task = bars.add_task("patching", total=None)
        self._pass: Passes[Work] = Passes(
            lambda work: work(), self._kept, math.inf, tick=lambda: bars.advance(self._task), clock=clock
        )

    def run(self) -> DraftCircuit:
        gap = float(self._patching.clean.mean() - self._patching.corrupt.mean())
        if not gap > 0:
            raise LabError(
                f"on clean prompts the metric is no higher than on corrupt ones ({gap:+.3f}): nothing to look for"
            )
        if not self._kept.load():
            self._bars.console.print(f"{self._kept.path} is of other work, and is not used")
        method = self._method()
        self._bars.update(self._task, total=self._passes(method))
        attributions = self._attributions() if self._attributes(method) else {}
        picked = None if method == "exact" else shortlist(attributions, self._settings.seed, self._settings.randoms)
        effects = self._effects(self._points if picked is None else by_point((*picked.top, *picked.random)))
        found = self._found(attributions, effects, picked, self._trace())
        draft = drafted(self._settings, self._lab.binding, self._pairs, found)
        draft.write(self._folder)
        self._kept.forget()
        return draft

    def _found(
        self,
        attributions: Mapping[Node, float],
        effects: Mapping[Node, Array],
        picked: Shortlist | None,
        trace: Trace | None,
    ) -> Found:
        nodes = tuple(node for those in self._points.values() for node in those)
        patching = self._patching
        return Found(
            nodes, patching.clean, patching.corrupt, attributions, effects, picked, trace, reuse=patching.goes_on
        )

    def _method(self) -> Method:
        """What was asked for; else exact if, as long as one node in the middle took, all will take no more than the budget."""
        settings = self._settings
        if settings.method is not None:
            return settings.method
        key = f"fits into {settings.budget_s:g} s"
        if key not in self._kept:
            self._kept.add(key, self._estimate_s() <= settings.budget_s)
        return "exact" if self._kept[key] else "prefilter"

    def _estimate_s(self) -> float:
        layers = self._decoder.layers
        middle = [nodes for point, nodes in self._points.items() if point.layer == layers // 2][-1][:1]
        began_s = self._clock()
        self._patching.exact(middle)
        one_s = self._clock() - began_s
        if not self._patching.goes_on:
            return one_s * sum(map(len, self._points.values()))
        return one_s * sum(
            (layers - at.layer) / (layers - layers // 2) * len(them) for at, them in self._points.items()
        )

    def _attributes(self, method: Method) -> bool:
        return method == "prefilter" or self._settings.attribute

    def _passes(self, method: Method) -> int:
        traced = len(traced_points(self._decoder.layers)) if self._settings.traced else 0
        return len(self._points) * (2 if self._attributes(method) else 1) + traced

    def _attributions(self) -> dict[Node, float]:
        steps = self._settings.steps
        self._bars.update(self._task, description="following gradients")
        found: dict[Node, float] = {}
        for point, nodes in self._points.items():
            work = partial(self._patching.attributed, nodes, steps)
            rows = self._pass(f"attribution {steps} {point.name}", lambda work=work: work)  # type: ignore[misc]  # a loop's own
            found |= dict(zip(nodes, rows.mean(axis=1).tolist(), strict=True))
        return found

    def _effects(self, wanted: Mapping[TapPoint, Sequence[Node]]) -> dict[Node, Array]:
        self._bars.update(self._task, description="patching")
        found: dict[Node, Array] = {}
        for point, nodes in wanted.items():
            heads = "" if nodes == self._points[point] else " " + ",".join(str(node.head) for node in nodes)
            work = partial(self._patching.exact, nodes)
            rows = self._pass(f"exact {point.name}{heads}", lambda work=work: work)  # type: ignore[misc]
            found |= dict(zip(nodes, rows, strict=True))
        return found

    def _trace(self) -> Trace | None:
        if not self._settings.traced:
            return None
        self._bars.update(self._task, description="tracing")
        pairs = alike(self._pairs, self._settings.traced)
        tracing = Tracing(self._decoder, pairs, goes_on=self._patching.goes_on)
        restored: dict[str, list[tuple[float, ...]]] = {}
        for point in traced_points(self._decoder.layers):
            if point.site is not Site.RESID_POST and point not in self._points:
                continue
            work = partial(tracing.restored, point)
            rows = self._pass(f"trace {len(pairs)} {point.name}", lambda work=work: work)  # type: ignore[misc]
            restored.setdefault(point.site.value, []).append(tuple(rows.tolist()))
        tokens, others = (
            [self._lab.tokenizer.decode([one]) for one in ids] for ids in (pairs[0].clean, pairs[0].corrupt)
        )
        return Trace(
            pairs=len(pairs),
            tokens=tuple(tokens),
            corrupt_tokens=tuple(others),
            restored={site: tuple(rows) for site, rows in restored.items()},
        )

    def _fingerprint(self) -> str:
        """Of all that a kept pass hangs on; how it is chosen and what is made of it are in its key, or do not matter."""
        told = {
            "model": self._lab.binding.model_dump(mode="json"),
            "pairs": pairs_digest(self._pairs),
            "reuse": self._patching.goes_on,
            "torch": version("torch"),
        }
        return hashlib.sha256(canonical(told)).hexdigest()
