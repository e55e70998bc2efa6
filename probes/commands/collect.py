"""``probes collect``: a model's activations on labelled text, onto the disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.commands.bars import bars
from probes.errors import LabError

if TYPE_CHECKING:
    from probes.activations.collect import Collected, Options
    from probes.activations.engine import Engine
    from probes.data.reading import Loaded, Sources

_EPILOG = """Labels are bool, 0/1, -1/1, or two words (say which is positive with --positive). Texts that repeat another, and
texts under both labels, are left out. A command that was cut off goes on where it was when it is given again."""


_ENGINE = """The model's folder gives tokens alone; the weights are the engine's, which must be tapped where --layers and --sites
say: STETHOSCOPE_TAP=8,14 STETHOSCOPE_ADDRESS=ADDRESS vllm serve MODEL."""


def add(commands: Any) -> None:
    collect = commands.add_parser(
        "collect", help="read labelled texts with a model and keep its activations", epilog=_EPILOG
    )
    _add_data(collect.add_argument_group("texts"))
    _add_model(collect.add_argument_group("model"))
    _add_states(collect.add_argument_group("activations"))
    _add_engine(collect.add_argument_group("states of a serving engine, instead of the model's own here", _ENGINE))
    collect.set_defaults(run=_collect)


def _add_data(group: Any) -> None:
    group.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="FILE",
        help="CSV (also .csv.zst), TSV, JSON lines or Parquet, or sae:NAME for a set of sae-probes; may be given again",
    )
    group.add_argument(
        "--outside", action="append", default=[], metavar="FILE", help="a set for evaluation alone; may be given again"
    )
    group.add_argument("--text", default="", metavar="COLUMN", help="default: text, prompt or sentence")
    group.add_argument("--label", default="", metavar="COLUMN", help="default: label, target or y")
    group.add_argument("--group", default="", metavar="COLUMN", help="rows of one group stay together; default: group")
    group.add_argument("--dataset", default="", metavar="COLUMN", help="default: dataset, else the file's name")
    group.add_argument("--pair", default="", metavar="COLUMN", help="id of a minimal pair; default: pair")
    group.add_argument("--positive", metavar="NAME", help="the label that counts as positive")
    group.add_argument(
        "--negative-only", action="store_true", help="read no labels: every row is benign (to set a threshold on)"
    )
    group.add_argument("--limit", type=int, default=0, metavar="N", help="at most N texts of each file, half a label")
    group.add_argument("--licence", default="not stated", help="of the texts; it goes into the artifact")


def _add_model(group: Any) -> None:
    group.add_argument("--model", type=Path, required=True, help="a local transformers folder or a .gguf file")
    group.add_argument("--model-dtype", choices=["float32", "bfloat16", "float16"], help="default: float32")
    chat = group.add_mutually_exclusive_group()
    chat.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="feed each text as a user's message (default if there is a template)",
    )
    chat.add_argument("--plain", dest="chat", action="store_false", default=None, help="feed the text alone")
    group.add_argument("--max-tokens", type=int, metavar="N", help="default: what the model reads")
    group.add_argument("--truncate", action="store_true", help="cut longer texts; else the first one ends the command")
    group.add_argument("--processes", type=int, metavar="N", help="default: one for each core")


def _add_states(group: Any) -> None:
    into = group.add_mutually_exclusive_group(required=True)
    into.add_argument("--into", type=Path, metavar="ACTS", help="the folder to write to, or to go on in")
    into.add_argument(
        "--prompts", type=Path, metavar="FILE", help="write what `sidecar record --ask` takes, and collect nothing"
    )
    group.add_argument(
        "--layers", default="", help='such as "8,14", "4-10" or "all"; default: 0 and five of the middle half'
    )
    group.add_argument("--sites", default="resid_post", help="of resid_post, attn_out, mlp_out; default: resid_post")
    group.add_argument(
        "--skip-positions", type=int, default=1, metavar="N", help="first positions that are not kept; default: 1"
    )
    group.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="of the numbers on disk; default: float32",
    )


def _add_engine(group: Any) -> None:
    group.add_argument(
        "--engine",
        metavar="URL",
        help="its server, such as http://127.0.0.1:8000: every text is asked there, and recorded",
    )
    group.add_argument(
        "--listen", metavar="ADDRESS", help="its tap's STETHOSCOPE_ADDRESS, where no sidecar may be meanwhile"
    )
    group.add_argument(
        "--recorded",
        type=Path,
        metavar="FOLDER",
        help="recordings to keep; without --engine: those of `sidecar record`, to be read",
    )


def _collect(arguments: argparse.Namespace) -> int:
    from probes.activations.collect import collect
    from probes.activations.engine import collect_recorded, prompts_of
    from probes.data.reading import load_texts

    engine, options = _engine(arguments), _options(arguments)
    loaded = load_texts(_sources(arguments))
    print(_read(loaded))  # noqa: T201 - this is the command's output
    with bars() as shown:
        if arguments.prompts is not None:
            count = prompts_of(arguments.model, loaded, options, arguments.prompts, shown)
            print(f"{arguments.prompts}: {count:,} prompts")  # noqa: T201
            return 0
        if engine is not None:
            collected = collect_recorded(arguments.model, loaded, arguments.into, options, engine, shown)
        else:
            collected = collect(arguments.model, loaded, arguments.into, options, shown)
    print(_kept(collected))  # noqa: T201
    return 0


def _sources(arguments: argparse.Namespace) -> Sources:
    from probes.data.columns import Columns
    from probes.data.reading import Sources

    return Sources(
        data=tuple(arguments.data),
        outside=tuple(arguments.outside),
        columns=Columns(arguments.text, arguments.label, arguments.group, arguments.dataset, arguments.pair),
        positive=arguments.positive,
        negative_only=arguments.negative_only,
        limit=arguments.limit,
    )


def _options(arguments: argparse.Namespace) -> Options:
    from probes.activations.collect import Options
    from probes.activations.feeding import Feeding

    if not 0 <= arguments.skip_positions <= 64:
        raise LabError(f"--skip-positions {arguments.skip_positions}: from 0 to 64")
    return Options(
        layers=arguments.layers,
        sites=_sites(arguments.sites),
        feeding=Feeding(arguments.chat, arguments.max_tokens, arguments.truncate),
        skip_positions=arguments.skip_positions,
        dtype=arguments.dtype,
        model_dtype=arguments.model_dtype or "float32",
        processes=arguments.processes,
        licence=arguments.licence,
    )


def _engine(arguments: argparse.Namespace) -> Engine | None:
    """None if the model is run here."""
    from probes.activations.engine import Engine

    if arguments.engine is None and arguments.recorded is None:
        if arguments.listen is not None:
            raise LabError("--listen: only with --engine")
        return None
    if arguments.model_dtype is not None or arguments.processes is not None:
        raise LabError("--model-dtype and --processes are about a model that is run here: the engine has its own")
    if arguments.engine is not None and not arguments.engine.startswith(("http://", "https://")):
        raise LabError(f"--engine {arguments.engine}: want a URL such as http://127.0.0.1:8000")
    return Engine(arguments.engine or "", arguments.listen or "", arguments.recorded)


def _sites(text: str) -> tuple[Any, ...]:
    from probes.activations.sites import SITES

    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in SITES]:
        raise LabError(f"--sites {unknown[0]!r}: there are resid_post, attn_out and mlp_out")
    return tuple(dict.fromkeys(SITES[name] for name in names))


def _read(loaded: Loaded) -> str:
    positives = sum(text.label for text in loaded.texts)
    sets = len({text.dataset for text in loaded.texts})
    told = loaded.told
    left_out = [
        f"{count:,} {why}"
        for count, why in (
            (told.duplicates, "that repeat another"),
            (told.both_labels, "under both labels"),
            (told.beyond_limit, "beyond the limit"),
        )
        if count
    ]
    lost = f"; {told.lost_pairs} lost the other text of their pair" if told.lost_pairs else ""
    return (
        f"{len(loaded.texts):,} texts of {sets} data {'set' if sets == 1 else 'sets'}: {positives:,} {loaded.positive_label!r} "
        f"(positive), {len(loaded.texts) - positives:,} {loaded.negative_label!r}; "
        f"left out of {told.rows:,} rows: {', '.join(left_out) or 'none'}{lost}{_together(loaded)}"
    )


def _together(loaded: Loaded) -> str:
    """Told before anything is computed: a thousand texts from one template are few independent ones."""
    from probes.data.alike import TOGETHER

    left = len({text.group or text.key for text in loaded.texts})
    return f"; {left:,} are independent ({TOGETHER})" if left < len(loaded.texts) else ""


def _kept(collected: Collected) -> str:
    store, spent = collected.store, collected.spent
    cut = f"; {store.facts.truncated} cut at {store.facts.max_tokens:,} tokens" if store.facts.truncated else ""
    form = "as a chat user's message" if store.facts.chat else "as plain text"
    kept = (
        f"{store.folder}: {len(store):,} texts, {int(store.lengths.sum()):,} rows at each of {', '.join(store.facts.tap_points)}, "
        f"fed {form}{cut}"
    )
    if not spent.tokens:
        return f"{kept}; nothing was left to do"
    took = f"{kept}; {spent.tokens:,} tokens in {spent.seconds:.0f} s"
    if not spent.processes:
        return f"{took} of {store.facts.model.engine}"
    by = f"{spent.processes} {'process' if spent.processes == 1 else 'processes'}"
    return f"{took}: {spent.tokens_a_second:,.0f} tokens/s by {by}"
