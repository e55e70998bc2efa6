"""Every kind of probe that can be trained and served, by name: found here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from probes.errors import LabError
from probes.kinds.attention import Attention, MaxRollingAttention, Multimax
from probes.kinds.base import ProbeEstimator
from probes.kinds.logistic import Logistic
from probes.kinds.mass_mean import MassMean
from probes.kinds.tokens import Coherence, SoftmaxToken, Token
from probes.manifest import Aggregation

# The plainest first: of two that do equally well, the first is taken.
KINDS: Mapping[str, type[ProbeEstimator]] = MappingProxyType(
    {
        "logistic": Logistic,
        "mass_mean": MassMean,
        "token": Token,
        "softmax_token": SoftmaxToken,
        "coherence": Coherence,
        "attention": Attention,
        "max_rolling_attention": MaxRollingAttention,
        "multimax": Multimax,
    }
)


def make_estimator(kind: str, aggregation: Aggregation, strength: float, seed: int = 0) -> ProbeEstimator:
    """Make an estimator, not fitted. The seed goes to kinds that draw anything. Raises LabError for an unknown kind.

    >>> make_estimator("logistic", Aggregation(kind="mean"), 0.1).strength
    0.1
    """
    if kind not in KINDS:
        raise LabError(f"there is no kind {kind!r}; there are: {', '.join(KINDS)}")
    estimator = KINDS[kind](aggregation=aggregation, strength=strength)
    return estimator.set_params(seed=seed) if "seed" in estimator.get_params() else estimator
