"""``attach``: the one call that taps a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from sidecar.tap.client import TapClient
    from sidecar.tap.limits import LinkLimits
    from sidecar.tap.transformers.tap import Tap
    from sidecar.types import SamplingPolicy


def attach(
    model: nn.Module,
    *,
    address: str | None = None,
    tokenizer: Any = None,
    layers: Sequence[int | str] | None = None,
    engine_id: str | None = None,
    sampling: SamplingPolicy | None = None,
    limits: LinkLimits | None = None,
    client: TapClient | None = None,
    measure_cost: bool = False,
    stop_on_block: bool = False,
) -> Tap:
    """Tap a transformers model: from now on its hidden states go to the sidecar, in every way it is run in this process.

    model: a decoder, also inside a multimodal model, or an encoder with a decoder; its outputs stay bitwise the same.
    address: the sidecar's, default as in ``default_address``; nobody needs to be there. layers: blocks whose residual stream is
    captured, or names of tap points, default those that the sidecar asks for. sampling: which requests and tokens, default as
    the sidecar asks. limits: how much may wait to be sent. client: the caller's own, who also stops it and has given it its
    address, engine_id and limits. stop_on_block: end a request's generation when the sidecar's verdict on it is BLOCK, as if it
    had ended by itself (``Tap.stopped`` counts them; beam search and plain calls of the model are not stopped); a verdict is
    advice otherwise. The weights are fingerprinted here (0.1 s for 135M parameters), and four made-up tokens run through the model,
    which keeps no trace of them, to see that every tap point gives states: what does not is not captured, and the log says why
    (``Tap.self_test``). Nothing else may run the model meanwhile.

    Raises ValueError if the model is neither, is tapped already, or has no such layer, or if limits come with a client.
    """
    from sidecar.tap.address import default_address, default_engine_id
    from sidecar.tap.client import TapClient
    from sidecar.tap.identity import identify
    from sidecar.tap.transformers.tap import Tap

    owns_client = client is None
    if client is not None and limits is not None:
        raise ValueError("limits are those of the client that was given")
    if client is None:
        where = address if address is not None else default_address()
        name = engine_id if engine_id is not None else default_engine_id("transformers")
        client = TapClient(where, identify(model, tokenizer), engine_id=name, limits=limits)
    tap = Tap(
        model,
        client,
        layers=layers,
        sampling=sampling,
        measure_cost=measure_cost,
        owns_client=owns_client,
        stop_on_block=stop_on_block,
    )
    tap.install()
    client.start()
    return tap
