"""One model in memory, many who ask: a thread that answers one after the other.

Whoever asks gets the pieces as they are written, and may go away at any time: the model then stops.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping

from tapestry.errors import RejectedError, TapestryError, UnavailableError
from tapestry_finetune.assistants import Assistant
from tapestry_finetune.speaking import PLAIN, Asked, Person, Told, speak

_log = logging.getLogger(__name__)


class Answer:
    """An answer that is on its way."""

    def __init__(self, asked: Asked, loop: asyncio.AbstractEventLoop) -> None:
        """To `asked`, for who waits in `loop`."""
        self.asked = asked
        self.told = Told()
        self.is_begun = False
        self._loop = loop
        self._pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self._gone = threading.Event()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self._gone.is_set()

    def deliver(self, piece: str | BaseException | None) -> None:
        """Pass a piece on, why there is none, or None at the end; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the server has ended
            self._gone.set()

    async def next_piece(self) -> str | None:
        """Wait for the next piece; None: the answer has ended.

        Raises:
            TapestryError: It cannot be given, or the model failed.
        """
        piece = await self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        return piece

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces; whoever stops listening stops the model."""
        try:
            while (piece := await self.next_piece()) is not None:
                yield piece
        finally:
            self.leave()

    def leave(self) -> None:
        """Stop the model; nobody waits any more."""
        self._gone.set()

    def stop(self) -> None:
        """Stop the model and end the answer with what there is."""
        self.leave()
        self._pieces.put_nowait(None)


class Speaker:
    """Answers one question after the other, in a thread of its own."""

    def __init__(
        self, assistant: Assistant, persons: Mapping[str | None, Person], *, most_waiting: int
    ) -> None:
        """Let `assistant` answer.

        Args:
            assistant: The base and its bundles.
            persons: How each of them speaks.
            most_waiting: Questions that wait while one is answered; more are refused.
        """
        self.assistant = assistant
        self.persons = persons
        self._most_waiting = most_waiting
        self._waiting: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._current: Answer | None = None
        self._thread = threading.Thread(target=self._work, name="speaker", daemon=True)
        self._thread.start()

    def ask(self, asked: Asked) -> Answer:
        """Put a question in the line; called in an event loop.

        Raises:
            RejectedError: There is no such model.
            UnavailableError: Too many are waiting, or the server ends.
        """
        if asked.model is not None and asked.model not in self.assistant.bundles:
            raise RejectedError(f"no model {asked.model!r} here")
        answer = Answer(asked, asyncio.get_running_loop())
        with self._changed:
            if self._is_closed:
                raise UnavailableError("the server is ending")
            self._waiting = deque(one for one in self._waiting if one.is_wanted)
            if len(self._waiting) >= self._most_waiting:
                raise UnavailableError(
                    f"{len(self._waiting)} questions are waiting: try again in a moment"
                )
            self._waiting.append(answer)
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Stop what is being said, and answer nothing more."""
        with self._changed:
            self._is_closed = True
            left, self._waiting = list(self._waiting), deque()
            current = self._current
            self._changed.notify()
        if current is not None:
            current.leave()
        for answer in left:
            answer.deliver(UnavailableError("the server is ending"))
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                answer = self._current = self._waiting.popleft()
            self._give(answer)

    def _give(self, answer: Answer) -> None:
        if not answer.is_wanted:
            return
        answer.is_begun = True
        model = answer.asked.model
        try:
            with self.assistant.speaking_as(model) as voice:
                pieces = speak(voice, answer.asked, self.persons.get(model, PLAIN), answer.told)
                for piece in pieces:
                    if not answer.is_wanted:
                        break
                    answer.deliver(piece)
                pieces.close()  # type: ignore[attr-defined]
            answer.deliver(None)
        except TapestryError as error:
            answer.deliver(error)
        except Exception as error:  # noqa: BLE001 - logged whole; the next one is still answered
            _log.exception("a bug while answering")
            answer.deliver(error)
