"""docs/engines/README.md, made from the tests: ``python -m tests.engines.compatibility > docs/engines/README.md``.

A test that shows something of an engine says so by a mark, as often as it has something to say:

    @pytest.mark.shows("vLLM V1", "prefix cache")
    @pytest.mark.shows("vLLM V2", "prefix cache", how="contract")
    @pytest.mark.shows("vLLM V1", "pipeline parallelism", note="one sidecar a stage")  # what the table must not leave out

A test that nothing runs by itself, for want of a machine, shows what it shows ``how="once"``, and its module says when that was:

    RAN_ONCE = "NVIDIA H100 80GB, 2026-11-23, 21ff066"  # machine, date, commit

The marks are read from the source. Nothing is imported, so that no engine has to be there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "engines" / "README.md"
ENGINES = ("vLLM V1", "vLLM V2", "transformers", "SGLang")
FEATURES = (
    "continuous batching",
    "chunked prefill",
    "prefix cache",
    "preemption",
    "aborts",
    "n-gram speculation",
    "LoRA",
    "encoder and decoder",
    "images in the prompt",
    "timesteps",
    "tensor parallelism",
    "pipeline parallelism",
    "data parallelism",
    "torch.compile",
    "CUDA graphs",
    "heads and MLPs",
    "projected mode",
    "traces",
    "sampling per request",
    "collecting for the lab",
    "canaries",
    "blind",
    "unknown version",
)
HOWS = ("run", "once", "contract", "unseen")  # the stronger first
_INTRO = """\
# Engines

<!-- Made by `python -m tests.engines.compatibility`; a test compares. Mark the test that shows something instead. -->

{pages}

What was shown for each engine, by tests of this repository:

- **run**: in the real engine, on a model of a real architecture, small and mostly of random weights; what the tap sent was held
  against a reference.
- **run once**: as that, by hand, on a machine that the tests do not find where they run by themselves ({once}). What has
  changed since was not run there.
- **contract**: through the engine's own classes or source, where a stub stands for what cannot run without its hardware.
- **unseen**: its rows are left out on purpose, and in a real engine they were counted and said to be. *Partly*: some are.
- **not run**: nobody has shown it. It may work.

Any other engine speaks [the wire contract](other.md). A client in Node and `buf curl` run against a real sidecar in
`tests/engines/test_other_clients.py`, and files of states in `tests/service/test_ingest_file.py`.
"""


@dataclass(frozen=True, slots=True, order=True)
class Shown:
    """One mark: what a test shows."""

    feature: str
    engine: str
    how: str
    test: str  # as pytest names it
    when: str = ""  # of what was run once: machine, date, commit
    note: str = ""  # what stands beside it in the table


class WrongMarkError(ValueError):
    """A mark that has no place in the table; the text says where and why."""


def marks(folder: Path) -> Iterator[Shown]:
    """The marks of every test below a folder. Raises WrongMarkError."""
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        when = _when(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                name = f"{path.relative_to(ROOT)}::{node.name}"
                calls = (one for one in node.decorator_list if isinstance(one, ast.Call))
                yield from (_shown(one, name, when) for one in calls if ast.unparse(one.func) == "pytest.mark.shows")


def _when(module: ast.Module) -> str:
    """Its ``RAN_ONCE``, if it has one."""
    assigned = (one for one in module.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "RAN_ONCE")
    return next((ast.unparse(one.value).strip("'") for one in assigned), "")


def _shown(call: ast.Call, test: str, when: str) -> Shown:
    try:
        engine, feature = (ast.literal_eval(one) for one in call.args)
        named = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    except ValueError as error:
        raise WrongMarkError(f"{test}: {ast.unparse(call)}: {error}") from None
    how, note = named.pop("how", HOWS[0]), named.pop("note", "")
    if named:
        raise WrongMarkError(f"{test}: {ast.unparse(call)}: nobody reads {', '.join(map(str, named))}")
    for value, known in ((engine, ENGINES), (feature, FEATURES), (how, HOWS)):
        if value not in known:
            raise WrongMarkError(f"{test}: {value!r} is none of {', '.join(known)}")
    if how == "once" and len(when.split(", ")) != 3:
        raise WrongMarkError(f"{test}: its module wants RAN_ONCE = 'machine, date, commit'")
    return Shown(feature, engine, how, test, when if how == "once" else "", note)


def markdown(shown: Iterable[Shown]) -> str:
    """The page. Marks may come in any order."""
    found = sorted(set(shown), key=_place)
    once = "; ".join(sorted({one.when for one in found if one.when})) or "none so far"
    intro = _INTRO.format(pages="\n".join(_pages()), once=once)
    lines = [intro, *_table(found), "", "## Which test shows what", ""]
    for feature in FEATURES:
        tests = [f"  - {one.engine}, {_told(one)}: `{one.test}`" for one in found if one.feature == feature]
        lines += [f"- {feature}", *tests] if tests else []
    return "\n".join([*lines, ""])


def _table(found: list[Shown]) -> list[str]:
    rows = [
        f"| {feature} | {' | '.join(_cell(found, feature, engine) for engine in ENGINES)} |" for feature in FEATURES
    ]
    return [f"| | {' | '.join(ENGINES)} |", f"|---|{'---|' * len(ENGINES)}", *rows]


def _cell(found: list[Shown], feature: str, engine: str) -> str:
    here = [one for one in found if (one.feature, one.engine) == (feature, engine)]
    hows = {one.how for one in here}
    best = next((how for how in HOWS if how in hows), "not run")
    notes = {one.note for one in here if one.how == best}
    words = ["run once" if best == "once" else best, *(() if "" in notes else sorted(notes))]
    return ", ".join([*words, "partly unseen"] if "unseen" in hows - {best} else words)


def _place(one: Shown) -> tuple[int, int, str, int]:
    return FEATURES.index(one.feature), ENGINES.index(one.engine), one.test, HOWS.index(one.how)


def _told(one: Shown) -> str:
    return f"run once ({one.when})" if one.when else one.how


def _pages() -> Iterator[str]:
    """A link to each engine's page, under its own heading."""
    for path in sorted(PAGE.parent.glob("*.md")):
        if path != PAGE:
            title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            yield f"- [{title}]({path.name})"


if __name__ == "__main__":
    print(markdown(marks(ROOT / "tests")), end="")
