"""Taking a source out of training, and what a node knows of its sources."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from tapestry.data.corpus import packed_corpora, remove_packed
from tapestry.data.sifting import SourceReport, sifting
from tapestry.data.sources import CORPUS_FILE, CorpusSpec, read_table
from tapestry.storage.atomic import TEMPORARY_SUFFIX
from tapestry_node.corpus_history import forgotten, read_history, record_forgotten, rounds_of
from tapestry_node.home import NodeHome


def forget(home: NodeHome, source: str) -> tuple[int, list[int]]:
    """Take a source out of all further rounds; delete what is packed of it, and a half round.

    A round that is under way goes on with the text it began with, and is not kept any more before
    it has ended (`unfinished`).

    Returns:
        How many packed corpora were deleted, and the rounds in which the source took part.
    """
    history = read_history(home.corpus)
    rounds = rounds_of(history, source)
    record_forgotten(home.corpus, source=source, rounds=rounds)  # first: it is packed no more
    home.unfinished.unlink(missing_ok=True)
    return remove_packed(home.corpus, source), rounds


def known_sources(home: NodeHome) -> dict[str, str]:
    """Return the names that this node knows, each with the day on which it was forgotten, or "".

    The federation's open pool is packed like them, and is no source of the institution's.
    """
    history = read_history(home.corpus)
    names = {
        report.name for _folder, packed in packed_corpora(home.corpus) for report in packed.sources
    }
    names -= {path.name for path in (home.folder / "pool").glob("*")}
    names |= {one["name"] for entry in history for one in entry.get("sources", ())}
    path = home.folder / CORPUS_FILE
    if path.is_file():
        names |= {source.name for source in read_table(path).source}
    gone = forgotten(history)
    return {name: gone.get(name, "") for name in names | set(gone)}


def sifted_reports(
    home: NodeHome, spec: CorpusSpec, *, on_read: Callable[[int], None] | None = None
) -> list[SourceReport]:
    """Read all of a corpus's files and return what would become of them; nothing is kept.

    `on_read` is told how many bytes of text were read.
    """
    with (
        tempfile.TemporaryDirectory(dir=home.corpus, prefix=".", suffix=TEMPORARY_SUFFIX) as folder,
        sifting(spec, spec.files(), Path(folder), on_read=on_read) as sifted,
    ):
        return sifted.reports
