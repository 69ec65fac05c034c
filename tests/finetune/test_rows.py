"""Rows of every shape, out of every sort of file, as the stages take them."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestry.errors import ConfigError
from tapestry_finetune.rows.kinds import ChatRow, Message, Origin, PairRow, TextRow, ThumbRow
from tapestry_finetune.rows.kinds import row_text as text_of_row
from tapestry_finetune.rows.reading import Rows, read_rows
from tapestry_finetune.rows.turns import meant_role


def turns(*contents: str, system: str = "") -> tuple[Message, ...]:
    roles = ["user", "assistant"] * len(contents)
    first = [{"role": "system", "content": system}] if system else []
    rest = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return (*first, *rest)


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def read(path: Path, **options: Any) -> Rows:
    return read_rows([path], **options)


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SYSTEM = {"role": "system", "content": "s"}
TOOLS = [{"role": "tool", "content": "t"}, {"role": "tool", "content": "u"}]

CHATS = {
    "messages": ({"messages": MESSAGES}, turns("q", "a")),
    "system among messages": ({"messages": [SYSTEM, *MESSAGES]}, turns("q", "a", system="s")),
    "tools that answer": (
        {"messages": [*MESSAGES, *TOOLS, MESSAGES[1]]},
        (*MESSAGES, *TOOLS, MESSAGES[1]),
    ),
    "text in parts": (
        {"messages": [MESSAGES[0] | {"content": [{"type": "text", "text": "q"}]}, MESSAGES[1]]},
        turns("q", "a"),
    ),
    "a bare list of turns": (MESSAGES, turns("q", "a")),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        turns("q", "a"),
    ),
    "sharegpt with system": (
        {
            "system": "s",
            "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}],
        },
        turns("q", "a", system="s"),
    ),
    "alpaca": ({"instruction": "q", "output": "a"}, turns("q", "a")),
    "alpaca, input empty": ({"instruction": "q", "input": "", "output": "a"}, turns("q", "a")),
    "alpaca, all of it": (
        {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["x", "y"]]},
        turns("x", "y", "q\n\ni", "a", system="s"),
    ),
    "dolly": ({"instruction": "q", "context": "i", "response": "a"}, turns("q\n\ni", "a")),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, turns("q", "a")),
    "question and answer": ({"question": "q", "answer": "a"}, turns("q", "a")),
    "prompt of messages": (
        {"prompt": [SYSTEM, MESSAGES[0]], "completion": [MESSAGES[1]]},
        turns("q", "a", system="s"),
    ),
    "a label that is no thumb": (
        {"prompt": "q", "completion": "a", "label": "geography"},
        turns("q", "a"),
    ),
}


@pytest.mark.parametrize("case", CHATS)
def test_a_conversation_of_any_shape(tmp_path: Path, case: str) -> None:
    fields, expected = CHATS[case]
    file = written(tmp_path / "a.jsonl", fields)
    rows = read(file)
    assert rows.kind == "chat"
    assert rows.rows == [ChatRow(expected, Origin(str(file), 1))]


TRANSCRIPT = "\n\nHuman: q\n\nAssistant: x\n\nHuman: r\n\nAssistant: "
BAD_ANSWER = {"role": "assistant", "content": "b"}
PAIRS = {
    "strings": ({"prompt": "q", "chosen": "a", "rejected": "b"}, turns("q")),
    "with system": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"},
        turns("q", system="s"),
    ),
    "answers as messages": (
        {"prompt": "q", "chosen": [MESSAGES[1]], "rejected": [BAD_ANSWER]},
        turns("q"),
    ),
    "the prompt in both and apart": (
        {"prompt": "q", "chosen": MESSAGES, "rejected": [MESSAGES[0], BAD_ANSWER]},
        turns("q"),
    ),
    "the prompt in both": (
        {"chosen": [SYSTEM, *MESSAGES], "rejected": [SYSTEM, MESSAGES[0], BAD_ANSWER]},
        turns("q", system="s"),
    ),
    "transcripts": (
        {"chosen": f"{TRANSCRIPT}a", "rejected": f"{TRANSCRIPT}b"},
        turns("q", "x", "r"),
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_pair_of_answers_of_any_shape(tmp_path: Path, case: str) -> None:
    fields, prompt = PAIRS[case]
    file = written(tmp_path / "a.jsonl", fields)
    rows = read(file)
    assert rows.kind == "pairs"
    assert rows.rows == [PairRow(prompt, "a", "b", Origin(str(file), 1))]


@pytest.mark.parametrize(
    ("good", "bad"), [(True, False), (1, 0), (1, -1), ("good", "Bad"), ("👍", "👎"), (1.0, 0.0)]
)
def test_thumbs_of_any_spelling(tmp_path: Path, good: object, bad: object) -> None:
    row = {"prompt": "q", "completion": "a"}
    file = written(tmp_path / "a.jsonl", row | {"label": good}, row | {"label": bad})
    rows = read(file)
    assert rows.rows == [
        ThumbRow(turns("q"), "a", is_good=is_good, origin=Origin(str(file), line))
        for line, is_good in ((1, True), (2, False))
    ]


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=2).encode()


def as_objects(rows: list[dict[str, Any]]) -> bytes:
    return "\n\n".join(json.dumps(row, indent=1) for row in rows).encode()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row) for row in rows).encode()


def as_table(delimiter: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def table(rows: list[dict[str, Any]]) -> bytes:
        quoted = [[f'"{value}"' for value in row.values()] for row in rows]
        lines = [list(rows[0]), *quoted]
        return "\r\n".join(delimiter.join(line) for line in lines).encode("utf-8-sig")

    return table


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


FILES = {
    "a.jsonl": (as_lines, [1, 2]),
    "a.json": (as_json, [2, 6]),
    "objects.json": (as_objects, [1, 6]),
    "lines.json": (as_lines, [1, 2]),
    "a.csv": (as_table(","), [2, 5]),
    "semicolons.csv": (as_table(";"), [2, 5]),
    "a.tsv": (as_table("\t"), [2, 5]),
    "a.parquet": (as_parquet, [1, 2]),
}
TWO = [{"prompt": "Où?\n\nDites", "completion": "Là, là; là"}, {"prompt": "q", "completion": "a"}]


@pytest.mark.parametrize("name", FILES)
def test_rows_out_of_every_sort_of_file_with_their_lines(tmp_path: Path, name: str) -> None:
    write, lines = FILES[name]
    file = tmp_path / name
    file.write_bytes(write(TWO))
    rows = read(file).rows
    assert [row.origin.line for row in rows] == lines
    assert [row.messages for row in rows if isinstance(row, ChatRow)] == [
        turns("Où?\n\nDites", "Là, là; là"),
        turns("q", "a"),
    ]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", gzip.compress),
        (".zst", zstd.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_compressed_files(
    tmp_path: Path, name: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    write, lines = FILES[name]
    file = tmp_path / f"{name}{suffix}"
    file.write_bytes(compress(write(TWO)))
    assert [row.origin.line for row in read(file).rows] == lines


def test_empty_lines_of_tables_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,note\n\nq,a,\n,,\n , ,\nr,b,c\n")
    assert [row.origin.line for row in read(tmp_path).rows] == [3, 6]


def test_messages_in_the_cells_of_tables(tmp_path: Path) -> None:
    cell = json.dumps(MESSAGES).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages\n"{cell}"\n')
    (tmp_path / "b.parquet").write_bytes(as_parquet([{"messages": MESSAGES}]))
    rows = read(tmp_path).rows
    assert [row.messages for row in rows if isinstance(row, ChatRow)] == [turns("q", "a")] * 2


def test_running_text_with_the_lines_of_its_parts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\nthree")
    (tmp_path / "b.md").write_text("# Title\n\nBody\n")
    written(tmp_path / "c.jsonl", {"text": " four\n\nstill four "})
    rows = read(tmp_path)
    found = [(Path(r.origin.file).name, r.origin.line, r.text) for r in rows.rows
             if isinstance(r, TextRow)]  # fmt: skip
    assert found == [
        ("a.txt", 1, "one\ntwo"),
        ("a.txt", 5, "three"),
        ("b.md", 1, "# Title\n\nBody"),
        ("c.jsonl", 1, " four\n\nstill four "),
    ]
    assert rows.kind == "text"


def test_what_was_read_is_announced_with_sources(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    written(tmp_path / "part" / "chat.jsonl", *[{"instruction": "q", "output": "a"}] * 1_200)
    file = written(tmp_path / "more.jsonl", {"messages": MESSAGES, "license": "CC-BY-4.0"})
    (tmp_path / "README.md").write_text("About these chats.")
    rows = read(tmp_path)
    assert rows.announcements == [
        "read 1 row of more.jsonl as messages",
        "read 1,200 rows of part/chat.jsonl as Alpaca",
    ]
    first = rows.sources[0]
    assert (first.name, first.shape, first.rows) == ("more.jsonl", "messages", 1)
    assert first.bytes == file.stat().st_size
    assert first.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert first.licences == {"CC-BY-4.0": 1}
    assert rows.sources[1].name == "part/chat.jsonl"


def test_files_of_no_form_in_a_folder_are_named(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", {"text": "x"})
    for name in ("story.docx", "photo.jpg", ".hidden", "LICENSE", "b.odt", "c.odt"):
        (tmp_path / name).write_bytes(b"PK")
    first, second = read(tmp_path).announcements
    assert first == "read 1 row of a.jsonl as text"
    assert second.startswith("warning: left out b.odt, c.odt, photo.jpg and 1 more: of no form")


def test_a_file_named_by_a_person_is_read_whatever_its_name(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("Text that is meant.")
    assert len(read(file).rows) == 1
    with pytest.raises(ConfigError, match="no data beside"):
        read(tmp_path)


def test_a_file_is_read_once_however_often_it_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", {"messages": MESSAGES})
    assert len(read_rows([tmp_path, file, tmp_path]).rows) == 1


def test_shape_fields_and_roles_can_be_told(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", {"text": "long", "prompt": "q", "completion": "a"})
    assert read(file).kind == "chat"
    assert read(file, shape="text").rows == [TextRow("long", Origin(str(file), 1))]
    file = written(tmp_path / "b.jsonl", {"frage": "q", "antwort": "a"})
    rows = read(file, columns={"frage": "prompt", "antwort": "completion"}).rows
    assert rows == [ChatRow(turns("q", "a"), Origin(str(file), 1))]
    named = [{"role": "mensch", "content": "q"}, {"role": "bot", "content": "a"}]
    file = written(tmp_path / "c.jsonl", {"messages": named})
    rows = read(file, roles={"mensch": "user", "bot": "assistant"}).rows
    assert rows == [ChatRow(turns("q", "a"), Origin(str(file), 1))]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": "alpacca"}, 'shape = "alpacca": no such shape; did you mean alpaca?'),
        ({"columns": {"frage": "promt"}}, 'frage = "promt": no such field; did you mean prompt?'),
        ({"roles": {"bot": "asistant"}}, 'bot = "asistant": no such role; did you mean assistant?'),
    ],
)
def test_what_is_told_wrongly_is_refused_with_the_nearest(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    file = written(tmp_path / "a.jsonl", {"messages": MESSAGES})
    with pytest.raises(ConfigError) as caught:
        read(file, **options)
    assert said in str(caught.value)


def test_rows_of_two_kinds_are_not_mixed(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", {"messages": MESSAGES})
    written(tmp_path / "b.jsonl", {"text": "x"})
    with pytest.raises(ConfigError, match=r"a\.jsonl holds messages, .*b\.jsonl holds text"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "role"),
    [("bot", "assistant"), ("Human", "user"), ("asistente", "assistant"), ("usr", "user")],
)
def test_the_role_that_is_meant_is_guessed(name: str, role: str) -> None:
    assert meant_role(name) == role


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        written(tmp_path / name, *[{"text": f"{n}"} for n in range(600)])
    told: list[tuple[int, int]] = []
    read(tmp_path, on_progress=lambda _what, done, of: told.append((done, of)))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert told == sorted(told)
    assert told[-1] == (size, size)
    assert len(told) > 4


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
CONTENTS = WORDS.filter(lambda text: bool(text.strip()))


@settings(max_examples=60)
@given(chats=st.lists(st.lists(CONTENTS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_any_text_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, chats: list[list[str]]
) -> None:
    file = tmp_path_factory.mktemp("any") / "a.jsonl"
    rows = [{"messages": list(turns(*chat))} for chat in chats]
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), newline="")
    found = read(file).rows
    assert [text_of_row(row) for row in found] == ["\n".join(chat) for chat in chats]
