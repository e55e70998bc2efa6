"""Generate ``protos.stethoscope.v1`` from the .proto files: ``python protos/generate.py [--check]``.

With --check nothing is written; exit status 1 if the committed code differs from what would be generated.
"""

from __future__ import annotations

import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PACKAGE = Path("stethoscope/v1")


def generate(out: Path) -> list[Path]:
    """Write the generated modules under ``out`` and return them, relative to it."""
    sources = sorted((ROOT / PACKAGE).glob("*.proto"))
    status = protoc.main(
        ["protoc", f"-I{ROOT}", f"--python_out={out}", f"--pyi_out={out}", *(str(source) for source in sources)]
    )
    if status != 0:
        raise SystemExit(status)
    made = sorted((out / PACKAGE).glob("*_pb2.py*"))
    for path in made:  # protoc knows only the proto path; our package lives one level up
        text = path.read_text()
        text = text.replace("from stethoscope.v1 import", "from protos.stethoscope.v1 import")
        path.write_text(text.replace(", _Mapping]", ", _Mapping[str, object]]"))  # strict typing wants the arguments
    return [path.relative_to(out) for path in made]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Path(folder))
        if "--check" in sys.argv:
            stale = [str(p) for p in made if not filecmp.cmp(Path(folder) / p, ROOT / p, shallow=False)]
            print("generated code is current" if not stale else f"stale, run `make protos`: {', '.join(stale)}")
            return int(bool(stale))
        for path in made:
            shutil.copyfile(Path(folder) / path, ROOT / path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
