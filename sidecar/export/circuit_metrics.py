"""The metrics of circuits: the part of the table that is theirs."""

from __future__ import annotations

from sidecar.export.metric import (
    BOOLEAN,
    BY_TAP_POINT,
    EVIDENCE,
    PREFIX,
    TAP_POINT,
    VERSION,
    By,
    Kind,
    Label,
    Metric,
    closed,
    counter,
    gauge,
    histogram,
)
from sidecar.live.alarms import Cause
from sidecar.live.canary_arrivals import Unused
from sidecar.snapshot import CircuitState

# What is counted of one circuit is 1.5 KiB of a page in each slice, and its histograms are 30 lines.
CIRCUITS = 32
SLICES = 8
NODES = 18  # of a circuit: 16 that are read, T^2 and SPE

_CIRCUIT = Label("circuit", source="name in the circuit's manifest")
_SLICE = Label("slice", source="routes of the configuration, `other` and `all`")
_BY_CIRCUIT: By = ((_CIRCUIT,), CIRCUITS)
_BY_SLICE: By = ((_CIRCUIT, _SLICE), CIRCUITS * SLICES)

CIRCUIT_METRICS = (
    Metric(
        f"{PREFIX}circuit_info",
        Kind.INFO,
        "Every circuit in force: on what evidence, and of which spec and model its sketches are.",
        (
            _CIRCUIT,
            VERSION,
            Label("evidence", EVIDENCE),
            Label("severity", ("page", "ticket")),
            Label("may_page", BOOLEAN),
            Label("spec", source="first 12 digits of the spec's SHA-256"),
            Label("model", source="first 12 digits of the SHA-256 of the weights that are served"),
        ),
        CIRCUITS,
    ),
    Metric(
        f"{PREFIX}circuit_state",
        Kind.GAUGE,
        "1 for what a circuit is worth on the model that is served.",
        (_CIRCUIT, *closed("state", CircuitState)[0]),
        CIRCUITS * len(CircuitState),
    ),
    counter(
        "circuit_tokens", "Tokens that were sketched: counted, like all of circuits, when a tick closes.", _BY_SLICE
    ),
    counter("circuit_tokens_engaged", "Of those, tokens at which the circuit was engaged.", _BY_SLICE),
    histogram(
        "circuit_score_ratio",
        "1 / (1 + exp(theta - S)) of every token's score S: above one half is engaged. Exact to a 64th of the score's range.",
        _BY_CIRCUIT,
        unit="ratio",
    ),
    Metric(
        f"{PREFIX}circuit_node_active_total",
        Kind.COUNTER,
        "Tokens at which a node of the circuit was active.",
        (_CIRCUIT, Label("node", source="nodes in the circuit's manifest, and T^2 and SPE of its basis")),
        CIRCUITS * NODES,
    ),
    Metric(
        f"{PREFIX}circuit_tokens_unusual_total",
        Kind.COUNTER,
        "Tokens beyond the 99 % point of the traffic that the circuit was made on: within its usual directions, or off them.",
        (_CIRCUIT, *closed("measure", ("t2", "spe"))[0]),
        2 * CIRCUITS,
    ),
    Metric(
        f"{PREFIX}circuit_tokens_excluded_total",
        Kind.COUNTER,
        "Tokens that were read and not sketched: not finite, or at the first positions of a sequence.",
        (_CIRCUIT, *closed("reason", ("non_finite", "sink"))[0]),
        2 * CIRCUITS,
    ),
    counter("circuit_activities_clipped", "Activities beyond what a sketch holds, counted at its edge.", _BY_CIRCUIT),
    counter("circuits_tokens_left_out", "Tokens that no circuit sketched because of the ladder."),
    histogram(
        "circuit_session_engaged_ratio",
        "Sessions that bet, by the share of their sampled tokens that was engaged: sum by (le) is that of a fleet.",
        _BY_SLICE,
        unit="ratio",
    ),
    counter("circuit_sessions_short", "Sessions that ended without tokens enough to bet.", _BY_SLICE),
    counter(
        "circuits_session_rows_unused",
        "Rows that are no evidence: of no session, or of one that bets on another replica.",
        closed("reason", ("unnamed", "elsewhere")),
    ),
    counter(
        "circuits_sessions_given_up",
        "Sessions given up for want of room: before they had bet, or after.",
        closed("reason", ("evicted", "forgotten")),
    ),
    gauge("circuits_sessions_remembered", "Sessions of which it is known whether they have bet."),
    gauge(
        "circuit_evidence_log",
        "log E of the detector: evidence that a circuit's share of engaged tokens moved.",
        _BY_SLICE,
    ),
    gauge(
        "circuit_evidence_threshold_ratio",
        "log E as a share of its threshold's; at 1 there is an alarm.",
        _BY_SLICE,
        unit="ratio",
    ),
    gauge(
        "circuit_silent_seconds",
        "Time without a session that bet, in hours in which the baseline saw enough of them: no data is no evidence.",
        _BY_SLICE,
        unit="seconds",
    ),
    counter(
        "circuits_ticks",
        "Ticks, by what became of them.",
        closed("outcome", ("closed", "late", "repeated", "missed", "lost", "set_back")),
    ),
    Metric(
        f"{PREFIX}circuit_alarm",
        Kind.GAUGE,
        "1 for an alarm that has been diagnosed and has not cooled.",
        (
            _CIRCUIT,
            _SLICE,
            Label("severity", ("page", "ticket")),
            Label("cause", tuple(Cause)),
            Label("leans", ("more", "less")),
        ),
        CIRCUITS * SLICES,
    ),
    Metric(
        f"{PREFIX}circuit_alarms_total",
        Kind.COUNTER,
        "Alarms, by what they turned out to be about.",
        (_CIRCUIT, _SLICE, Label("cause", tuple(Cause))),
        CIRCUITS * SLICES * len(Cause),
    ),
    gauge(
        "circuits_false_alarms_promised",
        "False alarms in 30 days, on average at most, by the guarantee of all detectors together.",
    ),
    counter("circuits_archive_rows", "Rows of sketches for the archive.", closed("outcome", ("written", "lost"))),
    counter("circuits_alarm_records", "Records of alarms.", closed("outcome", ("written", "lost"))),
    counter("circuits_looks_failed", "Looks at the worker's ticks that came to nothing; the next one has them."),
    gauge(
        "circuit_canary_distance",
        "How far a circuit's activities on canaries have moved, in floors of noise.",
        _BY_CIRCUIT,
    ),
    gauge("circuit_canary_moved", "1 if two rounds in a row say that the circuit has moved.", _BY_CIRCUIT),
    gauge(
        "canary_distance",
        "How far hidden states of canaries have moved, in floors of noise.",
        BY_TAP_POINT,
    ),
    gauge("canary_moved", "1 if two rounds in a row say that the hidden states have moved.", BY_TAP_POINT),
    Metric(
        f"{PREFIX}canary_first_moved_info",
        Kind.INFO,
        "The first tap point, in the order in which the model computes, whose hidden states have moved.",
        (TAP_POINT,),
    ),
    gauge("canary_configured", "1 if canaries are to be sent."),
    gauge("canary_recorded", "1 if the newest round of canaries that came was compared with a reference."),
    gauge("canary_interval_seconds", "A round of canaries begins this often.", unit="seconds"),
    gauge("canary_age_seconds", "Time since the newest round of canaries that was whole.", unit="seconds"),
    counter(
        "canary_rounds",
        "Rounds of canaries, by how they ended; not_compared: the reference is of another model, engine, or prompts.",
        closed("outcome", ("whole", "partial", "failed", "not_compared")),
    ),
    counter(
        "canary_rows_unused",
        "Rows of canaries that are no part of a round: none ran, it had that token, or they are of no prompt or plan of it.",
        closed("reason", Unused),
    ),
    gauge("deploy_window", "1 while a deploy window is open: the model is meant to change."),
    gauge(
        "deploy_windows_unsound", "1 if the file of deploy windows was changed or cannot be read: then none is open."
    ),
    gauge("circuits_tick_seconds", "Length of a tick.", unit="seconds"),
    gauge(
        "circuits_memory_bytes",
        "What sketches, sessions and detectors hold, from the first row to the last.",
        unit="bytes",
    ),
)
