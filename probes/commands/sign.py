"""``probes keygen``, ``probes sign``, ``probes verify``: who stands behind an artifact."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.errors import LabError

if TYPE_CHECKING:
    from probes.release.signature import Standing

EX_UNSIGNED, EX_OTHER_KEY, EX_CHANGED = 3, 4, 5


def add(commands: Any) -> None:
    keygen = commands.add_parser("keygen", help="make a pair of keys to sign artifacts with")
    keygen.add_argument("key", type=Path, metavar="FILE", help="the private key; the public one is FILE.pub")
    keygen.set_defaults(run=_keygen)
    sign = commands.add_parser("sign", help="sign an artifact: a probe or a circuit")
    sign.add_argument("artifact", type=Path, metavar="ARTIFACT")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the private key")
    sign.set_defaults(run=_sign)
    verify = commands.add_parser(
        "verify",
        help="tell whether an artifact is signed by a key",
        epilog=f"exit status: 0 sound, {EX_UNSIGNED} unsigned, {EX_OTHER_KEY} signed by another key, {EX_CHANGED} changed since, "
        "1 unreadable",
    )
    verify.add_argument("artifact", type=Path, metavar="ARTIFACT")
    verify.add_argument("--key", type=Path, required=True, metavar="FILE.pub", help="the public key")
    verify.set_defaults(run=_verify)


def _keygen(arguments: argparse.Namespace) -> int:
    from probes.release.signature import make_keys

    public = make_keys(arguments.key)
    _say(f"key {public.name}: keep {arguments.key} secret, and give {arguments.key}.pub to whoever verifies")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    from probes.release.signature import sign
    from sidecar.errors import ArtifactError

    try:
        public = sign(arguments.artifact, arguments.key)
    except ArtifactError as error:
        raise LabError(f"{arguments.artifact}: {error.text}") from None
    _say(f"{arguments.artifact}: signed by key {public.name}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from probes.release.signature import Standing, read_public_key

    key = read_public_key(arguments.key)
    found = _standing(arguments.artifact, arguments.key)
    words = {
        Standing.SOUND: f"sound: signed by key {key.name}, and unchanged since",
        Standing.UNSIGNED: "unsigned: nobody stands behind it",
        Standing.OTHER_KEY: f"signed by another key than {key.name}",
        Standing.CHANGED: "changed: its content or its signature is not what was signed",
    }
    _say(f"{arguments.artifact}: {words[found]}")
    return {
        Standing.SOUND: 0,
        Standing.UNSIGNED: EX_UNSIGNED,
        Standing.OTHER_KEY: EX_OTHER_KEY,
        Standing.CHANGED: EX_CHANGED,
    }[found]


def _standing(folder: Path, public: Path) -> Standing:
    from probes.forms import open_any
    from probes.release.signature import Standing, read_public_key
    from sidecar.errors import ArtifactError, ArtifactReason

    try:
        return read_public_key(public).standing(open_any(folder, root=folder))
    except ArtifactError as error:
        if error.reason is ArtifactReason.BAD_DIGEST:
            return Standing.CHANGED
        raise LabError(f"{folder}: {error.text}") from None


def _say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=False)
