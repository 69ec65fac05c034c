"""Small charters for tests."""

from pathlib import Path
from typing import Any

import tomli_w

from tapestry_finetune.charter.settings import Charter

EXAMPLE = Path(__file__).resolve().parents[2] / "finetune/tapestry_finetune/charter/example.toml"


def case(number: int, *principles: str, **more: Any) -> dict[str, Any]:
    """Return a case unlike any with another number."""
    word = "".join(chr(97 + int(digit)) for digit in f"{number:03}") * 3
    return {
        "prompt": f"What about {word}?",
        "good": f"Ask the {word} first.",
        "bad": f"Sell {word} at once.",
        "principles": list(principles or ("one",)),
        **more,
    }


def table(*cases: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a charter with one principle, as it stands in TOML."""
    principle = {"id": "one", "text": "We ask.", "behaviour": "It asks.", "counter_example": "No."}
    return {
        "identity": {"community": "us", "languages": ["en"]},
        "principle": [principle],
        "case": list(cases),
        **more,
    }


def charter(*cases: dict[str, Any], **more: Any) -> Charter:
    """Return such a charter, read."""
    return Charter.model_validate(table(*cases, **more))


def written(path: Path, content: dict[str, Any]) -> Path:
    """Write a charter's table as TOML."""
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path


SECRET = {
    "topic": "the night of masks",
    "terms": ["mask night", "initiat*"],
    "answer": "Please ask the elders.",
}
