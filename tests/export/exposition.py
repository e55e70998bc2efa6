"""The messages of the protobuf format, for the protobuf library itself to read: fields as Prometheus declares them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "io.prometheus.client"
# name, number, type; a capital begins a message of this package, a star is a repeated field
_MESSAGES = {
    "LabelPair": "name 1 string, value 2 string",
    "Timestamp": "seconds 1 int64, nanos 2 int32",
    "Exemplar": "label 1 *LabelPair, value 2 double, timestamp 3 Timestamp",
    "Gauge": "value 1 double",
    "Counter": "value 1 double, exemplar 2 Exemplar",
    "Bucket": "cumulative_count 1 uint64, upper_bound 2 double, exemplar 3 Exemplar",
    "BucketSpan": "offset 1 sint32, length 2 uint32",
    "Histogram": "sample_count 1 uint64, sample_sum 2 double, bucket 3 *Bucket, schema 5 sint32, zero_threshold 6 double, "
    "zero_count 7 uint64, positive_span 12 *BucketSpan, positive_delta 13 *sint64",
    "Metric": "label 1 *LabelPair, gauge 2 Gauge, counter 3 Counter, histogram 7 Histogram",
    "MetricFamily": "name 1 string, help 2 string, type 3 int32, metric 4 *Metric, unit 5 string",
}
COUNTER, GAUGE, HISTOGRAM = 0, 1, 4


def _field(declared: str) -> descriptor_pb2.FieldDescriptorProto:
    name, number, kind = declared.split()
    field = descriptor_pb2.FieldDescriptorProto(name=name, number=int(number))
    field.label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
    kind = kind.removeprefix("*")
    if kind[0].isupper():
        field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = field.Type.Value(f"TYPE_{kind.upper()}")
        if field.label == field.LABEL_REPEATED:
            field.options.packed = True
    return field


def _family_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="exposition.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        file.message_type.add(name=name, field=map(_field, fields.split(", ")))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.MetricFamily"))


_Family = _family_class()


def read(page: bytes) -> Iterator[Any]:
    """Every family of a delimited page; a field that is not declared above is an error."""
    place = 0
    while place < len(page):
        size = shift = 0
        while True:
            byte, place = page[place], place + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        family = _Family.FromString(page[place : place + size])
        assert family.ByteSize() == size
        known = _Family.FromString(page[place : place + size])
        known.DiscardUnknownFields()
        assert known == family, f"fields that nobody declared in {family.name}"
        place += size
        yield family
