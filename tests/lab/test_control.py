"""A control of one's own model from one's own texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.cli import main
from probes.registry import load_folder
from tests.tap.models import save_tiny

TEXTS = ["The river was high that spring.", "Send me the invoice, please.", "What a lovely day!", "2 + 2 = 4"] * 3


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("probes.build_control.ANSWER_TOKENS", 4)
    return save_tiny(tmp_path)


def command(model: Path, tmp_path: Path, layers: str) -> list[str]:
    data = tmp_path / "mine.csv"
    data.write_text("text\n" + "".join(f'"{text} {i}"\n' for i, text in enumerate(TEXTS)))
    into = str(tmp_path / "artifacts")
    return ["control", "--model", str(model), "--data", str(data), "--layers", layers, "--into", into]


def test_each_layer_gets_a_control_that_the_sidecar_loads(model, tmp_path, capsys):
    assert main(command(model, tmp_path, "0,2")) == 0
    made = {one.manifest.name: one.manifest for one in load_folder(tmp_path / "artifacts", limit=9)}
    assert set(made) == {"control_00", "control_02"}
    assert "at block 1" in made["control_00"].description  # and none below the first
    assert made["control_02"].control_range is not None
    assert not (tmp_path / "cache" / "stethoscope" / "states").exists()
    assert "control_02" in capsys.readouterr().out


@pytest.mark.parametrize(("layers", "said"), [("99", "the model has blocks 0 to"), ("last", "want numbers")])
def test_a_layer_that_is_not_there_is_named(model, tmp_path, capsys, layers, said):
    assert main(command(model, tmp_path, layers)) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()
