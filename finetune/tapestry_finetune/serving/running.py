"""The process of `tapestry serve`."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from tapestry.web.serving import application, attach, listen, run
from tapestry_finetune.assistants import Assistant
from tapestry_finetune.ratings import Ratings
from tapestry_finetune.serving.api import add_api
from tapestry_finetune.serving.door import Door, is_loopback, token_from
from tapestry_finetune.serving.speaker import Speaker
from tapestry_finetune.speaking import Person
from tapestry_finetune.wording import Wording

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """Where and how."""

    host: str
    port: int
    """0: a free one."""
    token_file: Path | None
    ratings: Path
    wording: Wording
    most_waiting: int


def serve(
    assistant: Assistant,
    persons: Mapping[str | None, Person],
    serving: Serving,
    *,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> None:
    """Serve endpoint and page until SIGINT or SIGTERM.

    Args:
        assistant: The base and its bundles.
        persons: How each of them speaks.
        serving: Where and how.
        clock: Unix seconds.
        say: Takes the address when the server listens.

    Raises:
        ConfigError: The port is in use, or there is no token where one is needed.
    """
    token = token_from(serving.token_file, host=serving.host)
    remedy = "stop the other process, or choose another --port"
    with closing(listen(serving.host, serving.port, remedy=remedy)) as listening:
        bound = listening.getsockname()[1]
        speaker = Speaker(assistant, persons, most_waiting=serving.most_waiting)
        app = application(lambda: False, stop=speaker.close)
        add_api(app, speaker, clock=clock)
        _add_page(app, speaker, serving)
        local = is_loopback(serving.host)
        door = Door(app, token=token, port=bound, is_local=local)
        shown = f"[{serving.host}]" if ":" in serving.host else serving.host
        _log.info("serving http://%s:%d for %d models", shown, bound, len(assistant.names) + 1)
        say(f"http://{shown}:{bound}")
        run(door, listening)


def _add_page(app: FastAPI, speaker: Speaker, serving: Serving) -> None:
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(serving.ratings / ".nicegui"))
    from nicegui import ui  # noqa: PLC0415 - reads the variable when it is imported

    from tapestry_finetune.serving.page import Visitor  # noqa: PLC0415

    ratings = Ratings(serving.ratings)

    @ui.page("/", title="Tapestry", language="en-US")
    def show() -> None:
        Visitor(speaker, ratings, serving.wording).build()

    attach(app)
