"""Zero network: a whole run asks no resolver and opens no connection; the help imports no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapestry_finetune.base import Base
from tests.finetune.consensus import write_recipe

_TRAP = """
import json, socket, sys
tried = []
def noted(name, original):
    def called(*arguments, **named):
        tried.append([name, repr(arguments)[:200]])
        return original(*arguments, **named)
    return called
socket.getaddrinfo = noted("getaddrinfo", socket.getaddrinfo)
socket.gethostbyname = noted("gethostbyname", socket.gethostbyname)
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, noted(name, getattr(socket.socket, name)))
socket.create_connection = noted("create_connection", socket.create_connection)

from pathlib import Path
from tapestry_finetune.bundle import community_key
from tapestry_finetune.making import make
from tapestry_finetune.rebase import Asked, rebase
from tapestry_finetune.run import Telling

folder = Path(sys.argv[1])
key = community_key(folder / "key")
for name in sys.argv[2:]:
    make(folder / name, folder / f"{name}-out", folder / f"{name}-run", key, Telling(),
         now=0.0, force="a test")
tried.append(["sentinel", ""])
socket.getaddrinfo("localhost", 1)
print(json.dumps(tried))
"""


@pytest.mark.slow
def test_a_whole_run_opens_no_socket(base: Base, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, base.folder, stages=("vocab", "language", "instruct", "values"))
    text = recipe.read_text(encoding="utf-8")
    for before in ("steps = 60", "steps = 20", "steps = 12"):
        text = text.replace(before, "steps = 2")
    recipe.write_text(text, encoding="utf-8")
    thumbs = [
        json.dumps({"prompt": f"zer {n}", "completion": "haria", "label": n % 2 == 0})
        for n in range(16)
    ]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(thumbs), encoding="utf-8")
    kto = text.replace("pairs.jsonl", "thumbs.jsonl")
    kto = kto.replace('["vocab", "language", "instruct", "values"]', '["values"]')
    (tmp_path / "kto.toml").write_text(kto, encoding="utf-8")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", _TRAP, str(tmp_path), "recipe.toml", "kto.toml"],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"HF_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tried = json.loads(done.stdout.splitlines()[-1])
    assert tried[-1][0] == "getaddrinfo"  # the trap itself works
    assert [name for name, _ in tried[:-2]] == []


def test_the_help_imports_no_torch() -> None:
    code = (
        "import sys; from tapestry.cli.main import main\n"
        "try: main(['finetune', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, sorted(done.stderr)
    for command in ("init", "plan", "run", "verify", "eval", "rebase", "doctor", "charter"):
        assert command in done.stdout
