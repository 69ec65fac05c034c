"""Answers that models have written so far, kept until all are there."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


class WrittenAnswers:
    """A file with a line for each answer, on the disk as soon as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        """Go on with what an open file has; half a line at its end is written anew."""
        self._file = file
        self._answers: dict[tuple[str, str], str] = {}
        file.seek(0)
        whole = 0
        for line in file:
            with suppress(ValueError):  # of a machine that went down
                by, prompt, answer = json.loads(line)
                self._answers[by, prompt] = answer
                whole += len(line)
                continue
            break
        file.truncate(whole)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, by: str, prompt: str) -> str | None:
        """Return what somebody has answered; None: nothing yet."""
        return self._answers.get((by, prompt))

    def keep(self, by: str, prompt: str, answer: str) -> None:
        """Keep an answer."""
        self._answers[by, prompt] = answer
        self._file.write(json.dumps([by, prompt, answer], ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def written_file(out: Path) -> Path:
    """Return where answers are kept while those for `out` are written."""
    return out.with_name(f"{out.stem}.answers.jsonl")
