"""What people thought of answers, kept as the training files that `values` learns from.

`ratings.jsonl` has one line for each thumb, `pairs.jsonl` one for each answer that was judged while
the base's answer to the same question was in sight.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

RATINGS_FILE = "ratings.jsonl"
PAIRS_FILE = "pairs.jsonl"


class Ratings:
    """A folder in which ratings are kept; it is the user's own (0700, files 0600)."""

    def __init__(self, folder: Path) -> None:
        """Keep them in `folder`, which is made when there is something to keep."""
        self.folder = folder
        self._turn = threading.Lock()

    def keep(
        self,
        prompt: Sequence[Mapping[str, str]],
        answer: str,
        *,
        is_good: bool,
        beside: str | None = None,
    ) -> list[Path]:
        """Keep what somebody thought of an answer; return the files that say it.

        Args:
            prompt: The dialogue, up to the question.
            answer: That was judged.
            is_good: What was thought of it.
            beside: The base's answer, if it was seen; a pair is kept if the two differ.
        """
        asked = [dict(message) for message in prompt]
        thumb = {"prompt": asked, "completion": answer, "label": is_good}
        kept = [self._append(RATINGS_FILE, thumb)]
        if beside is not None and beside.strip() and beside.strip() != answer.strip():
            chosen, rejected = (answer, beside) if is_good else (beside, answer)
            pair = {"prompt": asked, "chosen": chosen, "rejected": rejected}
            kept.append(self._append(PAIRS_FILE, pair))
        return kept

    def _append(self, name: str, row: Mapping[str, object]) -> Path:
        """Add one line, in one write: two that judge at once do not mix."""
        path = self.folder / name
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._turn:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        return path
