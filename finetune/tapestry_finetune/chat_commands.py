"""`tapestry chat`; torch is imported when it runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import default_home
from tapestry_finetune.options import CommunityKey, Device, Federation, Unverified, require_folders

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="A bundle's folder, or a published checkpoint's.")],
    base: Annotated[
        Path | None, typer.Option(help="The checkpoint that the bundle was made for.")
    ] = None,
    charter: Annotated[
        Path | None, typer.Option(help="Another charter than the bundle's; its guard watches.")
    ] = None,
    charter_prompt: Annotated[
        bool, typer.Option("--charter-prompt", help="Tell the model the charter first.")
    ] = False,
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut.")] = 512,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    strings: Annotated[
        str | None, typer.Option(help="Language of the messages: en, es, or a file of yours.")
    ] = None,
    ratings: Annotated[Path | None, typer.Option(help="Folder for /good and /bad.")] = None,
    federation: Federation = None,
    key: CommunityKey = None,
    unverified: Unverified = False,
    device: Device = "auto",
) -> None:
    """Talk with a model at the terminal; /help there shows what else it does.

    Ctrl-C stops an answer, Ctrl-D or /quit leaves. Through a pipe, one line is one turn.

    Example: tapestry chat our-bundle --base published/round-000020
    """
    require_folders(model, base)
    from tapestry_finetune.assistants import load_assistant  # noqa: PLC0415 - imports torch
    from tapestry_finetune.base import describe  # noqa: PLC0415
    from tapestry_finetune.conversing import Conversation, Manner  # noqa: PLC0415
    from tapestry_finetune.opening import open_model  # noqa: PLC0415
    from tapestry_finetune.ratings import Ratings  # noqa: PLC0415
    from tapestry_finetune.speaking import person_of  # noqa: PLC0415
    from tapestry_finetune.terminal import Terminal, written_lines  # noqa: PLC0415
    from tapestry_finetune.wording import load_wording  # noqa: PLC0415

    wording = load_wording(strings)
    with bar() as drawn:
        drawn.show("verifying")
        opened = open_model(model, base=base, federation=federation, key=key, unverified=unverified)
        bundle = opened.bundle
        name = None if bundle is None else bundle.name
        own = None if bundle is None else bundle.charter_path()
        person = person_of(charter or own, is_told=charter_prompt)
        drawn.show("loading the model")
        bundles = {} if bundle is None else {bundle.name: bundle}
        assistant = load_assistant(opened.base, bundles, device=device)
    manner = Manner(most_tokens=tokens, temperature=temperature, seed=seed)
    conversation = Conversation(assistant, name, person, manner)
    if system:
        conversation.tell_first(system)
    folder = ratings or default_home("finetune") / "ratings"
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        consensus = describe(opened.base.identity)
        typer.echo(wording("chat.greeting", name=name or consensus, base=consensus))
    terminal = Terminal(conversation, Ratings(folder), wording, sys.stdout)
    terminal.talk(written_lines(f"{wording('chat.you')}> ", is_terminal=is_terminal))
