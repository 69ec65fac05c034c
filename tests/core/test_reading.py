"""Documents out of files: what is one, what is skipped, what is said of a file that is wrong."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from tapestry.data.cutting import LONGEST_DOCUMENT_CHARACTERS, split_long
from tapestry.data.files import list_files
from tapestry.data.reading import Document, read_documents
from tapestry.errors import ConfigError

NOBODY = 65_534


def texts(*paths: Path) -> list[str]:
    return [document.text for document in read_documents(paths)]


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(*paths: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        texts(*paths)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", "one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("crlf.txt", "one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        ("blanks.txt", "\n\none\n \t\ntwo\n\n\n\nthree", ["one", "two", "three"]),
        ("mark.txt", "\ufeffone\n\ntwo", ["one", "two"]),
        ("controls.txt", "one\x0cstill\u2028one\x85one", ["one\x0cstill\u2028one\x85one"]),
        ("UPPER.TXT", "one", ["one"]),
        ("page.md", "# Title\n\nBody\n", ["# Title\n\nBody"]),
        ("rows.jsonl", '{"text": "one\\n\\nstill"}\r\n\n{"text": "two"}', ["one\n\nstill", "two"]),
        ("mixed.jsonl", '{"text": "one", "n": 1}\n{"n": [], "text": "two"}', ["one", "two"]),
        ("dates.jsonl", '{"text": "2024-01-01"}\n{"text": "12:30"}', ["2024-01-01", "12:30"]),
        ("emoji.jsonl", '{"text": "\\ud83e\\uddf6 ខ្មែរ"}', ["🧶 ខ្មែរ"]),
        ("empty.jsonl", '{"text": " "}\n{"text": "two"}', ["two"]),
    ],
)
def test_what_a_document_is(tmp_path: Path, name: str, content: str, documents: list[str]) -> None:
    file = written(tmp_path / name, content)
    assert list(read_documents([file])) == [Document(text, file) for text in documents]


COMPRESSIONS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_files_are_read_as_what_is_in_them(tmp_path: Path, suffix: str) -> None:
    blocks = "\n\n".join(f"ខ្មែរ {n} " + "word " * 400 for n in range(1500))
    for name, content in (
        ("a.txt", blocks),
        ("b.md", "# Title\n\nBody"),
        ("c.jsonl", '{"text": "one"}\n{"text": "two"}\n'),
    ):
        written(tmp_path / f"{name}{suffix}", COMPRESSIONS[suffix](content.encode()))
    written(tmp_path / "d.parquet.gz", b"not read")
    found = texts(tmp_path)
    assert found == [*(b.strip() for b in blocks.split("\n\n")), "# Title\n\nBody", "one", "two"]
    whole = (tmp_path / f"a.txt{suffix}").read_bytes()
    cut = written(tmp_path / "cut" / f"a.txt{suffix}", whole[: len(whole) // 2])
    assert refusal(cut).startswith(f"{cut}: cannot be read: ")


def test_documents_have_the_line_where_they_begin(tmp_path: Path) -> None:
    long = "word " * 20_000
    content = f"\n \n  one\ntwo\n\n\t\nthree\n\n{long}\nlast"
    file = written(tmp_path / "a.txt", content)
    found = [(document.line, document.text[:5]) for document in read_documents([file])]
    assert found == [(3, "one\ntw"[:5]), (7, "three"), (9, "word "), (9, "word ")]
    rows = written(tmp_path / "b.jsonl", '\n{"text": "one"}\n\n{"text": "two"}')
    assert [document.line for document in read_documents([rows])] == [2, 4]


def test_a_row_of_parquet_is_a_document_and_other_columns_are_left_alone(tmp_path: Path) -> None:
    rows = ["one\n\nstill", "ኣማርኛ", *map(str, range(600))]
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        column = pa.array(rows).cast(kind)
        pq.write_table(
            pa.table({"id": range(len(rows)), "text": column}), tmp_path / "rows.parquet"
        )
        assert texts(tmp_path) == rows


@pytest.mark.parametrize(
    "name",
    ["x[1].txt", "x*.txt", "a::b.txt", "a#b%20.txt", "README.md", "two\nlines.txt", "ü é.md"],
)
def test_a_file_is_read_whatever_its_name_means_elsewhere(tmp_path: Path, name: str) -> None:
    written(tmp_path / "x1.txt", "neighbour")
    assert texts(written(tmp_path / name, "this one")) == ["this one"]


def test_folders_are_searched_in_order_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.md", "a.txt", ".hidden/no.txt", "b/.no.txt", "c.pdf"):
        written(tmp_path / name, name)
    assert texts(tmp_path) == ["a.txt", "b/1.md", "b/2.txt"]
    assert texts(tmp_path / ".hidden") == [".hidden/no.txt"]


def test_links_are_followed_once_and_loops_are_left(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    written(corpus / "a.txt", "a")
    written(elsewhere / "b.txt", "b")
    (corpus / "again.txt").symlink_to("a.txt")
    (corpus / "far").symlink_to(elsewhere)
    (corpus / "far-again").symlink_to(elsewhere)
    (corpus / "up").symlink_to(corpus)
    (corpus / "self.txt").symlink_to("self.txt")
    os.mkfifo(corpus / "pipe.txt")
    assert texts(corpus, corpus / "a.txt") == ["a", "b"]


def test_a_long_document_is_cut_at_the_best_place_before_the_limit() -> None:
    limit = LONGEST_DOCUMENT_CHARACTERS
    assert list(split_long(["x" * limit])) == ["x" * limit]
    at_line = "l" * (limit - 9) + "\n" + "A sentence. More" * 2
    assert list(split_long([at_line])) == ["l" * (limit - 9), "A sentence. More" * 2]
    at_sentence = "s" * (limit - 9) + ". " + "word " * 20
    assert list(split_long([at_sentence])) == ["s" * (limit - 9) + ".", ("word " * 20).strip()]
    assert [len(piece) for piece in split_long(["x" * (2 * limit + 1)])] == [limit, limit, 1]


def test_cutting_loses_no_line_and_does_not_depend_on_how_text_arrives() -> None:
    lines = [f"line {n}\n" for n in range(30_000)]
    pieces = list(split_long(lines))
    assert pieces == list(split_long(["".join(lines)]))
    assert "\n".join(pieces) + "\n" == "".join(lines)
    assert max(map(len, pieces)) <= LONGEST_DOCUMENT_CHARACTERS


def test_a_large_file_without_blank_lines_is_never_whole_in_memory(tmp_path: Path) -> None:
    line = "A line of ordinary text that goes on for a while and then some more. " * 4 + "\n"
    file = written(tmp_path / "large.txt", line * 90_000)
    documents = read_documents([file])
    next(documents)
    tracemalloc.start()
    count = sum(1 for _ in documents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 300
    assert peak < file.stat().st_size / 2


def test_nothing_is_copied_to_a_cache_and_nothing_is_left_behind(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md"):
        written(tmp_path / "text" / name, "text")
    written(tmp_path / "text" / "c.jsonl", json.dumps({"text": "text"}))
    pq.write_table(pa.table({"text": ["text"]}), tmp_path / "text" / "d.parquet")
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    code = (
        "import sys; from pathlib import Path; from tapestry.data.reading import read_documents\n"
    )
    code += "print(*(d.text for d in read_documents([Path(sys.argv[1])])))\n"
    code += "import os; print(os.environ['HF_HUB_OFFLINE'])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "text")],
        env={"HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["text"] * 4 + ["1"]
    assert done.stderr == ""
    assert list(home.rglob("*")) == []
    assert list(temporary.rglob("*")) == []


def test_reading_that_stops_early_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "a.txt", "one\n\ntwo")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    documents = read_documents([file])
    next(documents)
    assert isinstance(documents, Iterator)
    del documents
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_path_without_text_is_named_with_what_is_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone'}: no such file or folder"
    read = "files that are read: .txt, .md, .jsonl, .parquet"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(empty) == f"{empty}: no text (it is empty); {read}"
    for name in ("a.pdf", "b.pdf", "c.odt", "Makefile"):
        written(empty / name, "x")
    assert refusal(empty) == f"{empty}: no text (found only .odt, 2 .pdf, Makefile); {read}"
    blank = written(tmp_path / "blank.txt", " \n\n\n")
    assert refusal(blank) == f"{blank}: the files hold no text at all; {read}"
    assert texts(empty, written(tmp_path / "a.txt", "one")) == ["one"]


def test_links_to_nothing_and_pipes_are_named(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("nowhere")
    assert "link.txt: a link to nothing" in refusal(tmp_path)
    (tmp_path / "link.txt").unlink()
    (tmp_path / "self.txt").symlink_to("self.txt")
    assert "self.txt: cannot be read: Too many levels" in refusal(tmp_path / "self.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert "pipe.txt: neither a file nor a folder" in refusal(tmp_path / "pipe.txt")


def _as_nobody(path: Path) -> str:
    """Return what an unprivileged user is told of `path`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            list_files([path])
            os.write(writer, b"was read")
        except ConfigError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode()


def test_files_and_folders_without_permission_are_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = written(folder / "open" / "secret.txt", "x")
        file.chmod(0)
        assert _as_nobody(folder) == f"{file}: not readable by this user; check its permissions"
        closed = folder / "closed"
        closed.mkdir(mode=0)
        denied = "cannot be read: Permission denied; check its permissions"
        assert _as_nobody(closed) == f"{closed}: {denied}"
        assert _as_nobody(closed / "a.txt") == f"{closed / 'a.txt'}: {denied}"
        closed.chmod(0o700)


@pytest.mark.parametrize(
    ("content", "line", "letter"),
    [
        (b"caf\xe9 noir", 1, 3),
        ("\n\n one\ntwo\nné".encode()[:-1], 5, 1),
        (b"x" * 60_000 + b"\nxy" + "é".encode() + b"\xff\nz", 2, 3),
    ],
)
def test_a_file_that_is_not_utf8_is_named_with_the_line(
    tmp_path: Path, content: bytes, line: int, letter: int
) -> None:
    said = f"not UTF-8 after letter {letter} of the line; convert it"
    for name in ("a.txt", "a.md"):
        file = written(tmp_path / name, content)
        assert refusal(file).startswith(f"{file}:{line}: {said}")
    file = written(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}')
    assert refusal(file).startswith(f"{file}:2: not UTF-8 after letter 10 of the line; convert it")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"text": ', "not JSON: Expecting value"),
        ('{"body": "x"}', 'no string field "text" (it has: body)'),
        ('{"text": null}', 'no string field "text" (it has: text)'),
        ('["x"]', 'no string field "text" (it has: list)'),
        ('"x"', 'no string field "text" (it has: str)'),
        ('{"text": "ab\\ud800"}', "half a surrogate pair at letter 2"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_json_line_that_cannot_be_used_is_named_with_its_number(
    tmp_path: Path, line: str, cause: str
) -> None:
    file = written(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
    assert refusal(file).startswith(f"{file}:3: {cause}")


def test_parquet_that_cannot_be_used_is_named_with_its_columns_or_row(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), file)
    assert refusal(file).startswith(f"{file}: no column 'text'; its columns are body, id")
    pq.write_table(pa.table({"text": ["x", None]}), file)
    assert refusal(file).startswith(f"{file}:2: nothing where text is expected")
    pq.write_table(pa.table({"text": [1]}), file)
    assert refusal(file).startswith(f"{file}:1: int where text is expected")
    pq.write_table(pa.table({"text": ["x" * 1000] * 9}), file)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PAR1 not really", whole[4:]):
        written(file, damaged)
        assert refusal(file).startswith(f"{file}: ")
