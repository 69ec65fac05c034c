"""How long a charter's guard takes for an answer, beside Python's `re` on the same terms.

One thread, processor time, so that other programs count little. Both look for phrases of two
made-up words that no answer holds, the slowest case: every letter is looked at. `re` matches one
alternation, ignoring case and nothing else; the guard folds the text first.
"""

import argparse
import random
import re
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from tapestry_finetune.charter.guard import Guard
from tapestry_finetune.charter.settings import Charter

_LETTERS = "abcdefghijklmnopqrstuvwxyz\u00e9\u00f1"
_ANSWERS = 50
_WORDS = 280
_HANGING = "(a+)+b"

EPILOG = """\
examples:
  python benchmarks/charter_guard.py                   1, 100 and 5,000 protected terms
  python benchmarks/charter_guard.py --terms 20 1000   other numbers"""


def word(draw: random.Random) -> str:
    """Return a made-up word."""
    return "".join(draw.choices(_LETTERS, k=draw.randint(3, 9)))


def guard_of(terms: Sequence[str], patterns: Sequence[str] = ()) -> Guard:
    """Return the guard of a charter that protects `terms` and `patterns`."""
    return Guard(
        Charter.model_validate(
            {
                "identity": {"community": "us", "languages": ["en"]},
                "principle": [{"id": "one", "text": "We ask."}],
                "protected": [
                    {"topic": "x", "terms": terms, "patterns": patterns, "answer": "1 2 3"}
                ],
            }
        )
    )


def milliseconds(look: Callable[[str], object], texts: Sequence[str]) -> list[float]:
    """Return the processor time that `look` took for each text."""
    taken = []
    for text in texts:
        began = time.process_time()
        look(text)
        taken.append((time.process_time() - began) * 1e3)
    return taken


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--terms", type=int, nargs="+", default=[1, 100, 5000])
    arguments = parser.parse_args()
    draw = random.Random(1)  # noqa: S311 - the same words every time
    texts = [" ".join(word(draw) for _ in range(_WORDS)) for _ in range(_ANSWERS)]
    characters = sum(map(len, texts)) // len(texts)
    table = Table(title=f"answers of {characters:,} characters, milliseconds each")
    for name in ("terms", "first", "mean", "slowest", "re, mean", "times re"):
        table.add_column(name, justify="right")
    for count in arguments.terms:
        terms = [f"{word(draw)} {word(draw)}" for _ in range(count)]
        guard = guard_of(terms)
        guard.on_answer("a")  # makes the automaton
        mine = milliseconds(guard.on_answer, texts)
        alternation = re.compile(rf"\b(?:{'|'.join(terms)})\b", re.IGNORECASE)
        theirs = milliseconds(alternation.search, texts)
        mean, other = sum(mine) / len(mine), sum(theirs) / len(theirs)
        figures = (mine[0], mean, max(mine), other, mean / other)
        table.add_row(f"{count:,}", *(f"{figure:.2f}" for figure in figures))
    console = Console()
    console.print(table)
    hanging = guard_of([], [_HANGING])
    (taken,) = milliseconds(hanging.on_answer, ["a" * 1_000_000])
    (short,) = milliseconds(re.compile(_HANGING).search, ["a" * 22])
    console.print(
        f"{_HANGING} on a million letters: {taken:,.0f} ms; re takes {short:,.0f} ms for 22 "
        "letters, and twice as long for each more"
    )


if __name__ == "__main__":
    main()
