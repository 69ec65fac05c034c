"""`tapestry finetune language` and `sample`: parse, call, render."""

from pathlib import Path
from typing import Annotated

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import default_home
from tapestry.errors import ConfigError
from tapestry_finetune.options import Device, Federation


def language(
    checkpoint: Annotated[Path, typer.Argument(help="A published checkpoint's folder.")],
    out: Annotated[Path, typer.Argument(help="New folder for the localized model.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Text: files or folders of .txt, .md, .jsonl, .parquet."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 200,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: half of the federation's.")
    ] = None,
    sequences: Annotated[int | None, typer.Option(help="Sequences in a batch.")] = None,
    federation: Federation = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the data order.")] = 0,
) -> None:
    """Train a verified consensus checkpoint on with your own text; the result is yours.

    Example: tapestry finetune language published/round-000020 my-model --data texts/
    """
    from tapestry.objectives.reports import StepReport  # noqa: PLC0415
    from tapestry_finetune.language import LanguageRun, train_language  # noqa: PLC0415

    if not data:
        raise ConfigError("no text given: add --data PATH (a file or a folder)")
    run = LanguageRun(
        checkpoint=checkpoint,
        data=data,
        out=out,
        steps=steps,
        learning_rate=learning_rate,
        sequences=sequences,
        device=device,
        seed=seed,
        cache=default_home("finetune") / "corpus",
    )
    with bar() as shown:

        def on_step(report: StepReport) -> bool:
            note = f"loss {report.loss:.3f}"
            shown.show("training", report.step, steps, unit="steps", note=note)
            return True

        parentage = train_language(
            run,
            federation=federation,
            on_step=on_step,
            on_packing=lambda doing, done, of: shown.show(doing, done, of, unit="bytes"),
        )
    before, after = (parentage.held_out_bits_per_byte[k] for k in ("before", "after"))
    typer.echo(f"{out}: {parentage.steps} steps from checkpoint {parentage.round}")
    typer.echo(f"  held-out bits per byte  {before:.4f} before, {after:.4f} after")
    typer.echo(f"  try it                  tapestry finetune sample {out} --prompt '...'")


def sample(
    model: Annotated[Path, typer.Argument(help="A model's folder: localized or consensus.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    tokens: Annotated[int, typer.Option(help="Tokens to write.")] = 80,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
) -> None:
    """Let a model continue a text. A base model continues; it does not answer."""
    from tapestry.objectives.sampling import sample_text  # noqa: PLC0415 - imports torch

    typer.echo(sample_text(model, prompt=prompt, tokens=tokens, temperature=temperature, seed=seed))
