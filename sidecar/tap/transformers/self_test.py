"""Before the first request: whether every tap point that could be asked for gives states, the way it is tapped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sidecar.tap.sites import NoPartError, find_socket
from sidecar.tap.tensors.heard import Heard, Wanted
from sidecar.tap.transformers.blocks import StackParts, find_stacks
from sidecar.tap.transformers.hooks import plug
from sidecar.tap.transformers.made_up import MadeUp, NoTrialError, made_up
from sidecar.tap.transformers.untouched import untouched
from sidecar.tap.trial import Findings, not_tested, summary
from sidecar.types import Site, Stack, TapPoint

if TYPE_CHECKING:
    from torch import nn

    from sidecar.tap.sites import Socket

log = logging.getLogger("stethoscope.tap")


def self_test(model: nn.Module) -> Findings:
    """Run made-up tokens through the model, and find of every tap point that it has whether states came, and such as it makes.

    One forward pass of four tokens, of which the model keeps no trace; it must not be tapped yet, so that they are nobody's.
    Where it cannot be run, that is told, and every tap point is not tested. Raises nothing that is no bug.
    """
    stacks = find_stacks(model)
    sockets = dict(_sockets(stacks))
    findings = _tried(model, stacks, sockets)
    log.info("self_test model=%s %s", type(model).__name__, summary(findings))
    return findings


def _tried(model: Any, stacks: Mapping[Stack, StackParts], sockets: Mapping[TapPoint, Socket]) -> Findings:
    bug: Exception | None = None
    try:
        _check_alone()
        given = made_up(model)
        return _trial(model, given, _wanted(model, stacks, sockets, given), sockets)
    except NoTrialError as missing:
        why = str(missing)
    except Exception as error:  # noqa: BLE001 - told with its traceback; a model that serves may fail on what is made up
        why, bug = f"the model failed on made-up tokens: {type(error).__name__}", error
    log.warning("self_test not run: %s; whether states come is seen with the first request", why, exc_info=bug)
    return not_tested(sockets, why)


def _trial(
    model: Any, given: MadeUp, wanted: Mapping[TapPoint, Wanted], sockets: Mapping[TapPoint, Socket]
) -> Findings:
    heard, here = Heard(wanted), threading.get_ident()

    def taker(point: TapPoint) -> Callable[[Any], None]:
        return lambda states: heard.take(point, states) if threading.get_ident() == here else None

    handles = []
    try:
        for point, socket in sockets.items():
            handles.append(plug(socket, taker(point)))
        with untouched(model):
            model(**given.arguments)
    finally:
        for handle in handles:
            handle.remove()
    return heard.findings()


def _sockets(stacks: Mapping[Stack, StackParts]) -> Iterator[tuple[TapPoint, Socket]]:
    """Every tap point that the model has, and where it is."""
    for stack, parts in stacks.items():
        for layer, block in enumerate(parts.blocks):
            for site in Site:
                try:
                    yield TapPoint(layer, site, stack), find_socket(block, site)
                except NoPartError:
                    continue


def _wanted(
    model: Any, stacks: Mapping[Stack, StackParts], sockets: Mapping[TapPoint, Socket], given: MadeUp
) -> dict[TapPoint, Wanted]:
    """What heads are wide together, a model alone decides."""
    encoder = getattr(stacks[Stack.ENCODER].whole, "config", None) if Stack.ENCODER in stacks else None
    widths = {
        Stack.DECODER: int(model.config.get_text_config(decoder=True).hidden_size),
        Stack.ENCODER: int(getattr(encoder, "hidden_size", 0)),
    }
    return {
        point: Wanted(given.rows[point.stack], 0 if point.site is Site.ATTN_HEADS else widths[point.stack])
        for point in sockets
    }


def _check_alone() -> None:
    """Raises NoTrialError where a forward pass on one of several processes would wait for the others, for ever."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise NoTrialError("the model may lie on several processes, of which all would have to run it")
