"""What people thought of answers, kept as the training files that `values` learns from.

`ratings.jsonl` has one line for each thumb, `pairs.jsonl` one for each answer that was judged while
the base's answer to the same question was in sight.
"""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tapestry.storage.atomic import write_atomic

RATINGS_FILE = "ratings.jsonl"
PAIRS_FILE = "pairs.jsonl"


class Ratings:
    """A folder in which ratings are kept, the user's own (0700, files 0600)."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which is made when there is something to keep."""
        self.folder = folder

    def keep(
        self,
        prompt: Sequence[Mapping[str, str]],
        answer: str,
        *,
        is_good: bool,
        beside: str | None = None,
    ) -> list[Path]:
        """Keep what somebody thinks of an answer now; return the files that say it.

        Args:
            prompt: The dialogue, up to the question.
            answer: That was judged.
            is_good: What was thought of it.
            beside: The base's answer, if it was seen; a pair is kept if the two differ.
        """
        asked = [dict(message) for message in prompt]
        thumb = {"prompt": asked, "completion": answer, "label": is_good}
        kept = [self._put(RATINGS_FILE, thumb)]
        if beside is not None and beside.strip() and beside.strip() != answer.strip():
            chosen, rejected = (answer, beside) if is_good else (beside, answer)
            pair = {"prompt": asked, "chosen": chosen, "rejected": rejected}
            kept.append(self._put(PAIRS_FILE, pair))
        return kept

    def _put(self, name: str, row: Mapping[str, object]) -> Path:
        """Write a row in place of what was thought of the same answers before.

        Chat and page may keep something at the same moment: one waits for the other.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / name
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            kept = [line for line in before if _subject(json.loads(line)) != _subject(row)]
            lines = [*kept, json.dumps(row, ensure_ascii=False)]
            write_atomic(path, "".join(f"{line}\n" for line in lines), mode=0o600)
        finally:
            os.close(descriptor)
        return path


def _subject(row: Mapping[str, object]) -> tuple[object, list[str]]:
    """Return what a row is about, whatever it says of it."""
    answers = [str(row[key]) for key in ("completion", "chosen", "rejected") if key in row]
    return row["prompt"], sorted(answers)
