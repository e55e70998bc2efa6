"""What a draft claims, with all that it takes to validate it: other pairs, traffic without the behaviour, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from probes.activations.model import LabModel
from probes.answers import answered
from probes.circuits.behaviours import find_pairs
from probes.circuits.choosing import SHARE, Chosen, choose, ranked
from probes.circuits.draft import DraftCircuit
from probes.circuits.manifest import Severity
from probes.circuits.nodes import Node
from probes.circuits.pairs import Contrast, pairs_digest
from probes.errors import LabError
from probes.manifest.fields import Strict, Text
from probes.prompts import EVERYDAY
from probes.release.version import FIRST

if TYPE_CHECKING:
    from rich.progress import Progress

Array = npt.NDArray[np.float64]
ANSWER_TOKENS = 48
LONGEST = 96  # tokens of a text of traffic


class About(Strict):
    """What people are told of a circuit, and what they ask of it."""

    description: Text = ""
    behaviour: Text = ""
    severity: Literal["page", "ticket"] = Severity.TICKET.value
    version: Annotated[str, Field(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)$")] = FIRST
    licence: Text = "not told"
    k: Literal[1, 2, 4, 8] = 4
    basis: Annotated[int, Field(ge=0, le=64)] = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What is to be validated, and on what.

    ranked: all nodes, those that help the most first. measured: nodes and their effects [N, P] on the pairs that chose; None if
    nobody measured. pairs: others than those. traffic: token ids of texts; traffic_name: what they are. about: the manifest's
    fields that are words and wishes. basis: directions of the frozen subspace of traffic, 0 for none.
    """

    chosen: Chosen
    ranked: tuple[Node, ...]
    measured: tuple[tuple[Node, ...], Array] | None
    pairs: tuple[Contrast, ...]
    traffic: Sequence[Sequence[int]]
    traffic_name: str
    about: Mapping[str, Any]
    basis: int = 0


def claim_of(
    draft: DraftCircuit,
    lab: LabModel,
    *,
    about: About,
    pairs: str | None = None,
    traffic: Path | None = None,
    share: float | None = None,
    without: str | None = None,
    chat: bool = False,
    bars: Progress,
) -> Claim:
    """Everything that a validation wants. without: the discovery's pairs, of which none may be among the others.

    traffic: a file of texts; None for everyday chats that the model answers itself. Raises LabError if the model or the pairs are
    not such as could say anything about the draft.
    """
    if pairs is None:
        raise LabError(
            "want --pairs, other ones than those of the discovery: pairs that chose the nodes prove nothing about them"
        )
    if draft.model.weights_digest != lab.binding.weights_digest:
        raise LabError(f"{draft.name} was found on other weights: run `probes discover` on these first")
    own = find_pairs(pairs, lab, chat=chat)
    if pairs_digest(own) == draft.pairs_digest:
        raise LabError("these pairs chose the nodes, and prove nothing about them: want other ones")
    if without is not None:
        chose = {(pair.clean, pair.corrupt) for pair in find_pairs(without, lab, chat=chat)}
        own = tuple(pair for pair in own if (pair.clean, pair.corrupt) not in chose)
    fields = about.model_dump(exclude={"basis"}) | {"name": draft.name, "token_span": "all"}
    fields["behaviour"] = fields["behaviour"] or draft.name
    return Claim(
        choose(draft, SHARE if share is None else share),
        ranked(draft),
        draft.measured,
        own,
        *(_everyday(lab, bars) if traffic is None else _texts(traffic, lab)),
        fields,
        about.basis,
    )


def read_about(path: Path | None) -> About:
    """Raises LabError naming what is wrong."""
    import yaml

    if path is None:
        return About()
    try:
        return About.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}") from None
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise LabError(f"{path}: {error}") from None


def _everyday(lab: LabModel, bars: Progress) -> tuple[list[list[int]], str]:
    if not lab.template_digest:
        raise LabError(f"{lab.identity.name} does not chat: want --traffic, texts that do not call for the behaviour")
    chats = answered(lab, EVERYDAY, ANSWER_TOKENS, bars)
    return chats, f"{len(chats)} everyday chats, answered by the model"


def _texts(path: Path, lab: LabModel) -> tuple[list[list[int]], str]:
    lines = _lines(path)
    return [list(lab.tokenizer.encode(line))[:LONGEST] for line in lines], f"{len(lines)} texts of {path.name}"


def _lines(path: Path) -> list[str]:
    try:
        found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    if len(found) < 2:
        raise LabError(f"{path} holds fewer than two texts")
    return found
