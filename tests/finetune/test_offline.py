"""Zero network: a whole run asks no resolver and opens no connection; the help imports no torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tapestry_coordinator.home import CoordinatorHome
from tapestry_finetune.base import Base
from tests.coordinator.small import Small
from tests.finetune.consensus import known, next_round, teach, write_recipe

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
from tapestry.cli.main import main
from tapestry_finetune.bundle import community_key
from tapestry_finetune.making import make
from tapestry_finetune.run import Telling

folder, base, newer = map(Path, sys.argv[1:4])
key = community_key(folder / "key")
for name in sys.argv[4:]:
    make(folder / name, folder / f"{name}-out", folder / f"{name}-run", key, Telling(),
         now=0.0, force="a test")
bundle, recipe = folder / f"{name}-out", folder / name
for command in (
    ["finetune", "doctor", folder / "text.jsonl", "--base", base],
    ["finetune", "plan", recipe, "--no-measure"],
    ["finetune", "verify", bundle, "--base", base],
    ["finetune", "eval", bundle, "--base", base, "--suites", recipe, "--out", folder / "report"],
    ["chat", bundle, "--base", base, "--tokens", "4", "--ratings", folder / "ratings"],
    ["export", bundle, "--base", base, "--format", "merged", "--out", folder / "merged"],
    ["export", bundle, "--base", base, "--format", "gguf", "--out", folder / "ours.gguf"],
    ["finetune", "rebase", bundle, "--onto", newer, "--old", base, "--recipe", recipe,
     "--steps", "1", "--out", folder / "carried", "--key", folder / "key", "--force", "a test"],
):
    code = main([str(word) for word in command])
    assert code in (0, 1) if command[1] == "eval" else code == 0, (code, command)
tried.append(["sentinel", ""])
socket.getaddrinfo("localhost", 1)
print(json.dumps(tried))
"""


@pytest.mark.slow
def test_a_whole_life_opens_no_socket(base: Base, consensus: Small, tmp_path: Path) -> None:
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
    copied = tmp_path / "federation"
    shutil.copytree(consensus.home.folder, copied)
    newer = next_round(
        Small(CoordinatorHome(copied)), lambda m, t: teach(m, t, known(), steps=2, seed=3)
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    done = subprocess.run(
        [
            *(sys.executable, "-c", _TRAP, str(tmp_path), str(base.folder), str(newer)),
            *("recipe.toml", "kto.toml"),
        ],
        input="zer?\n/base\n/good\n",
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
