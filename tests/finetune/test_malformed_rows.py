"""Files that are wrong: each is refused with its line and what to do; no bytes crash anything."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from tapestry.errors import ConfigError
from tapestry_finetune.rows.faults import MOST_SHOWN, RowFaults
from tapestry_finetune.rows.kinds import Row
from tapestry_finetune.rows.reading import read_rows
from tapestry_finetune.rows.records import SUFFIXES

USER = {"role": "user", "content": "Where is Sukhumi?"}
ASSISTANT = {"role": "assistant", "content": "On the Black Sea."}
GOOD = {"messages": [USER, ASSISTANT]}


def lines(*rows: Any) -> bytes:
    return b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows)


def chat(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
THUMB = {"prompt": "p", "completion": "a", "label": True}

BOT_REFUSED = (
    'messages[2].role is "bot"; allowed: system, user, assistant, tool. Rename it, or map it: '
    'roles = { bot = "assistant" }'
)

MALFORMED = {
    "broken json": (
        "a.jsonl",
        lines(GOOD, b'{"messages": [{"role": "user" "content": "x"}]}'),
        [(2, "not JSON at column 31: Expecting ',' delimiter"), (2, "one whole object")],
    ),
    "json of several lines": (
        "a.jsonl",
        json.dumps(GOOD, indent=1).encode(),
        [(1, "is it JSON over several lines? Then give the file's name the ending .json")],
    ),
    "a python dictionary": (
        "a.jsonl",
        lines(GOOD, str(GOOD).encode()),
        [(2, "it looks like Python: write it with json.dumps")],
    ),
    "a comma at the line's end": (
        "a.jsonl",
        lines(b'{"text": "one"},', {"text": "two"}),
        [(1, "remove the comma at the line's end")],
    ),
    "a field twice": (
        "a.jsonl",
        lines({"text": "one"}, b'{"text": "two", "text": "three"}'),
        [(2, 'the field "text" stands twice in one object: keep one')],
    ),
    "wrong type": (
        "a.jsonl",
        lines(GOOD, {"messages": "oops"}, chat(USER, {"role": "assistant", "content": 7})),
        [
            (2, "messages is text; expected a list of messages"),
            (3, "messages[1].content is a number; expected text"),
        ],
    ),
    "missing field": (
        "a.jsonl",
        lines(GOOD, chat(USER, {"role": "assistant", "text": "x"}), {"note": "x"}),
        [
            (2, 'messages[1] has no content (it has: "role", "text")'),
            (3, 'no field "messages" (it has: "note"); the file was read as messages'),
        ],
    ),
    "unknown role": (
        "data.jsonl",
        lines(*[GOOD] * 16, chat(USER, ASSISTANT, {"role": "bot", "content": "x"})),
        [
            (
                17,
                BOT_REFUSED,
            )
        ],
    ),
    "empty content": (
        "a.jsonl",
        lines(chat(USER, {"role": "assistant", "content": " \n"}), GOOD),
        [(1, "messages[1].content is empty: write it, or remove the row")],
    ),
    "no assistant": (
        "a.jsonl",
        lines(GOOD, chat(USER)),
        [(2, "messages has no turn of the assistant: nothing can be learnt; add its answer")],
    ),
    "roles out of order": (
        "a.jsonl",
        lines(
            chat(USER, USER, ASSISTANT),
            chat(ASSISTANT, USER, ASSISTANT),
            chat(USER, {"role": "system", "content": "x"}, ASSISTANT),
            chat(USER, ASSISTANT, USER),
        ),
        [
            (1, 'messages[1].role is "user" after "user": join the two into one turn'),
            (2, 'messages[0].role is "assistant" at the beginning: a user begins'),
            (3, 'messages[1].role is "system" after "user": the system prompt comes first'),
            (4, "messages ends with a turn of the user; expected one of the assistant"),
        ],
    ),
    "chosen is rejected": (
        "a.jsonl",
        lines(PAIR, PAIR | {"rejected": "a "}),
        [(2, "chosen and rejected are the same: nothing can be preferred")],
    ),
    "answers to nothing": (
        "a.jsonl",
        lines(PAIR, {"chosen": "yes, do", "rejected": "no"}),
        [(2, 'no field "prompt", and chosen has no turns before the answer')],
    ),
    "one-sided thumbs": (
        "a.jsonl",
        lines(THUMB, THUMB | {"prompt": "q"}),
        [(0, "all 2 answers are good: learning needs both; add some bad ones")],
    ),
    "a thumb that is none": (
        "a.jsonl",
        lines(THUMB, THUMB | {"label": False}, THUMB | {"label": "maybe"}),
        [(3, 'label is "maybe"; expected true or false')],
    ),
    "latin-1": (
        "a.jsonl",
        lines({"text": "plain"})
        + '{"text": "Le préfet a décidé hier que les élèves étudieraient."}\n'.encode("cp1252"),
        [(2, "not UTF-8: byte 0xe9 at byte 16 of the line; it looks like WINDOWS-1252")],
    ),
    "koi8": (
        "a.txt",
        "Правительство решило вчера, что школьники будут учиться летом.\n".encode("koi8-r"),
        [(1, "if that is right, convert the file, for example with `iconv -f KOI8-R")],
    ),
    "utf-16": (
        "a.csv",
        "prompt,completion\na,b\n".encode("utf-16"),
        [(0, "this is UTF-16: convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`")],
    ),
    "a NUL byte": (
        "a.jsonl",
        lines({"text": "one"}, b'{"text": "t\0wo"}'),
        [(2, "a NUL byte after letter 11 of the line: remove it")],
    ),
    "an escaped NUL and half a letter": (
        "a.jsonl",
        lines({"text": "a\0b"}, b'{"text": "x\\ud83e"}', {"text": "fine"}),
        [
            (1, "text has a NUL after letter 1: remove it"),
            (2, "text has half a surrogate pair after letter 1"),
        ],
    ),
    "csv without a header": (
        "a.csv",
        b"Where is it?,There\nWho is it?,Nobody\n",
        [(1, 'the first line must name the columns, and no name is known (it has: "Where is it?"')],
    ),
    "a ragged row": (
        "a.csv",
        b'prompt,completion\n"a\nb",c\nd,e,f\n',
        [(4, "3 fields where the header names 2: put a field that has the delimiter")],
    ),
    "an open quote": (
        "a.csv",
        b'prompt,completion\na,b\nc,"d\ne,f\n',
        [(3, "a double quote opens a field here and none closes it before the file ends")],
    ),
    "a column twice": (
        "a.tsv",
        b"prompt\tcompletion\tprompt\na\tb\tc\n",
        [(1, 'two columns are named "prompt"')],
    ),
    "mixed shapes": (
        "a.jsonl",
        lines(GOOD, GOOD, {"instruction": "x", "output": "y"}),
        [(3, "this row looks like Alpaca, the file like messages: put it into a file of its own")],
    ),
    "truncated gzip": (
        "a.jsonl.gz",
        gzip.compress(lines(*[{"text": f"{n} {n * n}"} for n in range(5_000)]))[:-900],
        [(0, "the compressed file ends in the middle: copy or download it again")],
    ),
    "truncated zstd": (
        "a.txt.zst",
        zstd.compress(b"some text here\n" * 9)[:-3],
        [(0, "the compressed file ends in the middle: copy or download it again")],
    ),
    "not gzip at all": (
        "a.jsonl.gz",
        lines(GOOD),
        [(0, "damaged: Not a gzipped file")],
    ),
    "gzip without the ending": (
        "a.jsonl",
        gzip.compress(lines(GOOD)),
        [(0, "this is compressed with gzip: give its name the ending .gz")],
    ),
    "a workbook": (
        "a.csv",
        b"PK\x03\x04" + bytes(60),
        [(0, "this is a ZIP archive or a workbook: unpack it, or save the table as CSV (UTF-8)")],
    ),
    "damaged parquet": (
        "a.parquet",
        parquet([PAIR] * 9)[:-20] + bytes(12) + b"PAR1",
        [(0, "damaged: ")],
    ),
    "null in parquet": (
        "a.parquet",
        parquet([PAIR, PAIR | {"chosen": None}]),
        [(2, 'no field "chosen" (it has: "prompt", "rejected")')],
    ),
    "an empty file": ("a.jsonl", b"", [(0, "empty: no row in it")]),
    "blank lines only": ("a.txt", b"\n \n\t\n", [(0, "no rows in it: remove it, or fill it")]),
    "a header only": ("a.csv", b"prompt,completion\n", [(0, "no rows in it")]),
    "a list that never ends": (
        "a.json",
        b'[\n {"text": "one"},\n {"text": "two"}',
        [(3, "not JSON: the list never ends; is the file whole?")],
    ),
    "a broken list": (
        "a.json",
        b'[\n {"text": "one"},\n {"text": two},\n {"text": "three"}\n]',
        [(3, "not JSON at column 11: Expecting value; what follows cannot be read")],
    ),
    "a list in lines": (
        "a.jsonl",
        lines([GOOD]),
        [(1, "a list where an object is expected; each line must look like"), (1, "ending .json")],
    ),
    "deep nesting": (
        "a.jsonl",
        lines({"text": "one"}, b'{"text": ' + b"[" * 100_000),
        [(2, "nested too deep")],
    ),
    "an endless line": (
        "a.jsonl",
        lines({"text": "one"}, b"x" * 17_000_000, {"text": "two"}),
        [(2, "a line of 17 MB, at most 17 are read: put each row on a line of its own")],
    ),
    "an image in a turn": (
        "a.jsonl",
        lines(
            GOOD, chat({"role": "user", "content": [{"type": "image", "image": "x"}]}, ASSISTANT)
        ),
        [(2, "messages[0].content is a list; expected text")],
    ),
    "a tool call": (
        "a.jsonl",
        lines(GOOD, chat(USER, {"role": "assistant", "content": "x", "tool_calls": [{}]})),
        [(2, "messages[1] calls a tool, which is not trained")],
    ),
    "line ends of old Macs": (
        "a.csv",
        b"prompt,completion\ra,b\rc,d\r",
        [(1, "a line end of old Macs (CR): save the file with the usual line ends")],
    ),
    "rows inside an object": (
        "a.json",
        json.dumps({"version": 1, "data": [GOOD, GOOD]}).encode(),
        [(0, 'the rows are inside the field "data": save that list alone')],
    ),
    "a field that no row has": (
        "a.csv",
        b"instruction,input,answer_text\nq,,a\nr,,b\n",
        [
            (1, 'looks like Alpaca, but there is no field "output" (there are: "instruction", '),
            (1, '"input", "answer_text"). Rename it, or say what they mean: --column'),
        ],
    ),
    "no known shape": (
        "a.jsonl",
        lines({"title": "x", "body": "y"}),
        [
            (0, 'rows of no known shape (fields: "title", "body"). Rename fields, or say what '),
            (0, "they mean: --column title=prompt --column body=completion (in a recipe: "),
            (0, 'data.columns = { "title" = "prompt", "body" = "completion" })'),
        ],
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_with_line_and_remedy(tmp_path: Path, case: str) -> None:
    name, content, expected = MALFORMED[case]
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(RowFaults) as caught:
        read_rows([file])
    found = [(fault.line, fault.what) for fault in caught.value.faults]
    for line, what in expected:
        assert any(line == at and what in said for at, said in found), found
        place = f"{file}:{line}: " if line else f"{file}: "
        assert any(
            text.startswith(place) and what in text for text in str(caught.value).split("\n")
        )
    if case != "json of several lines":  # there every line is no JSON
        assert {line for line, _what in found} == {line for line, _what in expected}


def test_all_faults_are_said_at_once_and_those_beyond_twenty_counted(tmp_path: Path) -> None:
    sorts = [
        b"{",
        {"messages": 1},
        chat(USER),
        chat(ASSISTANT),
        chat(USER, USER, ASSISTANT),
        chat({"role": "x", "content": "y"}, ASSISTANT),
        chat(USER, {"role": "assistant", "content": ""}),
        {"text": "t"},
    ]
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(*[GOOD] * 40, *sorts * 5))
    with pytest.raises(RowFaults) as caught:
        read_rows([file])
    said = str(caught.value).split("\n")
    assert [fault.line for fault in caught.value.faults] == list(range(41, 81))
    assert len(said) == MOST_SHOWN + 2
    assert said[-2:] == [
        "and 20 more like these",
        "40 faults, 40 good rows beside; --skip-bad moves bad rows aside",
    ]


def test_many_faults_of_one_sort_leave_room_for_another(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(*[GOOD] * 33, *[chat(USER, USER, ASSISTANT)] * 30, {"messages": 1}))
    with pytest.raises(RowFaults, match=r"a\.jsonl:64: messages is a number"):
        read_rows([file])


def test_a_file_in_another_encoding_leaves_room_for_the_faults_of_others(tmp_path: Path) -> None:
    letters = "çğışöüÇĞİŞÖÜ"
    foreign = "\n".join(letters[n % 12 :] for n in range(60)).encode("cp1254")
    (tmp_path / "a.txt").write_bytes(foreign)
    (tmp_path / "b.jsonl").write_bytes(lines(GOOD, chat(USER)))
    with pytest.raises(RowFaults) as caught:
        read_rows([tmp_path])
    said = str(caught.value).split("\n")
    assert len(caught.value.faults) == 61
    assert "a.txt:1: not UTF-8: byte 0xe7 at byte 1 of the line" in said[0]
    assert "b.jsonl:2: " in said[4]
    assert said[5] == "and 56 more like these"


@pytest.mark.parametrize(
    ("header", "row", "options"),
    [
        ("No;Soru;Cevap;Kim", "1;Nasılsın?;İyiyim, sağ ol.;A", "Soru=prompt --column Cevap=comp"),
        ("Cümle", "Bugün hava güzel.", "Cümle=text"),
        (
            "Benim sorum;Cevap",
            "Nasılsın?;İyiyim.",
            "'Benim sorum=prompt' --column Cevap=completion",
        ),
    ],
)
def test_columns_of_unknown_names_are_guessed_at_by_their_text(
    tmp_path: Path, header: str, row: str, options: str
) -> None:
    (tmp_path / "a.csv").write_text("\n".join([header, *[row] * 5]), encoding="utf-8")
    with pytest.raises(RowFaults) as caught:
        read_rows([tmp_path / "a.csv"])
    assert f"or say what they mean: --column {options}" in str(caught.value)


def test_faults_of_all_files_are_said_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD, b"{"))
    (tmp_path / "b.jsonl").write_bytes(lines(GOOD, GOOD, chat(USER)))
    with pytest.raises(RowFaults) as caught:
        read_rows([tmp_path])
    assert [(Path(f.file).name, f.line) for f in caught.value.faults] == [
        ("a.jsonl", 2),
        ("b.jsonl", 3),
    ]


def test_a_message_cannot_steer_a_terminal(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(GOOD, chat({"role": "\x1b[2J\u202e", "content": "x"}, ASSISTANT)))
    with pytest.raises(RowFaults) as caught:
        read_rows([file])
    assert all(letter.isprintable() for letter in str(caught.value) if letter != "\n")


def test_bad_rows_are_moved_aside_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "a.jsonl"
    bad = chat(USER, {"role": "bot", "content": ""})
    file.write_bytes(lines(GOOD, b'{"broken', GOOD, bad))
    aside = tmp_path / "bad.jsonl"
    rows = read_rows([tmp_path / "data"], skip_bad=aside)
    assert [row.origin.line for row in rows.rows] == [1, 3]
    assert rows.skipped == 2
    assert rows.announcements[-1] == (
        f"2 bad rows are left out; find them, with reasons, in {aside}"
    )
    first, second = map(json.loads, aside.read_text().splitlines())
    assert first["row"] == '{"broken'
    assert first["reason"].startswith("not JSON")
    assert (second["file"], second["line"], second["row"]) == (str(file), 4, bad)
    assert "roles = { bot" in second["reason"]
    assert "content is empty" in second["reason"]
    assert aside.stat().st_mode & 0o777 == 0o600


def test_what_loses_more_than_a_row_is_never_skipped(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "a.jsonl.gz"
    file.write_bytes(gzip.compress(lines(*[{"text": f"{n} {n * n}"} for n in range(5_000)]))[:-900])
    with pytest.raises(RowFaults, match="ends in the middle"):
        read_rows([file], skip_bad=tmp_path / "bad.jsonl")
    assert not (tmp_path / "bad.jsonl").exists()


def test_bad_rows_do_not_go_where_data_is_read_from(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "inside").mkdir()
    for target in (file := tmp_path / "a.jsonl", tmp_path / "inside" / "bad.jsonl"):
        with pytest.raises(ConfigError, match="name a file elsewhere"):
            read_rows([tmp_path], skip_bad=target)
    with pytest.raises(ConfigError, match="name a file elsewhere"):
        read_rows([file], skip_bad=file)
    with pytest.raises(ConfigError, match="its folder does not exist"):
        read_rows([file], skip_bad=tmp_path / "none" / "bad.jsonl")
    assert file.read_bytes() == lines(GOOD)
    assert len(read_rows([file], skip_bad=tmp_path / "bad.jsonl").rows) == 1


def test_no_good_row_is_lost_behind_many_bad_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(*[b"{"] * 100, *[GOOD] * 50))
    rows = read_rows([file], skip_bad=tmp_path / "bad.jsonl")
    assert (len(rows.rows), rows.skipped) == (50, 100)
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 100


@pytest.mark.parametrize("field", ["label", "prompt", "note"])
def test_nesting_at_the_limit_of_what_can_be_read(tmp_path: Path, field: str) -> None:
    file = tmp_path / "a.jsonl"
    for depth in range(930, 1_000):
        deep = f'{{"prompt": "p", "completion": "a", "{field}": {"[" * depth}{"]" * depth}}}'
        file.write_bytes(lines({"prompt": "p", "completion": "a"}, deep.encode()))
        rows = read_rows([file], skip_bad=tmp_path / "bad.jsonl").rows
        assert len(rows) in {1, 2}


def test_only_bad_rows_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_bytes(lines(chat(USER), chat(USER)))
    with pytest.raises(RowFaults, match="all 2 rows are bad"):
        read_rows([tmp_path / "data"], skip_bad=tmp_path / "bad.jsonl")


def test_a_folder_with_nothing_to_read_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"found only \.docx.*\.jsonl, \.json, \.csv") as caught:
        read_rows([tmp_path])
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ConfigError, match="no such file or folder"):
        read_rows([tmp_path / "gone"])


def assert_rows_or_refusal(file: Path) -> None:
    """Anything but rows or a ConfigError that names the file is an error of ours."""
    refused = ""
    rows: list[Row] = []
    try:
        rows = read_rows([file]).rows
    except ConfigError as error:
        refused = str(error)
    assert rows or str(file) in refused


PIECES = st.sampled_from([
    b'{"messages": [', b'{"role": "user", "content": "x"}', b"]}", b"\n", b",", b'"', b"[", b"{",
    b'{"text": "a"}', b"prompt,completion\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\xe9",
    b'{"prompt": "p", "chosen": [1], "rejected": {}}', b'"label": ', b"1e999", b"\\ud800", b"'",
])  # fmt: skip


@settings(max_examples=150)
@given(
    content=st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b"".join)),
    suffix=st.sampled_from([*SUFFIXES, ".jsonl.gz", ".csv.zst"]),
    is_framed=st.booleans(),
)
def test_bytes_of_any_sort_are_rows_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, *, content: bytes, suffix: str, is_framed: bool
) -> None:
    frames = {".parquet": parquet([PAIR])[:60], ".jsonl.gz": gzip.compress(b"{}\n" * 9)[:-4]}
    file = tmp_path_factory.mktemp("any") / f"a{suffix}"
    file.write_bytes(frames.get(suffix, b"") * is_framed + content)
    assert_rows_or_refusal(file)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_byte_of_a_parquet_file_is_rows_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(parquet([PAIR, PAIR | {"prompt": "q"}]))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("any") / "a.parquet"
    file.write_bytes(bytes(content))
    assert_rows_or_refusal(file)
