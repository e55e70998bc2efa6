"""Every claim about the client holds for both ways: inline by gRPC, and by the shared ring."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["grpc", "ring"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)
