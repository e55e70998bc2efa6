"""The command ``sidecar``: serve, check, status, ingest, record, sketch, replay, canary, demo, config. Heavy imports are late."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar import canary_commands, replay_command, sketch_commands

if TYPE_CHECKING:
    from probes.registry import Loaded
    from sidecar.config import Config

EX_CONFIG = 78  # sysexits.h: the configuration is wrong
EX_UNAVAILABLE = 69  # no sidecar answers
EX_DATA = 65  # a file is not what it should be, or is not taken; a request has gaps
EX_INTERRUPTED = 130  # by Ctrl-C

_RECORD = """Stand where an engine's tap connects, in place of the sidecar, and write the states of every request to a file of its
own, in the layout that sidecar ingest reads. With --ask the prompts are sent from here, and what is there already is not asked
again; else whatever others ask is recorded, until Ctrl-C."""

_FLAGS = {  # flag -> setting, help
    "--address": ("listen.address", "where taps connect: unix:/PATH, or HOST:PORT on loopback"),
    "--artifacts": ("artifacts.folder", "folder with one sub-folder per artifact"),
    "--metrics-port": ("metrics.port", "port of /metrics on 127.0.0.1; 0 lets the system choose"),
    "--log-level": ("log.level", "DEBUG, INFO, WARNING or ERROR"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidecar", description="Listen to a language model while it works: live probes as metrics and traces."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="receive hidden states and export signals")
    check = commands.add_parser("check", help="check configuration and artifacts, serve nothing")
    for command in (serve, check):
        command.add_argument("--config", type=Path, metavar="FILE", help="YAML file")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, for example metrics.port=9500"
        )
        for flag, (setting, text) in _FLAGS.items():
            command.add_argument(flag, dest=setting, metavar="VALUE", help=text)
    serve.add_argument(
        "--traces",
        dest="traces.enabled",
        action="store_const",
        const=True,
        help="export spans by OTLP (OTEL_* variables)",
    )
    serve.set_defaults(run=_serve)
    check.set_defaults(run=_check)
    status = commands.add_parser("status", help="ask a running sidecar how it is")
    status.add_argument("--address", help="as given to serve; default: this user's own socket")
    status.add_argument("--json", action="store_true", help="machine-readable")
    status.set_defaults(run=_status)
    _add_ingest(commands.add_parser("ingest", help="send files of hidden states to a running sidecar"))
    _add_record(commands.add_parser("record", help="keep an engine's states in files", description=_RECORD))
    demo = commands.add_parser("demo", help="a real model, a real server, live signals")
    demo.add_argument("--seconds", type=float, metavar="N", help="end after so long; default: until Ctrl-C")
    demo.add_argument("--summary", type=Path, metavar="FILE", help="write a JSON summary at the end")
    demo.add_argument("--picture", type=Path, metavar="FILE", help="draw the last table as SVG")
    demo.add_argument("--port", type=int, default=8000, help="of the inference server, on 127.0.0.1")
    demo.add_argument("--metrics-port", type=int, default=9464, help="of /metrics, on 127.0.0.1")
    demo.add_argument("--block", metavar="SIGNAL", help="stop a generation when this signal is over its threshold")
    demo.add_argument(
        "--plant",
        choices=["ablation", "traffic"],
        help="after some minutes ablate a circuit in the server, or change what is asked, and end once the alarm is there",
    )
    demo.set_defaults(run=_demo)
    config = commands.add_parser("config", help="about the configuration")
    config.add_argument("what", choices=["schema", "defaults"], help="JSON schema, or every setting with its default")
    config.set_defaults(run=_config)
    sketch_commands.add(commands)
    replay_command.add(commands)
    canary_commands.add(commands)
    return parser


def _add_ingest(ingest: argparse.ArgumentParser) -> None:
    ingest.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="safetensors as vLLM's connector writes them"
    )
    ingest.add_argument(
        "--layers",
        required=True,
        metavar="N,N",
        help="which blocks of the model, from 0, the file's layers come after, in order",
    )
    ingest.add_argument("--address", help="as given to serve; default: this user's own socket")
    ingest.add_argument("--model", type=Path, metavar="FOLDER", help="whose states they are; default: the model served")
    ingest.add_argument("--request-id", metavar="ID", help="of the only file; default: the name of the file")
    ingest.add_argument("--engine-id", metavar="ID", help="default: file@ this host")
    ingest.set_defaults(run=_ingest)


def _add_record(record: argparse.ArgumentParser) -> None:
    record.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="to write to, or to go on in")
    record.add_argument(
        "--tap-points", required=True, metavar="N,N", help="blocks such as 8,14, or names such as blocks.9.mlp_out"
    )
    record.add_argument("--address", help="where the engine's tap connects; default: as sidecar serve listens")
    record.add_argument(
        "--ask", type=Path, metavar="FILE", help='prompts, each a line {"id": "a-name", "tokens": [1, 2]}'
    )
    record.add_argument("--server", metavar="URL", help="whom to ask: vLLM's server, such as http://127.0.0.1:8000")
    record.add_argument("--at-once", type=int, default=8, metavar="N", help="prompts asked together; default: 8")
    record.add_argument(
        "--tries", type=int, default=3, metavar="N", help="of a prompt that comes with gaps; default: 3"
    )
    record.add_argument("--wait-s", type=float, default=300.0, metavar="S", help="for the engine to come; default: 300")
    record.add_argument(
        "--held-mib", type=int, default=4096, metavar="N", help="memory for requests under way; default: 4096"
    )
    record.set_defaults(run=_record)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 well, 78 wrong configuration, 69 no sidecar there, 65 a file that is not taken, 1 different."""
    args = build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def _load(args: argparse.Namespace) -> Config | None:
    """None, with every problem on stderr, if the configuration cannot be used."""
    from sidecar.config import load_config
    from sidecar.errors import ConfigError
    from sidecar.sources import scalar

    flags: dict[str, Any] = {name: value for name, value in vars(args).items() if "." in name and value is not None}
    problems = []
    for pair in args.set:
        key, equals, value = pair.partition("=")
        if equals:
            flags[key] = scalar(value)
        else:
            problems.append(f"--set {pair}: want KEY=VALUE")
    try:
        return load_config(args.config, flags=flags, problems=problems)
    except ConfigError as error:
        _complain(error.problems)
        return None


def _complain(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"sidecar: {problem}", file=sys.stderr)


def _serve(args: argparse.Namespace) -> int:
    config = _load(args)
    if config is None:
        return EX_CONFIG
    # gRPC's core would write lines of its own form to stderr; what matters comes back to us as errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from sidecar.errors import ArtifactError, ConfigError
    from sidecar.run import run_until_signal

    try:
        return run_until_signal(config)
    except ConfigError as error:
        _complain(error.problems)
    except ArtifactError as error:
        _complain([f"artifacts: {error}"])
    return EX_CONFIG


def _check(args: argparse.Namespace) -> int:
    config = _load(args)
    if config is None:
        return EX_CONFIG
    from sidecar.errors import ArtifactError
    from sidecar.reload import load_artifacts

    try:
        found = load_artifacts(config)
    except ArtifactError as error:
        _complain([f"artifacts: {error}"])
        return EX_CONFIG
    for one in found:
        print(_in_one_line(one))
    print(f"configuration is sound; {len(found)} artifacts; taps connect to {config.listen.address}")
    return 0


def _in_one_line(one: Loaded) -> str:
    from probes.circuits.artifact import Circuit
    from probes.circuits.baseline import Baseline

    if isinstance(one, Baseline):
        told = one.manifest
        names = ", ".join(circuit.name for circuit in told.circuits)
        return f"baseline {one.digest[:12]}  {told.state.value}  of {names}  on model {told.model_hash[:12]}"
    about = one.manifest
    where = f"circuit of {len(one.manifest.nodes)} nodes" if isinstance(one, Circuit) else one.manifest.tap_point
    return f"{about.name} {about.version}  {where}  {about.evidence.value}  made on {about.model.name}"


def _status(args: argparse.Namespace) -> int:
    import grpc

    from protos.stethoscope.v1 import control_pb2
    from sidecar.address import GET_STATUS, default_address

    address = args.address or default_address()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(GET_STATUS, None, None)
        try:
            raw = call(control_pb2.GetStatusRequest().SerializeToString(), timeout=5.0)
        except grpc.RpcError as error:
            print(f"sidecar: no answer at {address}: {error.code().name}", file=sys.stderr)
            return EX_UNAVAILABLE
    now = control_pb2.GetStatusResponse.FromString(raw)
    if args.json:
        from google.protobuf.json_format import MessageToDict

        print(
            json.dumps(MessageToDict(now, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
        )
    else:
        from sidecar.words import in_words

        print("\n".join(in_words(now)))
    return 0


def _ingest(args: argparse.Namespace) -> int:
    from sidecar.ingest_file import FileEngine, IngestError, Layout, send_files
    from sidecar.states_file import StatesFileError
    from sidecar.tap.address import default_address, default_engine_id

    layers = args.layers.split(",")
    if not all(layer.isdecimal() for layer in layers) or (args.request_id and len(args.files) > 1):
        _complain(["ingest: want --layers like 8,14, and --request-id with one file only"])
        return EX_CONFIG
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    layout = Layout(tuple(map(int, layers)), args.model)
    try:
        with FileEngine(
            args.address or default_address(), args.engine_id or default_engine_id("file"), layout
        ) as engine:
            for line in send_files(engine, args.files, args.request_id or ""):
                print(line)
    except (StatesFileError, IngestError) as error:
        _complain([str(error)])
        return EX_DATA
    return 0


def _record(args: argparse.Namespace) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from sidecar.config import load_config
    from sidecar.errors import ConfigError
    from sidecar.record.asking import AskingError
    from sidecar.record.completions import NoServerError, RefusedError
    from sidecar.record.options import record_options
    from sidecar.record.prompts import PromptsError
    from sidecar.record.run import NoEngineError, record
    from sidecar.recorded import RecordedError

    try:
        options = record_options(args)
        config = load_config(None, flags={"listen.address": args.address} if args.address else {})
        whole = record(config, options, lambda line: print(line, flush=True))
    except ConfigError as error:
        _complain(error.problems)
        return EX_CONFIG
    except (RecordedError, PromptsError, AskingError, RefusedError) as error:
        _complain([str(error)])
        return EX_DATA
    except (NoServerError, NoEngineError) as error:
        _complain([str(error)])
        return EX_UNAVAILABLE
    except KeyboardInterrupt:
        _complain(["interrupted; what was recorded is kept, and the same command goes on"])
        return EX_INTERRUPTED
    return 0 if whole else EX_DATA


def _demo(args: argparse.Namespace) -> int:
    from sidecar.demo.options import DemoOptions, Plant, problems
    from sidecar.demo.stopping import EX_INTERRUPTED, InterruptedStart, Stopping

    plant = None if args.plant is None else Plant(args.plant)
    options = DemoOptions(args.seconds, args.summary, args.picture, args.port, args.metrics_port, args.block, plant)
    if found := problems(options):
        _complain(found)
        return EX_CONFIG
    with Stopping() as stopping:
        try:
            try:
                from sidecar.demo.run import run_demo
            except ModuleNotFoundError as missing:
                _complain([f"the demo needs the [demo] extra: {missing.name} is not installed"])
                return EX_CONFIG
            return run_demo(options, stopping)
        except InterruptedStart:
            _complain(["the demo was interrupted before it was up; nothing is left running"])
            return EX_INTERRUPTED


def _config(args: argparse.Namespace) -> int:
    import yaml

    from sidecar.config import Config

    if args.what == "schema":
        print(json.dumps(Config.model_json_schema(), indent=2))
    else:
        print(yaml.safe_dump(Config().model_dump(mode="json"), sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
