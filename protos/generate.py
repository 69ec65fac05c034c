"""Generate `tapestry/v1` from `protos/tapestry/v1`, or check that it is fresh.

`python protos/generate.py` writes; `--check` regenerates into a temporary folder and names every
file that is stale, missing, or left over. The generator is pinned in the group `gen`: its code
needs protobuf >= 6.31.1 and runs on newer ones, never on older.
"""

import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("tapestry/v1")
_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def generate(target: Path) -> None:
    """Write messages, services and their type stubs below `target`."""
    (target / PACKAGE).mkdir(parents=True, exist_ok=True)
    scripts = Path(sysconfig.get_path("scripts"))
    status = protoc.main(
        [
            "protoc",
            *(f"--plugin={name}={scripts / name}" for name in _PLUGINS),
            f"--proto_path={PROTOS}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sorted(str(path) for path in (PROTOS / PACKAGE).glob("*.proto")),
        ]
    )
    if status != 0:
        sys.exit(status)


def differences(fresh: Path) -> list[str]:
    """Return one line for each generated file that differs from the committed one."""
    committed = {path.name for path in (ROOT / PACKAGE).glob("*_pb2*")}
    generated = {path.name for path in (fresh / PACKAGE).glob("*_pb2*")}
    lines = [f"left over: {PACKAGE / name}" for name in sorted(committed - generated)]
    lines += [f"missing: {PACKAGE / name}" for name in sorted(generated - committed)]
    lines += [
        f"stale: {PACKAGE / name}"
        for name in sorted(generated & committed)
        if (ROOT / PACKAGE / name).read_bytes() != (fresh / PACKAGE / name).read_bytes()
    ]
    return lines


def main() -> None:
    """Write, or with `--check` compare."""
    if "--check" not in sys.argv[1:]:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        lines = differences(Path(folder))
    if lines:
        print("\n".join([*lines, "run `make protos` and commit the result"]), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
