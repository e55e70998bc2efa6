"""The command line: quick to answer, honest in its exit status, never fooled by an artifact's texts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from probes.artifact import MANIFEST
from probes.cli import main
from probes.zoo_build import artifact_names
from tests.probes.builders import write_artifact


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom probes.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n"
        "    heavy = {'torch', 'numpy', 'sklearn', 'pydantic', 'rich', 'transformers'} & set(sys.modules)\n"
        "    sys.exit(end.code or len(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "inspect" in result.stdout


def test_inspect_shows_what_where_how_good_and_on_what_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    write_artifact(tmp_path, "alpha")
    write_artifact(tmp_path, "bravo", evidence="unverified")
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("alpha", "bravo", "blocks.3.resid_post", "AUROC 0.900 [0.850, 0.950]", "decodable", "unverified"):
        assert words in shown


def test_inspect_takes_one_artifact_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_artifact(tmp_path, "alpha")
    assert main(["inspect", str(tmp_path / "alpha")]) == 0
    assert "alpha" in capsys.readouterr().out


def test_markup_in_a_manifest_is_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_artifact(tmp_path, "alpha", description="[link=https://example.org]click[/link] [/nonsense]")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "[link=https://example.org]click[/link]" in capsys.readouterr().out.replace("\n", "")


def test_inspecting_a_bad_artifact_fails_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_artifact(tmp_path, "alpha")
    (tmp_path / "alpha" / MANIFEST).write_text("{}")
    assert main(["inspect", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("probes: bad_manifest: alpha:")
    assert captured.out == ""


def test_an_unknown_recipe_is_refused_with_the_names_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "build", "sentimental"]) == 2
    told = capsys.readouterr().err
    assert "sentimental" in told
    assert all(name in told for name in artifact_names())


@pytest.mark.parametrize("argv", [[], ["zoo"], ["inspect"]])
def test_an_incomplete_command_is_a_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err
