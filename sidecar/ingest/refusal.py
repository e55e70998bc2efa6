"""How a call ends that is not answered: a status, a fixed text and, for bad input, the path of the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sidecar.errors import Rejected
from sidecar.pipeline import Result


@dataclass(frozen=True, slots=True)
class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """Ends a call with a status whose text is fixed."""

    code: int
    text: str
    field: str = ""

    def status(self) -> Any:
        """The status as gRPC sends it, with a google.rpc.BadRequest if there is a field to name."""
        made = status_pb2.Status(code=self.code, message=self.text)
        if self.field:
            bad = error_details_pb2.BadRequest(
                field_violations=[error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.text)]
            )
            packed = any_pb2.Any()
            packed.Pack(bad)
            made.details.append(packed)
        return rpc_status.to_status(made)


def invalid(rejected: Rejected | Result) -> Refusal:
    reason = "rejected" if rejected.reason is None else rejected.reason.value
    return Refusal(code_pb2.INVALID_ARGUMENT, reason, rejected.field)
