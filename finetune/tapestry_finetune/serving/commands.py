"""`tapestry serve`; torch and the server are imported when it runs."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from tapestry.cli.running import default_home, log_to_stderr
from tapestry.errors import ConfigError
from tapestry_finetune.options import Device, Federation, Unverified, require_folders

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)
_PORT = 7447


@app.command()
def serve(
    base: Annotated[Path, typer.Option(help="The checkpoint that the bundles were made for.")],
    bundles: Annotated[list[Path] | None, typer.Argument(help="Folders of bundles.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = _PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Holds the token that callers need; made if it is not there (0600)."),
    ] = None,
    charter: Annotated[
        Path | None, typer.Option(help="A charter whose guard watches over every model.")
    ] = None,
    charter_prompt: Annotated[
        bool, typer.Option("--charter-prompt", help="Tell each bundle its charter first.")
    ] = False,
    strings: Annotated[
        str | None, typer.Option(help="Language of the page: en, es, or a file of yours.")
    ] = None,
    ratings: Annotated[Path | None, typer.Option(help="Folder for what people judged.")] = None,
    waiting: Annotated[int, typer.Option(min=1, help="Questions that may wait.")] = 8,
    federation: Federation = None,
    unverified: Unverified = False,
    device: Device = "auto",
    json_log: Annotated[bool, typer.Option("--json-log", help="Log as JSON lines.")] = False,
) -> None:
    """Serve a page and an OpenAI-compatible endpoint until Ctrl-C.

    Models: `consensus`, and each bundle by its name. Endpoint: /v1/models, /v1/chat/completions,
    /health. Only this machine reaches it unless --host says otherwise; then callers need a token,
    and a proxy in front has to speak TLS.

    Example: tapestry serve --base published/round-000020 our-bundle
    """
    log_to_stderr(as_json=json_log, verbose=False)
    require_folders(base, *(bundles or []))
    folder = ratings or default_home("finetune") / "ratings"
    os.environ["NICEGUI_STORAGE_PATH"] = str(folder / ".nicegui")  # read when it is imported
    from tapestry_finetune.assistants import load_assistant  # noqa: PLC0415
    from tapestry_finetune.base import open_base  # noqa: PLC0415
    from tapestry_finetune.bundle import open_bundle  # noqa: PLC0415
    from tapestry_finetune.serving.door import token_from  # noqa: PLC0415
    from tapestry_finetune.serving.requests import CONSENSUS  # noqa: PLC0415
    from tapestry_finetune.serving.running import Serving  # noqa: PLC0415
    from tapestry_finetune.serving.running import serve as run  # noqa: PLC0415
    from tapestry_finetune.speaking import Person, person_of  # noqa: PLC0415
    from tapestry_finetune.wording import load_wording  # noqa: PLC0415

    wording = load_wording(strings)
    token_from(token_file, host=host)  # before a model is loaded
    opened = {}
    for path in bundles or []:
        bundle = open_bundle(path)
        if bundle.name in opened or bundle.name == CONSENSUS:
            raise ConfigError(f"{path}: there is another model called {bundle.name!r}")
        opened[bundle.name] = bundle
    persons: dict[str | None, Person] = {None: person_of(charter, is_told=False)}
    for name, bundle in opened.items():
        persons[name] = person_of(charter or bundle.charter_path(), is_told=charter_prompt)
    assistant = load_assistant(
        open_base(base, federation=federation, unverified=unverified), opened, device=device
    )
    serving = Serving(
        host=host,
        port=port,
        token_file=token_file,
        ratings=folder,
        wording=wording,
        most_waiting=waiting,
    )
    run(assistant, persons, serving, clock=time.time, say=typer.echo)  # noqa: TID251 - the edge
