"""The conversation at a terminal, or through a pipe: one line is one turn."""

import io
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from tapestry.cli.bars import printable
from tapestry.errors import RejectedError, TapestryError
from tapestry_finetune.conversing import MOST_CHARACTERS, Conversation
from tapestry_finetune.ratings import Ratings
from tapestry_finetune.speaking import TooLongError
from tapestry_finetune.wording import Wording

_MOST_READ = 2**22
"""Characters of a line that are read at most; the rest of it is another line."""


class Terminal:
    """Reads what a person writes, and writes what the models answer."""

    def __init__(
        self, conversation: Conversation, ratings: Ratings, wording: Wording, out: TextIO
    ) -> None:
        """Show `conversation` on `out`."""
        self._conversation = conversation
        self._ratings = ratings
        self._says = wording
        self._out = out
        self._commands: dict[str, Callable[[str], None]] = {
            "/base": self._base,
            "/why": self._why,
            "/good": lambda _words: self._rate(is_good=True),
            "/bad": lambda _words: self._rate(is_good=False),
            "/system": self._system,
            "/new": self._new,
            "/help": lambda _words: self._line(self._says("chat.help")),
        }

    def talk(self, lines: Iterator[str]) -> None:
        """Take turns until `lines` end or somebody quits."""
        for line in lines:
            text = line.strip()
            if text in {"/quit", "/exit"}:
                return
            if text:
                self._turn(text)

    def _turn(self, text: str) -> None:
        command, _, words = text.partition(" ")
        try:
            if not command.startswith("/"):
                self._ask(text)
            elif command in self._commands:
                self._commands[command](words.strip())
            else:
                self._line(self._says("chat.unknown", command=command[:40]))
        except TapestryError as error:
            self._line(self._says("chat.failed", reason=str(error)))

    def _ask(self, text: str) -> None:
        if len(text) > MOST_CHARACTERS:
            said = self._says("chat.too_long", size=f"{len(text):,}", most=f"{MOST_CHARACTERS:,}")
            self._line(said)
            return
        self._write(self._conversation.ask(text))

    def _base(self, _words: str) -> None:
        if self._conversation.last is None:
            self._line(self._says("chat.nothing_asked"))
        elif self._conversation.name is None:
            self._line(self._says("chat.base_is_itself"))
        else:
            self._out.write(f"{self._says('chat.base')}: ")
            self._write(self._conversation.ask_base())

    def _write(self, pieces: Iterator[str]) -> None:
        """Write an answer while it comes; Ctrl-C stops the answer and nothing else."""
        try:
            for piece in pieces:
                self._out.write(shown(piece))
                self._out.flush()
            self._line("")
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
            self._line(f" {self._says('chat.stopped')}")
        except TooLongError as error:
            tokens, most = f"{error.tokens:,}", f"{error.most:,}"
            self._line(self._says("chat.too_many_tokens", tokens=tokens, most=most))
        told = self._conversation.told
        if told.turns_left_out:
            self._line(self._says("chat.forgotten", turns=told.turns_left_out))
        if told.guard_reason:
            self._line(self._says("chat.refused", reason=shown(told.guard_reason)))

    def _why(self, _words: str) -> None:
        last, person = self._conversation.last, self._conversation.person
        if person.charter is None:
            self._line(self._says("chat.no_charter"))
            return
        if last is not None and last.told.guard_reason:
            self._line(self._says("chat.refused", reason=shown(last.told.guard_reason)))
        self._line(self._says("chat.principles"))
        for principle in self._conversation.principles():
            self._line(f"  {principle.id}: {shown(principle.text)}")

    def _rate(self, *, is_good: bool) -> None:
        if self._conversation.last is None:
            self._line(self._says("chat.nothing_answered"))
            return
        try:
            thumbs, *pairs = self._conversation.rate(self._ratings, is_good=is_good)
        except OSError as error:
            raise RejectedError(f"{self._ratings.folder}: {error.strerror}") from error
        self._line(self._says("chat.kept_good" if is_good else "chat.kept_bad", file=thumbs))
        for pair in pairs:
            self._line(self._says("chat.kept_pair", file=pair))

    def _system(self, words: str) -> None:
        if words:
            self._conversation.tell_first(words)
        system = self._conversation.person.system
        said = self._says("chat.system_set") if system else self._says("chat.system_none")
        self._line(f"{said}\n{shown(system)}".strip())

    def _new(self, _words: str) -> None:
        self._conversation.begin_again()
        self._line(self._says("chat.new"))

    def _line(self, text: str) -> None:
        self._out.write(f"{text}\n")
        self._out.flush()


def shown(text: str) -> str:
    """Return what a model or a charter says without what would steer a terminal."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def written_lines(prompt: str, *, is_terminal: bool) -> Iterator[str]:
    """Yield what a person writes, line by line; at a terminal with a prompt before it.

    Ctrl-C at the prompt gives up the line, Ctrl-D ends.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are no reason to end
    if not is_terminal:
        while line := sys.stdin.readline(_MOST_READ):
            yield line
        return
    import readline  # noqa: F401, PLC0415 - `input` then has a history and can edit

    while True:
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        except EOFError:
            sys.stdout.write("\n")
            return
