"""`tapestry export`; torch is imported when it runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tapestry.cli.bars import bar
from tapestry_finetune.options import CommunityKey, Federation, Unverified, require_folders

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A bundle's folder, or a published checkpoint's.")],
    format_name: Annotated[
        str, typer.Option("--format", help="adapter, merged, gguf or gguf-lora.")
    ],
    out: Annotated[Path, typer.Option(help="New file (gguf) or folder (adapter, merged).")],
    base: Annotated[
        Path | None, typer.Option(help="The checkpoint that the bundle was made for.")
    ] = None,
    type_name: Annotated[
        str | None,
        typer.Option(
            "--type", help="Of the numbers: f32, f16; gguf also q8_0, q4_0. Default: f16 for gguf."
        ),
    ] = None,
    federation: Federation = None,
    key: CommunityKey = None,
    unverified: Unverified = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write it although it is not to be passed on."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Tell the result as JSON.")] = False,
) -> None:
    """Write a model for other programs, load it back, and compare what the two predict.

    [b]merged[/b]: a folder that transformers and vLLM load. [b]gguf[/b]: one file for llama.cpp,
    Ollama, LM Studio; q8_0 is half as large as f16, q4_0 a quarter and coarser. [b]adapter[/b]:
    what peft loads. [b]gguf-lora[/b]: what llama.cpp adds to a base's GGUF with --lora.

    Nothing appears under the name unless it loads and predicts what the model predicts.

    Example: tapestry export our-bundle --base published/round-000020 --format gguf --out our.gguf
    """
    require_folders(model, base)
    from tapestry_finetune.export.exporting import Order  # noqa: PLC0415 - imports torch
    from tapestry_finetune.export.exporting import export as carry_out  # noqa: PLC0415
    from tapestry_finetune.opening import open_model  # noqa: PLC0415

    with bar() as shown:
        shown.show("verifying")
        opened = open_model(model, base=base, federation=federation, key=key, unverified=unverified)
        order = Order(
            base=opened.base,
            bundle=opened.bundle,
            format=format_name,
            out=out,
            type_name=type_name,
            is_forced=force,
        )
        exported = carry_out(order, on_progress=shown.show)
    if as_json:
        typer.echo(json.dumps(asdict(exported) | {"out": str(out)}))
        return
    typer.echo(f"{out}: {exported.size_bytes / 1e6:,.1f} MB, {exported.type_name}")
    typer.echo(f"  loaded back  {exported.agreement}")
    if exported.agreement.same_first < 0.9:
        typer.echo("  coarse       these numbers cost a model of this size much: try --type q8_0")
    for remark in exported.remarks:
        typer.echo(f"  note         {remark}")
    typer.echo(f"  use it       {_used_by(exported.format, out)}")


def _used_by(format_name: str, out: Path) -> str:
    """Return a command that uses what was written."""
    return {
        "merged": f"vllm serve {out}",
        "gguf": f"llama-cli -m {out}",
        "gguf-lora": f"llama-cli -m BASE.gguf --lora {out}",
        "adapter": f"peft.PeftModel.from_pretrained(base, {str(out)!r})",
    }[format_name]
