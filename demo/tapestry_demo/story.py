"""The demonstration from beginning to end, as a person follows it."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tapestry.errors import ConfigError
from tapestry.storage.atomic import write_atomic
from tapestry_coordinator import settings as settings_module
from tapestry_demo import report
from tapestry_demo.federation import (
    Institution,
    Processes,
    Scale,
    call,
    coordinator_home,
    found_federation,
    join_all,
    tapestry_command,
    wait_for_port,
)
from tapestry_demo.jobs import Job, write_job
from tapestry_demo.report import Results
from tapestry_demo.texts import POOL_FOLDER, write_texts
from tapestry_demo.view import Work, watch_jobs, watch_rounds
from tapestry_demo.workers import COMPARE, Workers

FULL = Scale(
    rounds=12,
    inner_steps=10,
    sequences=6,
    learning_rate=4e-3,
    held_out_bytes=32_768,
    bytes_per_language=3_000_000,
    localize_steps=40,
)
QUICK = Scale(
    rounds=3,
    inner_steps=6,
    sequences=6,
    learning_rate=4e-3,
    held_out_bytes=8_192,
    bytes_per_language=400_000,
    localize_steps=8,
)
_POOL_FRACTION = 0.1
_TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
_PLOT_FILE = "comparison.png"
_CARD_SECONDS = 60.0


def tell(folder: Path, *, quick: bool, data: Path | None, keep: bool) -> None:
    """Run the demonstration in `folder`.

    Args:
        folder: New or empty.
        quick: Run the short form.
        data: The reader's own text, or None for the packaged one.
        keep: Keep everything; otherwise only the checkpoint, the plot and the localized model.
    """
    began = time.monotonic()
    console = Console()
    scale = QUICK if quick else FULL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        workers = Workers(folder / "logs")
        texts = _texts(console, folder, data, scale)
        results = _federate(console, workers, folder, texts, scale)
        _show(console, folder, results, texts[1])
        _localize(console, workers, folder, results)
        _what_next(console, folder, keep=keep)
    except BaseException:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if not keep:
        for name in ("nodes", "jobs", "texts", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
    console.print(f"\nall of this took {time.monotonic() - began:.0f} s")


def _texts(
    console: Console, folder: Path, data: Path | None, scale: Scale
) -> tuple[list[Institution], Path | None]:
    """Return the institutions with their text, and the open pool."""
    console.rule("1. four institutions, four languages")
    if data is not None:
        return _own_texts(console, data)
    texts = folder / "texts"
    written = write_texts(
        texts, bytes_per_language=scale.bytes_per_language, pool_fraction=_POOL_FRACTION
    )
    institutions = []
    for text in written:
        source = text.source
        console.print(
            f"  {source.member_id}: {source.language_name}, {text.own_bytes:,} bytes "
            f"({source.description}; package {source.package} {source.version}, "
            f"{source.licence})",
            highlight=False,
        )
        institutions.append(
            Institution(member_id=source.member_id, language=source.language, text=text.path)
        )
    pool_bytes = sum(text.pool_bytes for text in written)
    console.print(
        f"  open pool, seen by all: {pool_bytes:,} bytes, {_POOL_FRACTION:.0%} of each language's "
        "documents, kept out of every institution's own text. Being from the same books, it helps "
        "more than a real open pool would."
    )
    return institutions, texts / POOL_FOLDER


def _own_texts(console: Console, data: Path) -> tuple[list[Institution], Path | None]:
    """Take each sub-folder of the reader's folder as an institution.

    Raises:
        ConfigError: There are fewer than two.
    """
    if not data.is_dir():
        raise ConfigError(f"{data}: no such folder")
    folders = sorted(path for path in data.iterdir() if path.is_dir() and path.name != POOL_FOLDER)
    if len(folders) < 2:
        raise ConfigError(
            f"{data}: has {len(folders)} sub-folders; a federation needs one for each of two or "
            f"more institutions, with text files ({', '.join(_TEXT_SUFFIXES)})"
        )
    institutions = [Institution(member_id=f.name, language=f.name, text=f) for f in folders]
    for institution in institutions:
        console.print(f"  {institution.member_id}: {institution.text}")
    pool = data / POOL_FOLDER
    return institutions, pool if pool.is_dir() else None


def _federate(
    console: Console,
    workers: Workers,
    folder: Path,
    texts: tuple[list[Institution], Path | None],
    scale: Scale,
) -> Results:
    """Found the federation, run its rounds, and compare."""
    institutions, pool = texts
    console.rule("2. a federation of separate processes")
    console.print("  founding: root of trust, tokenizer from the open pool, genesis checkpoint ...")
    members = len(institutions)
    found_federation(workers, folder / "coordinator", pool, scale, members=members)
    home = coordinator_home(folder)
    with Processes(folder / "logs") as processes:
        processes.start("coordinator", tapestry_command("coordinator", "serve", str(home.folder)))
        wait_for_port(processes, home, seconds=60)
        console.print("  joining: invitation, keys made at the node, certificate ...")
        join_all(folder, institutions, scale)
        for institution in institutions:
            arguments = ["node", "run", str(institution.home(folder)), "--until-finished"]
            processes.start(
                institution.member_id,
                tapestry_command(*arguments, "--data", str(institution.text)),
            )
        console.print(f"  training: {scale.rounds} rounds of {scale.inner_steps} inner steps ...")
        watch_rounds(console, folder, institutions, scale, processes)
        _wait_for_card(folder, len(institutions))
    console.rule("3. compared with training alone, and with all text in one place")
    return _compare(console, workers, folder, texts, scale)


def _wait_for_card(folder: Path, members: int) -> None:
    """Wait until the newest checkpoint's card has every member's measurement."""
    home = coordinator_home(folder)
    deadline = time.monotonic() + _CARD_SECONDS
    while time.monotonic() < deadline:
        newest = json.loads(call("checkpoint", "list", str(home.published), "--json"))[-1]
        if len(newest["bits_per_byte"]) == members:
            return
        time.sleep(0.5)


def _compare(
    console: Console,
    workers: Workers,
    folder: Path,
    texts: tuple[list[Institution], Path | None],
    scale: Scale,
) -> Results:
    institutions, pool = texts
    home = coordinator_home(folder)
    settings = home.load_settings()
    inner = settings.inner.settings().model_dump()
    genesis, newest = home.checkpoint(0), home.checkpoint(scale.rounds)
    jobs_folder = folder / "jobs"
    jobs_folder.mkdir()

    def job(name: str, start: Path, train_on: Sequence[str], steps: int) -> Job:
        return Job(
            name=name,
            start=str(start),
            train_on=tuple(train_on),
            steps=steps,
            texts={i.member_id: str(i.text) for i in institutions},
            caches={i.member_id: str(i.home(folder) / "corpus") for i in institutions},
            pool=None if pool is None else str(home.pool),
            shared_fraction=settings.shared.fraction,
            inner=inner,
            held_out_bytes=scale.held_out_bytes,
            result=str(jobs_folder / f"{name}.result.json"),
            progress=str(jobs_folder / f"{name}.progress"),
        )

    members = [i.member_id for i in institutions]
    central = [job("central", genesis, members, scale.steps)]
    alone = [job(f"alone-{m}", genesis, [m], scale.steps) for m in members]
    alone += [job("consensus", newest, [], 0)]
    finished = [job(f"finished-{m}", folder / "finished" / m, [], 0) for m in members]
    (folder / "finished").mkdir()
    with Processes(folder / "logs") as processes:
        works = [_finishing(folder, institution) for institution in institutions]
        works += [
            _comparing("central", jobs_folder, central + finished[::2]),
            _comparing("alone", jobs_folder, alone + finished[1::2]),
        ]
        watch_jobs(console, works, processes, workers)
    return Results(
        institutions=institutions,
        scale=scale,
        tokens_per_step=settings.inner.sequences * settings.inner.sequence_tokens,
        alone={m: _result(jobs_folder, f"alone-{m}") for m in members},
        finished={m: _result(jobs_folder, f"finished-{m}") for m in members},
        consensus=_result(jobs_folder, "consensus"),
        central=_result(jobs_folder, "central"),
        history=_history(home.published),
    )


def _finishing(folder: Path, institution: Institution) -> Work:
    """Return a node's local finish."""
    out, home = folder / "finished" / institution.member_id, institution.home(folder)
    command = ["node", "finish", str(out), "--dir", str(home), "--data", str(institution.text)]
    return Work(name=f"finish-{institution.member_id}", command=command)


def _comparing(name: str, folder: Path, jobs: Sequence[Job]) -> Work:
    """Return a process that does `jobs` one after the other."""
    paths = [folder / f"{job.name}.json" for job in jobs]
    for path, job in zip(paths, jobs, strict=True):
        write_job(path, job)
    return Work(
        name=name,
        command=[COMPARE, *map(str, paths)],
        steps=sum(job.batches for job in jobs),
        progress=[(Path(job.progress), max(1, len(job.train_on))) for job in jobs],
    )


def _result(folder: Path, name: str) -> dict[str, float]:
    table: dict[str, float] = json.loads((folder / f"{name}.result.json").read_text())
    return table


def _history(published: Path) -> dict[str, dict[int, float]]:
    """Return what each member measured, by round."""
    history: dict[str, dict[int, float]] = {}
    for row in json.loads(call("checkpoint", "list", str(published), "--json")):
        for member_id, value in row["bits_per_byte"].items():
            history.setdefault(member_id, {})[row["round"]] = value
    return history


def _show(console: Console, folder: Path, results: Results, pool: Path | None) -> None:
    """Print the table, write the plot, and put both into the model card."""
    home = coordinator_home(folder)
    console.print(report.rich_table(results))
    console.print(report.explanation(results))
    if pool is not None:
        fraction = home.load_settings().shared.fraction
        console.print(
            f"{fraction:.0%} of every node's batches, and of central's, came from the open pool."
        )
    plot_path = folder / _PLOT_FILE
    write_atomic(plot_path, report.plot(results))
    notes = folder / "comparison.md"
    write_atomic(notes, report.markdown(results, f"tapestry/{_PLOT_FILE}"))
    call(
        "coordinator", "annotate", str(results.scale.rounds), "--dir", str(home.folder),
        "--notes", str(notes), "--image", str(plot_path),
    )  # fmt: skip
    console.print(f"plot: {plot_path}")
    console.rule("4. a checkpoint that anyone can verify")
    newest = home.checkpoint(results.scale.rounds)
    identity = home.load_genesis().genesis_digest[:16]
    console.print(call("checkpoint", "verify", str(newest), "--federation", identity).strip())
    console.print(
        f"\n  tapestry checkpoint verify {newest} --federation {identity}",
        soft_wrap=True,
        highlight=False,
    )
    console.rule("5. what left each institution, and what stayed")
    for institution in results.institutions:
        node = institution.home(folder)
        audit = json.loads(call("node", "audit", str(node), "--json"))
        stayed = _size(institution.text)
        console.print(
            f"  {institution.member_id}: {audit['bytes']:,} bytes of messages out (parameter "
            f"vectors, digests, scores; the ledger's chain is {audit['chain']}), {stayed:,} bytes "
            "of text stayed",
            highlight=False,
        )


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files)


def _localize(console: Console, workers: Workers, folder: Path, results: Results) -> None:
    """Train the consensus on for one language, and let it write."""
    institution = results.institutions[0]
    console.rule(f"6. a localized model: {institution.language}")
    checkpoint = coordinator_home(folder).checkpoint(results.scale.rounds)
    out = folder / "localized" / institution.language
    out.parent.mkdir()
    settings = settings_module.load(folder / "coordinator")
    said = workers.call(
        "finetune", "language", str(checkpoint), str(out), "--data", str(institution.text),
        "--steps", str(results.scale.localize_steps), "--seed", "1",
        "--learning-rate", str(settings.inner.learning_rate / 2),
    )  # fmt: skip
    console.print(said.strip(), highlight=False)
    prompt = " ".join(_first_words(institution.text, 4))
    sample = workers.call("finetune", "sample", str(out), "--prompt", prompt, "--tokens", "60")
    console.print("  its text (the first words are given; a model this small babbles):")
    console.print(f"  {sample.strip()}", style="italic", highlight=False, markup=False)


def _first_words(path: Path, count: int) -> list[str]:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*.txt") if f.is_file())
    return files[0].read_text(encoding="utf-8")[:400].split()[:count] if files else []


def _what_next(console: Console, folder: Path, *, keep: bool) -> None:
    console.rule("7. your own federation")
    console.print(
        "  tapestry coordinator init fed --name NAME --address HOST:7443 --pool OPEN_TEXT\n"
        "  tapestry coordinator invite MEMBER --dir fed        and then: "
        "tapestry coordinator serve fed\n"
        "  tapestry node join INVITATION --dir node             and then: "
        "tapestry node run node --data YOUR_TEXT",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"\nkept in {folder}" + ("" if keep else " (checkpoints, plot, models)"))
