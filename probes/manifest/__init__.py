"""The manifest of an artifact, a noun a file; everything is imported from here."""

from probes.manifest.aggregation import Aggregation, AggregationKind
from probes.manifest.binding import Admission, FeatureContract, ModelBinding, ServingConfig, TokenSpan
from probes.manifest.fields import Digest, Finite, Name, Share, Text
from probes.manifest.findings import OF_VALIDATION, GateResult, InterventionResult, Quality, Validation
from probes.manifest.firing import KNOTS, Calibration, LengthBucket, Threshold
from probes.manifest.manifest import SCHEMA, ControlRange, Kind, Manifest, TrainingData

__all__ = [
    "KNOTS",
    "OF_VALIDATION",
    "SCHEMA",
    "Admission",
    "Aggregation",
    "AggregationKind",
    "Calibration",
    "ControlRange",
    "Digest",
    "FeatureContract",
    "Finite",
    "GateResult",
    "InterventionResult",
    "Kind",
    "LengthBucket",
    "Manifest",
    "ModelBinding",
    "Name",
    "Quality",
    "ServingConfig",
    "Share",
    "Text",
    "Threshold",
    "TokenSpan",
    "TrainingData",
    "Validation",
]
