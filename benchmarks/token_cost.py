"""How near the doctor's "times the tokens of English" is to texts that say the same.

Programs' messages come in many languages and always say the same. The catalogues that lie on this
machine are read; half of each language's messages gives the true cost, by their own English, and
the other half the estimate, which sees neither that English nor that they are translations.

    python benchmarks/token_cost.py --tokenizer a-model/tokenizer.json
"""

import argparse
import gettext
import math
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
from running import save

from tapestry.data.tokenizer import load_tokenizer
from tapestry_finetune.rows.cost import CountTokens, cost_of

_FEWEST_LETTERS = 80
_FEWEST_MESSAGES = 300

_Messages = dict[str, str]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--catalogues", type=Path, default=Path("/usr/share/locale"))
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.tokenizer)

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    rows = {}
    for language, messages in sorted(read(args.catalogues).items()):
        if len(messages) >= _FEWEST_MESSAGES and not language.startswith("en"):
            true, estimated = compared(messages, count)
            rows[language] = {"true": true, "estimated": estimated}
            print(f"{language:<12} {true:6.2f} true  {estimated:6.2f} estimated")
    wrong = sorted(abs(math.log(row["estimated"] / row["true"])) for row in rows.values())
    summary = {
        "languages": len(rows),
        "median_factor": math.exp(statistics.median(wrong)),
        "ninth_decile_factor": math.exp(wrong[int(0.9 * len(wrong))]),
        "largest_factor": math.exp(wrong[-1]),
    }
    print(summary)
    save("token_cost", {"summary": summary, "languages": rows})


def read(folder: Path) -> dict[str, _Messages]:
    """Return long messages by language: English to translation."""
    found: dict[str, _Messages] = defaultdict(dict)
    for file in sorted(folder.glob("*/LC_MESSAGES/*.mo")):
        with file.open("rb") as opened:
            try:
                catalogue = gettext.GNUTranslations(opened)
            except (OSError, ValueError, LookupError):
                continue
        for english, text in catalogue._catalog.items():  # noqa: SLF001 - it has no other way in
            is_message = isinstance(english, str) and len(english) >= _FEWEST_LETTERS
            if is_message and text not in {"", english} and "  " not in english:
                found[file.parents[1].name][english] = text
    return found


def compared(messages: _Messages, count: CountTokens) -> tuple[float, float]:
    """Return the true cost of half of the messages and the estimate from the others."""
    order = np.random.Generator(np.random.PCG64(1)).permutation(sorted(messages))
    known, others = order[: len(order) // 2], order[len(order) // 2 :]
    true = sum(count(messages[one]) for one in known) / sum(count(str(one)) for one in known)
    return true, cost_of([messages[one] for one in others], "", count).times_english or math.nan


if __name__ == "__main__":
    main()
