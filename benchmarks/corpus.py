"""What it costs to prepare a corpus, and to start with a prepared one.

Preparation is timed in processor seconds of the whole process, so the figures are for one core
whoever else uses the machine: reading, filters, languages, exact and near-duplicates; then the
tokenizer apart, which works on all cores. Reading the same files as plain text is the limit.

    python benchmarks/corpus.py --text /srv/texts --megabytes 60
    python benchmarks/corpus.py --gigabytes 10
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from running import save

from tapestry.data.batches import TrainingBatches
from tapestry.data.corpus import META_FILE, prepare_corpus, read_packed
from tapestry.data.counting import use_of
from tapestry.data.files import list_files
from tapestry.data.packing import STARTS_FILE, TRAIN_FILE
from tapestry.data.reading import read_files
from tapestry.data.sifting import sifting
from tapestry.data.sources import CorpusSpec, Filters, Source
from tapestry.data.tokenizer import byte_tokenizer, train_tokenizer

_SEQUENCE_TOKENS = 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="files or folders of one language each")
    parser.add_argument("--megabytes", type=int, default=40, help="of made text without --text")
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of packed tokens, sparse")
    parser.add_argument("--files", type=int, default=2000, help="of the prepared corpus")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open is not None:
        print(json.dumps(opened(args.open)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = args.text or made_text(folder / "text", args.megabytes)
        preparation = prepared(text, folder)
        start_up = started(folder / "large", args.gigabytes, args.files)
    save("corpus", {"preparation": preparation, "start_up": start_up})


def made_text(folder: Path, megabytes: int) -> Path:
    """Write documents of words drawn by rank, of 2 kB in the mean, and one in ten twice."""
    folder.mkdir()
    random = np.random.Generator(np.random.PCG64(0))
    syllables = np.array(
        ["ka", "lo", "mi", "ten", "sur", "ve", "ra", "ni", "do", "pel", "tro", "ge"]
    )
    words = ["".join(random.choice(syllables, n)) for n in random.integers(1, 5, 20_000)]
    documents: list[str] = []
    size = 0
    while size < megabytes * 1_000_000:
        ranks = random.zipf(1.3, int(random.exponential(330)) + 20) % len(words)
        document = " ".join(words[rank] for rank in ranks)
        if documents and random.random() < 0.1:
            document = documents[-1] + " again"
        documents.append(document)
        size += len(document) + 2
    (folder / "made.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return folder


def prepared(text: Path, folder: Path) -> dict[str, float]:
    """Time the parts of a preparation, each alone."""
    entries = sorted(text.iterdir()) if text.is_dir() else [text]
    sources = tuple(
        Source(
            name=entry.name,
            paths=(entry,),
            language=entry.name if len(entry.name) == 3 and entry.is_dir() else "mul",
        )
        for entry in entries
        if entry.is_dir() or entry.suffix == ".txt"
    )
    files = list_files([path for source in sources for path in source.paths])
    # the first reading imports much
    for _found in read_files(files[:1]):
        pass
    began = time.process_time()
    texts = [text for _file, _line, text in read_files(files)]
    read_seconds = time.process_time() - began
    size = sum(len(one.encode()) for one in texts)
    print(f"{len(texts):,} documents, {size:,} bytes, {size / len(texts):,.0f} in the mean")
    figures = {"bytes": float(size), "documents": float(len(texts))}
    figures["reading"] = size / read_seconds
    print(f"  {'reading alone':<44} {size / read_seconds / 1e6:8.1f} MB/s a core")
    for name, filters in (
        ("exact duplicates", Filters(duplicates="exact", wrong_language="keep")),
        ("near-duplicates", Filters(duplicates="near", wrong_language="keep")),
        ("near-duplicates and languages", Filters()),
    ):
        spec = CorpusSpec(sources=sources, filters=filters)
        target = folder / name
        target.mkdir()
        began, wall = time.process_time(), time.perf_counter()
        with sifting(spec, spec.files(), target) as sifted:
            seconds, wall = time.process_time() - began, time.perf_counter() - wall
            left_out = sum(sum(one.dropped.values()) for one in sifted.reports)
        figures[name] = size / seconds
        print(
            f"  {'reading, ' + name:<44} {size / seconds / 1e6:8.1f} MB/s a core "
            f"({wall:.1f} s by the clock; {left_out:,} left out)"
        )
    tokenizer = train_tokenizer(texts[::20], vocabulary_size=16_384)
    began = time.process_time()
    for first in range(0, len(texts), 256):
        tokenizer.encode_batch_fast(texts[first : first + 256], add_special_tokens=False)
    figures["tokenizer"] = size / (time.process_time() - began)
    print(f"  {'tokenizer (16,384), apart':<44} {figures['tokenizer'] / 1e6:8.1f} MB/s a core")
    print(f"  most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024:,} MiB")
    return figures


def started(folder: Path, gigabytes: float, files: int) -> dict[str, float]:
    """Make a prepared corpus of that size and open it in a process of its own."""
    (folder / "text").mkdir(parents=True)
    for number in range(files):
        path = folder / "text" / f"{number}.md"
        path.write_text(f"Text {number} of many, to be packed.", encoding="utf-8")
    corpus = _corpus(folder)
    packed = read_packed(corpus.folder)
    assert packed is not None
    tokens, documents = int(gigabytes * 1e9) // 2, int(gigabytes * 1e9) // 1000
    with (corpus.folder / TRAIN_FILE).open("r+b") as file:
        file.truncate(tokens * 2)
    starts = np.linspace(0, tokens, documents + 1).astype(np.uint64)
    (corpus.folder / STARTS_FILE).write_bytes(starts.tobytes())
    part = replace(packed.parts[0], tokens=tokens, documents=documents)
    larger = replace(packed, train_tokens=tokens, train_documents=documents, parts=[part])
    (corpus.folder / META_FILE).write_text(json.dumps(asdict(larger)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, __file__, "--open", folder], capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    print(f"a prepared corpus of {gigabytes:g} GB, {files:,} files, {documents:,} documents:")
    for what, seconds in figures.items():
        print(f"  {what:<44} {seconds:8.2f} s")
    return figures


def opened(folder: Path) -> dict[str, float]:
    """Open a prepared corpus and draw from it; return seconds."""
    began = time.perf_counter()
    corpus = _corpus(folder)
    ready = time.perf_counter()
    batches = TrainingBatches(
        corpus.train,
        None,
        sequences=32,
        sequence_tokens=_SEQUENCE_TOKENS,
        shared_fraction=0.0,
        seed=0,
        streams=corpus.streams,
    )
    batches.batch(0)
    drawn = time.perf_counter()
    use_of(corpus, batches, first_batch=0, batches_taken=100)
    counted = time.perf_counter()
    return {
        "files looked at, tokens mapped": ready - began,
        "order drawn, first batch": drawn - ready,
        "documents of 100 batches counted": counted - drawn,
    }


def _corpus(folder: Path):  # noqa: ANN202
    return prepare_corpus(
        [folder / "text"],
        byte_tokenizer(),
        end_of_text_id=0,
        cache_folder=folder / "cache",
        sequence_tokens=_SEQUENCE_TOKENS,
    )


if __name__ == "__main__":
    main()
