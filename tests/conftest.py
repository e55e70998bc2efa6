from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("busy", deadline=None)  # a busy machine is slow now and then, which is no fault of the code
settings.load_profile("busy")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the converted model; made on first use, which takes about a minute."""
    from probes.smollm2 import prepared_model

    return prepared_model(progress=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where every part is there to be tested, a skipped test is a failure: nothing passes by not running. Only a GPU may lack."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter is not None else []
    skipped = [one for one in reports if "gpu" not in one.keywords]
    if skipped and os.environ.get("STETHOSCOPE_SKIPS") == "fail" and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"{len(skipped)} skipped, and STETHOSCOPE_SKIPS=fail", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
