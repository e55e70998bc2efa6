"""How a call ends that is not answered: a status, a fixed text and, for bad input, the path of the field."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from sidecar.errors import Rejected
from sidecar.outcome import Result


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """Ends a call with a status whose text is fixed."""

    def __init__(self, code: int, text: str, field: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.field = field

    def status(self) -> status_pb2.Status:
        """The status as it goes on the wire, with a google.rpc.BadRequest if there is a field to name."""
        made = status_pb2.Status(code=self.code, message=self.text)
        if self.field:
            bad = error_details_pb2.BadRequest(
                field_violations=[error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.text)]
            )
            packed = any_pb2.Any()
            packed.Pack(bad)
            made.details.append(packed)
        return made


def invalid(rejected: Rejected | Result) -> Refusal:
    reason = "rejected" if rejected.reason is None else rejected.reason.value
    return Refusal(code_pb2.INVALID_ARGUMENT, reason, rejected.field)
