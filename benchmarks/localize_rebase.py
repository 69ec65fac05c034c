"""What of a community's work survives six rounds of the consensus, and what a touch-up is worth.

A small model of real text in four languages (the extra `demo`'s, and English) is a federation's
genesis; a community teaches it Indonesian; four members train six rounds on; the work is carried
over. Compared, in bits per byte of held-out Indonesian on the new base: the untouched copy, a
touch-up, and a run from nothing of as many steps. Everything is made anew for every seed.

    python benchmarks/localize_rebase.py --seeds 3
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import tapestry.offline  # noqa: F401 - before transformers is imported

# isort: split
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from localize_texts import first, texts_of, write_documents
from member_rounds import next_consensus, teach, tokens_of
from running import median, save
from transformers import LlamaConfig, LlamaForCausalLM

from tapestry.checkpoints.policy import AggregationPolicy, FederationPolicy
from tapestry.data.tokenizer import tokenizer_files, train_tokenizer
from tapestry.objectives.loading import load_text_tokenizer
from tapestry.objectives.objective import objective_named
from tapestry_coordinator.founding import Founding, found
from tapestry_coordinator.home import CoordinatorHome
from tapestry_finetune.making import make
from tapestry_finetune.rebase import Asked, Rebased, rebase
from tapestry_finetune.run import Telling
from tests.coordinator.small import FOUNDED_AT, settings_for

_MEMBERS = {"gb-library": "eng", "ua-library": "ukr", "mw-university": "nya", "in-archive": "hin"}
_FIGURE = "bits_per_byte:ind"
_KEY = Ed25519PrivateKey.from_private_bytes(b"community".ljust(32, b"."))
_CONTEXT = 256

_RECIPE = """\
[model]
name = "lontar"
base = "fed/published/round-000000"
languages = ["ind"]

[data]
text = ["ind.txt"]

[training]
stages = ["language"]
method = "{method}"
device = "cpu"
sequence_tokens = 128
batch = 4
seed = {seed}

[language]
steps = {steps}

[floor]
bits_per_byte_percent = 200
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base-steps", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--inner-steps", type=int, default=15, help="of each member in a round")
    parser.add_argument("--member-rate", type=float, default=2e-4, help="learning rate of members")
    parser.add_argument("--steps", type=int, default=150, help="of the community's run")
    parser.add_argument("--touch-up", type=int, default=20, help="steps of the short touch-up")
    parser.add_argument(
        "--method", choices=("lora", "lora+embeddings", "full"), default="lora+embeddings"
    )
    args = parser.parse_args()
    runs = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder), seed, args))
            print(json.dumps(runs[-1]), flush=True)
    summary = {key: median([run[key] for run in runs]) for key in runs[0] if key != "seed"}
    print(f"medians of {args.seeds} seeds, load {os.getloadavg()[0]:.1f}:")
    print(
        f"  drift {summary['drift']:.1%}; untouched copy keeps {summary['kept']:.0%} of the gain "
        "(80 % asked for)"
    )
    for steps in (args.touch_up, args.steps):
        ours, fresh = summary[f"touch-up {steps}"], summary[f"fresh {steps}"]
        print(f"  {steps} steps: touched up {ours:.3f}, fresh {fresh:.3f} bits per byte")
    asked = {key: value for key, value in vars(args).items() if key != "method"}
    name = f"localize_rebase_{args.method.replace('+', '_')}"
    results = {"method": args.method, **asked, "medians": summary, "runs": runs}
    save(name, results | {"load": os.getloadavg()[0]})


def measure(folder: Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the figures of one seed."""
    torch.set_num_threads(1)
    write_data(folder)
    found_federation(folder, seed, args.base_steps)
    long, short = (
        recipe(folder, seed, steps, args.method) for steps in (args.steps, args.touch_up)
    )
    bundle, _ = make(long, folder / "lontar", folder / "run", _KEY, Telling(), now=FOUNDED_AT)
    texts = {member: folder / f"{language}.txt" for member, language in _MEMBERS.items()}
    for number in range(args.rounds):
        newest = next_consensus(
            folder / "fed", texts, steps=args.inner_steps, sequences=4, sequence_tokens=64,
            learning_rate=args.member_rate, seed=100 * seed + number,
        )  # fmt: skip
    found: dict[str, float] = {"seed": seed}
    for steps, where in ((args.touch_up, short), (args.steps, long)):
        asked = Asked(bundle=bundle.folder, onto=newest, recipe=where, steps=steps, retrain=True)
        found |= figures(carried(folder, asked, steps), steps)
    return found


def carried(folder: Path, asked: Asked, steps: int) -> Rebased:
    """Carry the bundle over, with a run from nothing of as many steps beside."""
    work = folder / f"work-{steps}"
    work.mkdir()
    target = folder / f"rebased-{steps}"
    return rebase(asked, target, work, _KEY, Telling(), now=FOUNDED_AT)


def figures(made: Rebased, steps: int) -> dict[str, float]:
    """Return what the table says of Indonesian, and of the other languages in the mean."""
    columns = {column.name: column.figures for column in made.columns}
    candidates = {
        "old base + adapter": "old",
        "new base": "new base",
        "copy x 1": "copy",
        f"touch-up, {steps} steps": f"touch-up {steps}",
        "retrained": f"fresh {steps}",
    }
    found: dict[str, Any] = {"drift": made.drift, "kept": made.kept_of_gain}
    for name, short in candidates.items():
        others = [v for key, v in columns[name].items() if key != _FIGURE]
        found[short] = columns[name][_FIGURE]
        found[f"{short}, others"] = sum(others) / len(others)
    return found


def write_data(folder: Path) -> None:
    """Write the community's text, each member's, and the open pool."""
    (folder / "pool").mkdir()
    write_documents(folder / "ind.txt", first(texts_of("ind"), 300_000))
    for language in _MEMBERS.values():
        texts = texts_of(language)
        write_documents(folder / f"{language}.txt", first(texts[::2], 200_000))
        write_documents(folder / "pool" / f"{language}.txt", first(texts[1::2], 50_000))


def found_federation(folder: Path, seed: int, steps: int) -> None:
    """Found a federation on a model of 0.9M parameters that has learnt the members' languages."""
    theirs = folder / "theirs"
    theirs.mkdir()
    texts = [
        path.read_text(encoding="utf-8")
        for language in _MEMBERS.values()
        for path in (folder / f"{language}.txt", folder / "pool" / f"{language}.txt")
    ]
    tokenizer = train_tokenizer(texts, vocabulary_size=2048)
    for name, content in tokenizer_files(tokenizer, model_max_length=_CONTEXT).items():
        (theirs / name).write_bytes(content)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=_CONTEXT,
            tie_word_embeddings=True,
            eos_token_id=0,
            bos_token_id=None,
        )
    )
    stream = tokens_of(texts, load_text_tokenizer(theirs))
    teach(
        model, stream, steps=steps, sequence_tokens=64, sequences=4, learning_rate=2e-3, seed=seed
    )
    model.save_pretrained(theirs)
    founding = Founding(
        federation="loom",
        objective=objective_named("causal-lm"),
        create={"model": str(theirs)},
        pool=[folder / "pool"],
        seed=seed,
        policy=FederationPolicy(aggregation=AggregationPolicy(codec="float32")),
    )
    found(folder / "fed", founding, settings_for, now=FOUNDED_AT)
    assert CoordinatorHome(folder / "fed").checkpoint(0).is_dir()


def recipe(folder: Path, seed: int, steps: int, method: str) -> Path:
    """Write the community's recipe."""
    path = folder / f"recipe-{steps}.toml"
    path.write_text(_RECIPE.format(seed=seed, steps=steps, method=method), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
