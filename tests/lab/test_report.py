"""The report: one page that a person can decide from, and that asks nothing of anybody."""

from __future__ import annotations

import html
import html.parser
import json
import re
from pathlib import Path

import pytest

from probes.activations.store import ActivationStore
from probes.cli import main
from probes.errors import LabError
from probes.reporting.decision import Decision, Ship, decide
from probes.reporting.html import prose
from probes.reporting.record import read_record
from probes.reporting.report import HTML, JSON, write_report
from probes.stages import Gate
from tests.lab.drafts import FAILED, NOT_USED, PASSED, calibration, evaluation, limit, make_draft, trained, validation
from tests.lab.planted import planted_store

HOSTILE = '<script>alert("1")</script> & "quotes" <img src=x onerror=alert(2)>'


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("report") / "acts", n=40)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, store: ActivationStore) -> Path:
    """A draft with every stage and its report. Not to be changed."""
    folder = tmp_path_factory.mktemp("full") / "draft"
    make_draft(folder, store)
    write_report(folder)
    return folder


def decided(folder: Path) -> Decision:
    return decide(read_record(folder))


def page(folder: Path) -> str:
    return (folder / HTML).read_text(encoding="utf-8")


def words(text: str) -> str:
    """What a reader sees, pictures and styles left out."""
    text = re.sub(r"<(style|svg)\b.*?</\1>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


class Checker(html.parser.HTMLParser):
    """Every element is closed in order, no id stands twice, and nothing points out of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.elements: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"href", "xlink:href", "src", "srcset", "action", "data", "poster"} or name.startswith("on"):
                self.links.append(value)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def test_a_probe_that_passed_everything_may_page(full):
    assert decided(full).ship is Ship.PAGE
    assert "Page on it." in words(page(full))


DOUBTS = {
    "not validated": {"stages": "ce"},
    "not shown to be used": {"validated": {"gates": NOT_USED}},
    "threshold gate": {
        "evaluated": {
            "gates": (*PASSED[:2], Gate(name="threshold", passed=False, text="It promises nothing: 31 negatives."))
        }
    },
}


@pytest.mark.parametrize("changes", DOUBTS.values(), ids=DOUBTS.keys())
def test_a_good_probe_with_one_doubt_is_shown_and_does_not_page(tmp_path, store, changes):
    make_draft(tmp_path, store, **changes)
    decision = decided(tmp_path)
    assert (decision.ship, len(decision.reasons)) == (Ship.SHOW, 1)


def test_an_uncertified_threshold_of_any_length_keeps_it_from_paging(tmp_path, store):
    draft = make_draft(tmp_path, store, stages="")
    draft.write(calibration(thresholds=(limit(0, 0.8), limit(64, 0.9, certified=False))))
    draft.write(evaluation())
    draft.write(validation())
    decision = decided(tmp_path)
    assert decision.ship is Ship.SHOW
    assert "not certified" in decision.reasons[0]


def test_a_failed_gate_is_the_first_thing_said_and_the_probe_is_not_to_be_shipped(tmp_path, store):
    make_draft(tmp_path, store, stages="ce", evaluated={"gates": (*PASSED, FAILED)})
    decision = write_report(tmp_path)
    assert (decision.ship, decision.reasons) == (Ship.NOT, (FAILED.text,))
    seen = words(page(tmp_path))
    gates = seen[seen.index("Gates") :]
    assert gates.index(FAILED.text) < min(gates.index(gate.text) for gate in PASSED)
    assert seen.index(FAILED.text) < seen.index("Gates")


def test_stages_that_were_not_done_are_named(tmp_path, store):
    make_draft(tmp_path, store, stages="")
    assert write_report(tmp_path).ship is Ship.NOT
    seen = words(page(tmp_path))
    for stage in ("calibration", "evaluation", "validation"):
        assert f"No {stage} was done" in seen


def test_a_stage_from_before_the_last_training_no_longer_counts_and_says_so(tmp_path, store):
    draft = make_draft(tmp_path, store)
    draft.write(trained(store, seed=1))
    write_report(tmp_path)
    told = json.loads((tmp_path / JSON).read_text())
    assert [told[name] for name in ("calibration", "evaluation", "validation")] == [None] * 3
    assert all("no longer counts" in text for text in told["not_done"])
    assert told["evidence"] == "unverified"


def test_the_page_asks_for_nothing_from_outside(full):
    text = page(full)
    found = checked(text)
    assert all(link.startswith("#") for link in found.links)
    assert not {"script", "link", "iframe", "img", "object"} & found.elements
    assert "://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in html.unescape(text)


def test_pictures_keep_their_parts_apart(full):
    text = page(full)
    found = checked(text)
    assert text.count("<svg") == 7
    assert len(found.ids) == len(set(found.ids)) > 50
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert targets
    assert {one or other for one, other in targets} <= set(found.ids)


def test_texts_from_outside_are_shown_and_never_obeyed(tmp_path, store):
    gate = Gate(name=HOSTILE, passed=False, text=HOSTILE)
    make_draft(
        tmp_path,
        store,
        name=HOSTILE,
        description=HOSTILE,
        positive_label=HOSTILE,
        evaluated={"gates": (gate,), "leak_words": (HOSTILE,), "outside": ((HOSTILE, 3, 0.5),)},
        validated={"behaviour": HOSTILE, "not_run": (HOSTILE,)},
    )
    write_report(tmp_path)
    found = checked(page(tmp_path))
    assert not {"script", "img"} & found.elements
    assert "<script" not in page(tmp_path)
    assert page(tmp_path).count("&lt;script&gt;alert(") > 5


def test_names_that_look_like_mathematics_are_drawn_as_text(tmp_path, store):
    rival = {"name": "$x_1$ \\frac", "auroc": 0.7, "gain": 0.2, "gain_interval": (0.1, 0.3)}
    make_draft(tmp_path, store, evaluated={"rivals": (rival,)})
    write_report(tmp_path)
    checked(page(tmp_path))


def test_the_json_says_what_the_page_says(full, store):
    decision = decided(full)
    told = json.loads((full / JSON).read_text())
    assert told["decision"] == {"ship": "page", "headline": decision.headline, "reasons": list(decision.reasons)}
    assert told["evaluation"]["auroc"] == 0.926
    assert told["training"]["texts"]["test"] == 8
    assert told["activations"]["data_licence"] == store.facts.data_licence
    seen = words(page(full))
    for text in ("0.926", "57%", "tfidf char", told["activations"]["data_digest"]):
        assert text in seen
    for limit_told in told["limits"]:
        assert words(str(prose(limit_told))) in seen


def test_the_same_stages_give_the_same_bytes(full, tmp_path):
    write_report(full, tmp_path)
    for name in (HTML, JSON):
        assert (tmp_path / name).read_bytes() == (full / name).read_bytes()


def test_a_store_that_is_gone_or_another_is_said_to_be(tmp_path, store):
    make_draft(tmp_path, store, stages="", store=str(tmp_path / "gone"))
    write_report(tmp_path)
    assert "no longer there" in words(page(tmp_path))
    make_draft(tmp_path, store, stages="", store_digest="0" * 64)
    write_report(tmp_path)
    assert json.loads((tmp_path / JSON).read_text())["activations"] is None


def test_the_command_prints_the_decision_and_where_the_page_is(tmp_path, store, capsys):
    make_draft(tmp_path / "draft", store, stages="ce")
    assert main(["report", str(tmp_path / "draft"), "--into", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "Show it, do not page." in shown
    assert str(tmp_path / "out" / HTML) in shown
    assert (tmp_path / "out" / JSON).exists()


def test_a_folder_without_a_training_is_refused(tmp_path, capsys):
    with pytest.raises(LabError, match="probes train"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path)]) == 1
    assert "probes train" in capsys.readouterr().err
