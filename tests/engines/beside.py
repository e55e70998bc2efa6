"""A real vLLM and a real sidecar beside it, as a user runs them: two processes and an address that both know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tests.engines.environment import Environment
from tests.engines.vllm_server import VllmServer
from tests.faults.process import Process
from tests.service.client import Client
from tests.service_fixtures import private_folder

EVERYTHING = ("--set", "sampling.request_fraction=1.0")


@dataclass(frozen=True, slots=True)
class Beside:
    """client: of the sidecar, for what it shows."""

    server: VllmServer
    client: Client


@contextmanager
def beside(
    vllm: Environment,
    model: Path,
    artifacts: Path,
    *flags: str,
    eager: bool,
    engine_env: Mapping[str, str] = MappingProxyType({}),
    sidecar_env: Mapping[str, str] = MappingProxyType({}),
    sidecar_flags: tuple[str, ...] = (),
) -> Iterator[Beside]:
    """vLLM with these flags, tapped where the sidecar asks for unless ``engine_env`` says otherwise; every request is captured."""
    with private_folder() as home, Process(home, artifacts, *EVERYTHING, *sidecar_flags, env=sidecar_env) as sidecar:
        env = {
            "STETHOSCOPE_TAP": "on",
            "STETHOSCOPE_ADDRESS": sidecar.address,
            "STETHOSCOPE_QUEUE_S": "60",
            **engine_env,
        }
        sidecar.event("started")
        work = home / "vllm"
        work.mkdir()
        with VllmServer(vllm, model, work, *flags, env=env, eager=eager) as server, Client(sidecar) as client:
            yield Beside(server, client)
