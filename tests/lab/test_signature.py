"""Signatures: an artifact is sound, unsigned, somebody else's or changed, and the service can insist on the first."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from probes.artifact import MANIFEST, load_artifact
from probes.cli import main
from probes.registry import FolderWatch
from probes.release.signature import KeyFileError, Standing, make_keys, read_private_key, read_public_key, sign
from sidecar.config import Config, load_config
from sidecar.errors import ArtifactError, ArtifactReason
from sidecar.reload import load_artifacts
from tests.probes.broken import seal
from tests.probes.builders import write_artifact

EX_UNSIGNED, EX_OTHER_KEY, EX_CHANGED = 3, 4, 5


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "root", "alpha")
    return tmp_path / "root"


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "alpha"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_keys(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("key.pub")


def standing(folder: Path, public: Path) -> Standing:
    return read_public_key(public).standing(load_artifact(folder, root=folder).manifest)


def fields(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / MANIFEST).read_text()))


def test_what_was_signed_is_sound(folder, key, public):
    sign(folder, key)
    assert standing(folder, public) is Standing.SOUND


def test_signing_changes_the_signature_and_nothing_else(folder, key):
    before, weights = fields(folder), (folder / "weights.safetensors").read_bytes()
    sign(folder, key)
    after = fields(folder)
    assert after.pop("signature")
    assert after == before
    assert (folder / "weights.safetensors").read_bytes() == weights


def test_a_shipped_artifact_keeps_its_content_digest_when_it_is_signed(tmp_path, key, public):
    """It was written by an earlier version, without the fields that have come since."""
    import shutil

    from probes.recipe import ZOO

    shutil.copytree(ZOO / "sentiment", tmp_path / "sentiment")
    digest = fields(tmp_path / "sentiment")["content_digest"]
    sign(tmp_path / "sentiment", key)
    assert fields(tmp_path / "sentiment")["content_digest"] == digest
    assert standing(tmp_path / "sentiment", public) is Standing.SOUND


def test_the_registry_sees_that_an_artifact_was_signed(root, folder, key):
    watch = FolderWatch(root)
    sign(folder, key)
    assert watch.changed()


def test_signing_again_by_another_key_replaces_the_signature(folder, key, public, tmp_path):
    sign(folder, key)
    make_keys(tmp_path / "other")
    sign(folder, tmp_path / "other")
    assert standing(folder, public) is Standing.OTHER_KEY
    assert standing(folder, tmp_path / "other.pub") is Standing.SOUND


def test_a_content_that_was_changed_and_sealed_anew_is_not_sound(folder, key, public):
    sign(folder, key)
    seal(folder, description="another one")
    assert standing(folder, public) is Standing.CHANGED


@pytest.mark.parametrize("name", ["version", "evidence", "licence"])
def test_every_word_of_the_manifest_is_signed(folder, key, public, name):
    sign(folder, key)
    seal(folder, **{name: {"version": "9.9.9", "evidence": "used", "licence": "mine"}[name]})
    assert standing(folder, public) is Standing.CHANGED


def test_a_signature_of_another_artifact_does_not_hold(root, folder, key, public):
    write_artifact(root, "bravo")
    sign(root / "bravo", key)
    seal(folder, signature=fields(root / "bravo")["signature"])
    assert standing(folder, public) is Standing.CHANGED


def test_a_signature_over_the_bare_digest_does_not_hold(folder, key, public):
    """Whatever else this key signs, a digest among it, is no signature of an artifact."""
    digest = bytes.fromhex(str(fields(folder)["content_digest"]))
    value = base64.b64encode(read_private_key(key).sign(digest)).decode()
    seal(folder, signature=f"ed25519:{read_public_key(public).name}:{value}")
    assert standing(folder, public) is Standing.CHANGED


@pytest.mark.parametrize("value", ["", "ed25519", "ed25519:0123456789abcdef:", "rsa:x:y", "ed25519:" + "a" * 200])
def test_a_signature_that_is_none_is_not_sound(folder, public, value):
    seal(folder, signature=value)
    assert standing(folder, public) is Standing.CHANGED


def test_verify_tells_the_four_apart_by_its_exit_status(folder, key, public, tmp_path, capsys):
    def verify(by: Path) -> int:
        return main(["verify", str(folder), "--key", str(by)])

    assert verify(public) == EX_UNSIGNED
    assert main(["sign", str(folder), "--key", str(key)]) == 0
    assert verify(public) == 0
    assert main(["keygen", str(tmp_path / "other")]) == 0
    assert verify(tmp_path / "other.pub") == EX_OTHER_KEY
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace("A direction for tests.", "A direction for texts."))
    assert verify(public) == EX_CHANGED
    told = capsys.readouterr().out
    assert [word in told for word in ("unsigned", "sound", "another key", "changed")] == [True] * 4


def test_an_artifact_that_cannot_be_read_is_neither_sound_nor_changed(folder, public, capsys):
    (folder / MANIFEST).unlink()
    assert main(["verify", str(folder), "--key", str(public)]) == 1
    assert "manifest.json" in capsys.readouterr().err


def test_what_is_unsound_is_not_signed(folder, key, capsys):
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace("A direction for tests.", "A direction for texts."))
    assert main(["sign", str(folder), "--key", str(key)]) == 1
    assert "signature" not in fields(folder)
    assert "content_digest" in capsys.readouterr().err


def test_a_private_key_is_made_for_its_owner_alone_and_never_overwritten(key, public):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(KeyFileError, match="there is a key already"):
        make_keys(key)
    public.unlink()
    with pytest.raises(KeyFileError, match="there is a key already"):
        make_keys(key)
    assert key.read_bytes() == before
    assert not public.exists()


def test_the_mode_of_a_private_key_does_not_wait_for_the_umask(tmp_path):
    before = os.umask(0)
    try:
        make_keys(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_private_key_that_others_can_read_is_refused(folder, key):
    key.chmod(0o640)
    with pytest.raises(KeyFileError, match="others can read"):
        sign(folder, key)
    assert "signature" not in fields(folder)


WRONG_KEYS = {
    "missing": None,
    "empty": b"",
    "text": b"not a key",
    "half a PEM": b"-----BEGIN PUBLIC KEY-----\nMCow",
    "another algorithm": "rsa",
}


@pytest.mark.parametrize("what", WRONG_KEYS)
def test_a_file_that_is_no_ed25519_key_is_named(tmp_path, what):
    path, content = tmp_path / "odd", WRONG_KEYS[what]
    if content == "rsa":
        content = rsa_public()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    for read in (read_public_key, read_private_key):
        with pytest.raises(KeyFileError, match="odd"):
            read(path)


def rsa_public() -> bytes:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    return key.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)


def test_a_private_key_does_not_pass_for_a_public_one(key):
    with pytest.raises(KeyFileError, match="not an Ed25519 public key"):
        read_public_key(key)


def config(root: Path, public: Path | None) -> Config:
    flags = {"artifacts.folder": str(root)} | ({} if public is None else {"artifacts.public_key": str(public)})
    return load_config(env={}, flags=flags)


def refusal(root: Path, public: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as refused:
        load_artifacts(config(root, public))
    return refused.value


def test_without_the_setting_the_service_loads_unsigned_artifacts(root):
    assert len(load_artifacts(config(root, None))) == 1


def test_with_the_setting_only_what_that_key_signed_is_loaded(root, folder, key, public, tmp_path):
    error = refusal(root, public)
    assert (error.reason, error.text) == (ArtifactReason.UNSIGNED, "alpha: not signed")
    sign(folder, key)
    assert [one.manifest.name for one in load_artifacts(config(root, public))] == ["alpha"]
    make_keys(tmp_path / "other")
    error = refusal(root, tmp_path / "other.pub")
    assert (error.reason, error.text) == (ArtifactReason.BAD_SIGNATURE, "alpha: signed by another key")
    seal(folder, description="another one")
    error = refusal(root, public)
    assert (error.reason, error.text) == (ArtifactReason.BAD_SIGNATURE, "alpha: changed since it was signed")


def test_one_unsigned_artifact_among_signed_ones_keeps_all_out(root, folder, key, public):
    sign(folder, key)
    write_artifact(root, "bravo")
    assert refusal(root, public).text == "bravo: not signed"


def test_a_key_that_cannot_be_read_keeps_all_out_and_no_path_is_told(root, folder, key, public):
    sign(folder, key)
    public.unlink()
    error = refusal(root, public)
    assert error.reason is ArtifactReason.UNREADABLE
    assert str(public) not in str(error)
