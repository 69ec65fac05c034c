"""`tapestry node corpus ...` and `tapestry node forget`: parse, call, render."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapestry.cli.bars import bar
from tapestry.cli.running import default_home
from tapestry.errors import ConfigError, TapestryError
from tapestry_node.options import AsJson, Dir, Folder

if TYPE_CHECKING:
    from tapestry.data.sifting import SourceReport
    from tapestry_node.home import NodeHome

corpus = typer.Typer(
    help="Describe your text, check it, see what was left out of it and where it took part.",
    no_args_is_help=True,
)


@corpus.command()
def init(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders: a source each.")],
    folder: Dir = None,
    as_json: AsJson = False,
) -> None:
    """Write a first corpus.toml by looking at your files; what only you know is left to fill in.

    Example: tapestry node corpus init /srv/letters /srv/newspapers --dir node
    """
    from tapestry_node.describing import describe, write_description  # noqa: PLC0415

    home = _home(folder)
    found = [describe(path) for path in paths]
    target = write_description(home, found)
    if as_json:
        table = [one.table() for one in found]
        typer.echo(json.dumps({"path": str(target), "sources": table}, indent=1))
        return
    for one in found:
        typer.echo(f"{one.name:<24} {one.files:>8,} files {one.size_bytes:>16,} bytes  {one.said}")
    typer.echo(f"{target}: fill in licence, jurisdiction and category, then:")
    typer.echo(f"  tapestry node corpus check {home.folder}")


@corpus.command()
def check(folder: Folder = None, as_json: AsJson = False) -> None:
    """Read corpus.toml and look at every path; all faults are said, each with its line.

    Exit code 0: it can be used; 1: it cannot.
    """
    from tapestry_node.governing import corpus_spec  # noqa: PLC0415

    home = _home(folder)
    try:
        spec = corpus_spec(home)
        files = spec.files()
    except TapestryError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"is_usable": False, "faults": str(error).splitlines()}, indent=1))
        raise typer.Exit(1) from error
    rows = []
    for number, source in enumerate(spec.sources):
        own = [file for index, file in files if index == number]
        rows.append(
            {
                "name": source.name,
                "language": source.language,
                "category": source.category,
                "files": len(own),
                "bytes": sum(file.stat().st_size for file in own),
            }
        )
    left_out = [{"name": one.name, "reason": one.reason} for one in spec.left_out]
    if as_json:
        table = {"is_usable": True, "sources": rows, "left_out": left_out}
        typer.echo(json.dumps(table, indent=1))
        return
    for row in rows:
        typer.echo(
            f"{row['name']:<24} {row['language']:<8} {row['category']:<12} "
            f"{row['files']:>8,} files {row['bytes']:>16,} bytes"
        )
    for one in left_out:
        typer.echo(f"{one['name']:<24} left out: {one['reason']}")


@corpus.command()
def report(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show what became of each source's documents: kept, left out and why, by language.

    Reads the newest packed corpus; before anything is packed it reads your files, and keeps
    nothing. Each document that was left out has a line in dropped.jsonl.
    """
    from tapestry.data.corpus import packed_corpora  # noqa: PLC0415
    from tapestry_node.forgetting import sifted_reports  # noqa: PLC0415
    from tapestry_node.governing import corpus_spec  # noqa: PLC0415

    home = _home(folder)
    spec = corpus_spec(home)
    packed = [one for one in packed_corpora(home.corpus) if one[1].origin == spec.origin]
    table: dict[str, Any] = {"packed": None, "dropped": None}
    if packed:
        where, meta = packed[-1]
        reports = meta.sources
        table = {
            "packed": str(where),
            "dropped": str(where / "dropped.jsonl"),
            "digest": meta.digest,
            "train_tokens": meta.train_tokens,
            "held_out_tokens": meta.held_out_tokens,
            "parts": [
                {"source": p.source, "language": p.language, "tokens": p.tokens} for p in meta.parts
            ],
        }
    else:
        with bar() as shown:
            whole = sum(file.stat().st_size for _number, file in spec.files())
            reports = sifted_reports(
                home,
                spec,
                on_read=lambda done: shown.show("reading", done, max(done, whole), unit="bytes"),
            )
    if as_json:
        sources = [asdict(one) for one in reports]
        typer.echo(json.dumps(table | {"sources": sources}, indent=1))
        return
    for one in reports:
        _echo_report(one)
    if packed:
        typer.echo(f"{table['train_tokens']:,} tokens to train on, "
                   f"{table['held_out_tokens']:,} held out")  # fmt: skip
        typer.echo(f"each document that was left out: {table['dropped']}")
    else:
        typer.echo("nothing is packed yet; `tapestry node run` packs, and keeps the list of what "
                   "is left out")  # fmt: skip


@corpus.command()
def history(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show which sources took part in which round, and which were forgotten; verifies the chain."""
    from tapestry_node.corpus_history import read_history  # noqa: PLC0415

    home = _home(folder)
    entries = read_history(home.corpus)
    later: set[int] = set()
    for entry in reversed(entries):
        if entry["event"] == "contributed":  # of what was made for a round, the last one left
            receipt = home.receipts / f"{home.spool(entry['round']).name}.json"
            entry["has_receipt"] = receipt.is_file() and entry["round"] not in later
            later.add(entry["round"])
    if as_json:
        typer.echo(json.dumps({"chain": "whole", "entries": entries}, indent=1))
        return
    for entry in entries:
        if entry["event"] == "forgotten":
            typer.echo(f"{entry['time'][:16]}  forgotten: {entry['source']}")
            continue
        said = "receipt" if entry["has_receipt"] else "no receipt"
        typer.echo(f"{entry['time'][:16]}  round {entry['round']} ({said}), "
                   f"corpus {entry['corpus'][:12]}")  # fmt: skip
        for one in entry["sources"]:
            amounts = f"{one['documents']:>10,} documents {one['tokens']:>14,} tokens"
            typer.echo(f"    {one['name']:<24} {amounts}")
    typer.echo(f"{len(entries):,} entries; the chain is whole")


def forget(
    source: Annotated[str, typer.Argument(help="Its name, as in corpus.toml and in the history.")],
    folder: Dir = None,
    as_json: AsJson = False,
) -> None:
    """Take a source out of training from the next round on, and delete what is packed of it.

    What it has already brought to published checkpoints stays there: see docs/institution.md.

    Example: tapestry node forget letters --dir node
    """
    from tapestry_node.forgetting import forget as forget_source  # noqa: PLC0415
    from tapestry_node.forgetting import known_sources  # noqa: PLC0415

    home = _home(folder)
    known = known_sources(home)
    if source not in known:
        raise ConfigError(
            f"no source is called {source!r}: there are {', '.join(sorted(known)) or 'none'}"
        )
    if day := known[source]:
        raise ConfigError(f"source {source} was forgotten on {day} already")
    had_unfinished = home.unfinished.is_file()
    deleted, rounds = forget_source(home, source)
    waiting = {int(path.name.removeprefix("round-")) for path in home.spooled()}
    unsent = sorted(waiting & set(rounds))
    table = {
        "source": source,
        "packed_corpora_deleted": deleted,
        "rounds": rounds,
        "unsent_rounds": unsent,
        "unfinished_round_deleted": had_unfinished,
    }
    if as_json:
        typer.echo(json.dumps(table, indent=1))
        return
    typer.echo(f"{source} is forgotten: from the next round on nothing of it is trained on; packed "
               f"corpora deleted: {deleted}")  # fmt: skip
    typer.echo(f"it took part in rounds {', '.join(map(str, rounds))}: what those changed in the "
               "model stays" if rounds else "it took part in no round")  # fmt: skip
    if had_unfinished:
        typer.echo("what was kept of a round half trained is deleted: it begins anew")
    for number in unsent:
        typer.echo(f"the contribution to round {number} was made with it and waits to be sent: "
                   f"remove {home.spool(number)} to keep it back")  # fmt: skip
    typer.echo("the files themselves are where they were; remove its [[source]] from corpus.toml")


def _home(folder: Path | None) -> "NodeHome":
    from tapestry_node.home import require_node  # noqa: PLC0415

    return require_node(folder or default_home("node"))


def _echo_report(one: "SourceReport") -> None:
    typer.echo(f"{one.name}: {one.documents:,} documents, {one.text_bytes:,} bytes; "
               f"kept {one.kept:,}, {one.kept_bytes:,} bytes")  # fmt: skip
    for reason, count in sorted(one.dropped.items()):
        typer.echo(f"    left out, {_REASONS[reason]:<22} {count:>12,}")
    for language, count in sorted(one.languages.items(), key=lambda item: -item[1]):
        typer.echo(f"    kept, language {language:<16} {count:>12,}")
    for note in one.notes:
        typer.echo(f"    note: {note}")


_REASONS = {
    "exact": "repeats another",
    "near": "nearly repeats another",
    "language": "another language",
    "short": "too short",
    "long": "too long",
    "unreadable": "unreadable",
}
