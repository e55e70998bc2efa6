"""Every OpenTelemetry name that the sidecar writes. The gen_ai.* ones still move, and only this file knows them.

The ``stethoscope.*`` names are ours. None of them carries text of a prompt or an answer, or readings of single tokens.
"""

from __future__ import annotations

SCOPE = "stethoscope"
SPAN_NAME = "stethoscope.request"

SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"

# Not in the conventions, but what engines already call the id of a request: spans join by it without a traceparent.
GEN_AI_REQUEST_ID = "gen_ai.request.id"

EVALUATION_EVENT = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_SCORE_VALUE = "gen_ai.evaluation.score.value"
EVALUATION_SCORE_LABEL = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"
LABEL_FLAGGED = "flagged"
LABEL_CLEAR = "clear"

ENGINE_ID = "stethoscope.engine.id"
ROUTE = "stethoscope.route"
ADAPTER = "stethoscope.adapter"
TOKENS_SEEN = "stethoscope.tokens.seen"
TOKENS_UNSEEN = "stethoscope.tokens.unseen"
ENDED_BY = "stethoscope.ended_by"
FLAGGED = "stethoscope.flagged"
PROBES_LEFT_OUT = "stethoscope.probes.left_out"

PROBE_VERSION = "stethoscope.probe.version"
PROBE_EVIDENCE = "stethoscope.probe.evidence"
PROBE_THRESHOLD = "stethoscope.probe.threshold"
PROBE_READINGS = "stethoscope.probe.readings"


def of_medium(medium: str) -> str:
    """Name how many of the tokens seen are those of an image or the like.

    >>> of_medium("image")
    'stethoscope.tokens.image'
    """
    return f"stethoscope.tokens.{medium}"


def of_probe(probe: str, what: str) -> str:
    """Name one fact about one probe on the span itself, where a trace query can ask for it.

    >>> of_probe("sentiment", "score")
    'stethoscope.probe.sentiment.score'
    """
    return f"stethoscope.probe.{probe}.{what}"
