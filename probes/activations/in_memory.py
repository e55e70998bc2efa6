"""States of a few texts, straight into memory: for what is made from them at once and kept nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from probes.activations.model import LabModel
from probes.activations.plan import batches, by_length
from probes.activations.reader import reading
from sidecar.types import FloatArray, TapPoint

if TYPE_CHECKING:
    from rich.progress import Progress


def states_of(
    lab: LabModel, ids: Sequence[Sequence[int]], points: Sequence[TapPoint], skip: int, bars: Progress
) -> dict[TapPoint, list[FloatArray]]:
    """By tap point every text's rows, float32 [n, width], in the order of ``ids``: non-empty token ids, one list a text.

    The first ``skip`` positions are left out, a text's last row never is. Rows are those of a forward of each text alone, up to
    rounding (other batch shapes). Raises LabError as `probes.activations.sites.find_sockets` does.
    """
    counts = np.array([len(text) for text in ids], dtype=np.int64)
    order = by_length(counts)
    task = bars.add_task(f"reading {len(ids)} texts", total=int(counts.sum()))
    rows: dict[TapPoint, dict[int, FloatArray]] = {point: {} for point in points}
    with reading(lab.model, points, skip) as reader:
        for batch in batches(order, counts[order].tolist()):
            read = reader.read([ids[text] for text in batch])
            for point in points:
                rows[point].update(zip(batch, read[point.name], strict=True))
            bars.advance(task, int(counts[batch].sum()))
    return {point: [of_text[text] for text in range(len(ids))] for point, of_text in rows.items()}
