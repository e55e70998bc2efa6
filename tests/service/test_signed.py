"""A service that insists on signatures goes on with what it has when something unsigned comes."""

from __future__ import annotations

import json

from probes.release.signature import make_keys, sign
from tests.builders import write_probe
from tests.waiting import until


def test_an_unsigned_artifact_is_refused_while_the_signed_ones_serve_on(serve, artifacts, tmp_path, lines):
    make_keys(tmp_path / "key")
    names = sorted(one.name for one in artifacts.iterdir())
    for name in names:
        sign(artifacts / name, tmp_path / "key")
    sidecar = serve(**{"artifacts.public_key": str(tmp_path / "key.pub")})
    write_probe(artifacts, "stranger", column=2)
    until(lambda: any('"unsigned"' in line for line in lines))  # half written, it may be refused for that first
    told = [json.loads(line) for line in lines]
    refused = next(line for line in told if line["event"] == "reload_refused" and line["reason"] == "unsigned")
    assert refused["text"] == "stranger: not signed"
    assert sorted(one.name for one in sidecar.snapshot().artifacts) == names
    sign(artifacts / "stranger", tmp_path / "key")
    until(lambda: len(sidecar.snapshot().artifacts) == len(names) + 1)
