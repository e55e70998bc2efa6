"""A ring of shared memory between one producer and one consumer."""

from sidecar.ring.consumer import Consumer, Taken
from sidecar.ring.memory import (
    ALIGN,
    MOST_SLOTS,
    ORDERED,
    PAGE,
    SLOT_WORDS,
    Descriptors,
    Kind,
    Ring,
    RingBrokenError,
    Shape,
    aligned,
)
from sidecar.ring.producer import Producer

__all__ = [
    "ALIGN",
    "MOST_SLOTS",
    "ORDERED",
    "PAGE",
    "SLOT_WORDS",
    "Consumer",
    "Descriptors",
    "Kind",
    "Producer",
    "Ring",
    "RingBrokenError",
    "Shape",
    "Taken",
    "aligned",
]
