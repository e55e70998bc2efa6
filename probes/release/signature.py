"""Who stands behind an artifact: an Ed25519 signature over its content digest, kept in the manifest.

In the manifest, and not in a file beside it: an artifact stays two files, and whatever watches them (hot reload compares exactly
those two) sees a signature come, change or go. The content digest leaves the signature out, so signing changes nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from probes.errors import LabError
from probes.forms import open_any, put_signature
from probes.manifest.fields import Sealed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

# Signed together with the digest, so that a signature over anything else never passes for one of an artifact.
_PREFIX = b"stethoscope.artifact/1 signature of a content digest\n"
_FORM = re.compile(r"ed25519:([0-9a-f]{16}):([A-Za-z0-9+/]{86}==)")
_KEY_LIMIT_BYTES = 4096
_OTHERS = 0o077


class Standing(StrEnum):
    """What a public key says of an artifact."""

    SOUND = "sound"
    UNSIGNED = "unsigned"
    OTHER_KEY = "other_key"
    CHANGED = "changed"


class KeyFileError(LabError):
    """A key file is missing, is not an Ed25519 key in PEM, or may be read by others."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key and its name: the first 16 hex digits of the SHA-256 of its 32 bytes."""

    key: Ed25519PublicKey
    name: str

    def standing(self, manifest: Sealed) -> Standing:
        """Judge an artifact whose content has been compared with its digest, as `open_any` does.

        The name in a signature only tells a wrong key from a changed content; nothing is believed because of it.
        """
        from cryptography.exceptions import InvalidSignature

        if manifest.signature is None:
            return Standing.UNSIGNED
        found = _FORM.fullmatch(manifest.signature)
        if found is None:
            return Standing.CHANGED
        if found[1] != self.name:
            return Standing.OTHER_KEY
        try:
            self.key.verify(base64.b64decode(found[2], validate=True), _message(manifest))
        except (InvalidSignature, binascii.Error):
            return Standing.CHANGED
        return Standing.SOUND


def make_keys(private: Path) -> PublicKey:
    """Write a new pair: ``private`` (PEM, mode 0600) and ``private``.pub. Raises KeyFileError if either is there already."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = private.with_name(f"{private.name}.pub")
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    open_part = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise KeyFileError(f"{public}: there is a key already")
    _create(private, secret, 0o600)
    _create(public, open_part, 0o644)
    return _named(key.public_key())


def sign(folder: Path, private: Path) -> PublicKey:
    """Sign the artifact in ``folder``, in place of any signature that it has. Returns the key that verifies it.

    Raises KeyFileError, or ArtifactError if the artifact is unsound: what is wrong is not signed.
    """
    key = read_private_key(private)
    manifest = open_any(folder, root=folder)
    public = _named(key.public_key())
    value = base64.b64encode(key.sign(_message(manifest))).decode("ascii")
    put_signature(folder, f"ed25519:{public.name}:{value}", root=folder)
    return public


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises KeyFileError, also if others than its owner may read the file."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    if path.stat().st_mode & _OTHERS:
        raise KeyFileError(f"{path}: others can read this private key; chmod 600 it, or make a new one")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: not an Ed25519 private key in PEM without a password")
    return key


def read_public_key(path: Path) -> PublicKey:
    """Raises KeyFileError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: not an Ed25519 public key in PEM")
    return _named(key)


def _message(manifest: Sealed) -> bytes:
    return _PREFIX + bytes.fromhex(manifest.content_digest)


def _named(key: Ed25519PublicKey) -> PublicKey:
    return PublicKey(key, hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16])


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_LIMIT_BYTES)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None


def _create(path: Path, data: bytes, mode: int) -> None:
    """Made with its mode, so that there is no moment at which others could read it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise KeyFileError(f"{path}: there is a key already") from None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    with os.fdopen(fd, "wb") as file:
        file.write(data)
