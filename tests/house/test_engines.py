"""The page of what was shown in which engine says what the tests' marks say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import compatibility
from tests.engines.compatibility import ENGINES, PAGE, ROOT, Shown, WrongMarkError, markdown, marks


def test_the_committed_page_is_that_of_the_marks() -> None:
    current = PAGE.read_text(encoding="utf-8")
    assert current == markdown(marks(ROOT / "tests")), "run: make docs"


def _marked(folder: Path, monkeypatch: pytest.MonkeyPatch, *decorators: str) -> list[Shown]:
    monkeypatch.setattr(compatibility, "ROOT", folder)
    (folder / "test_it.py").write_text("\n".join((*decorators, "def test_one(): ...", "def test_two(): ...", "")))
    return list(marks(folder))


def test_a_mark_is_a_row_of_its_test_and_the_strongest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract, run = (f'@pytest.mark.shows("SGLang", "traces"{how})' for how in (', how="contract"', ""))
    assert _marked(tmp_path, monkeypatch, contract) == [Shown("traces", "SGLang", "contract", "test_it.py::test_one")]
    for decorators, cell in (((), "not run"), ((contract,), "contract"), ((contract, run), "run")):
        page = markdown(_marked(tmp_path, monkeypatch, *decorators)).splitlines()
        assert f"| traces | not run | not run | not run | {cell} |" in page
        assert f"| aborts |{' not run |' * len(ENGINES)}" in page


def test_what_was_run_once_says_where_and_when_and_is_less_than_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, unseen, run = (
        f'@pytest.mark.shows("SGLang", "traces"{how})' for how in (', how="once"', ', how="unseen"', "")
    )
    when = "RAN_ONCE = 'a machine, 2026-01-01, abcdef0'"
    for decorators, cell in (
        ((once,), "run once"),
        ((once, unseen), "run once, partly unseen"),
        ((unseen,), "unseen"),
        ((once, run), "run"),
    ):
        page = markdown(_marked(tmp_path, monkeypatch, when, *decorators))
        assert f"| traces | not run | not run | not run | {cell} |" in page
        assert (page.count("a machine, 2026-01-01, abcdef0") == 2) is (
            once in decorators
        )  # in the legend, and by the test
    for wrong in ("", "RAN_ONCE = 'lately'"):
        with pytest.raises(WrongMarkError, match="machine, date, commit"):
            _marked(tmp_path, monkeypatch, wrong, once)


def test_a_note_stands_in_the_table_unless_another_test_shows_as_much_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, plain = (f'@pytest.mark.shows("SGLang", "traces"{note})' for note in (', note="in part"', ""))
    for decorators, cell in (((noted,), "run, in part"), ((noted, plain), "run")):
        page = markdown(_marked(tmp_path, monkeypatch, *decorators)).splitlines()
        assert f"| traces | not run | not run | not run | {cell} |" in page


@pytest.mark.parametrize(
    "wrong",
    [
        '"SGLANG", "traces"',
        '"SGLang", "traces", way="run"',
        '"SGLang", "magic"',
        '"SGLang", "traces", how="seen"',
        'ENGINE, "traces"',
    ],
)
def test_a_mark_that_has_no_place_in_the_table_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    with pytest.raises(WrongMarkError, match=r"^test_it\.py::test_one: "):
        _marked(tmp_path, monkeypatch, f"@pytest.mark.shows({wrong})")


def _chosen(full: str) -> str:
    files = [f"tests/engines/test_vllm_{name}.py" for name in ("gpu", "server")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "engines and not gpu", *files]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "FULL": full}, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()[-1]


def test_long_forms_and_those_for_a_gpu_are_not_chosen_and_so_not_among_the_skipped() -> None:
    assert _chosen("").startswith("no tests collected (")
    assert _chosen("1").startswith("4/")
