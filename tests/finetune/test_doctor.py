"""The doctor on files with one thing wrong each, and on files with nothing wrong."""

import json
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from tapestry.cli.main import main
from tapestry.data.tokenizer import tokenizer_files, train_tokenizer
from tapestry_finetune.base import Base, BaseIdentity
from tapestry_finetune.charter.starter import starter
from tapestry_finetune.doctor import Amount, Diagnosis, advice_on_amounts, diagnose
from tapestry_finetune.inspecting import inspect
from tapestry_finetune.recipe import load_recipe
from tapestry_finetune.rows.reading import read_files
from tests.conftest import Federation

PROSE = [topics[name] for name in sorted(topics) if len(topics[name]) > 1_500]
CONTEXT = 200
BASQUE = (
    "Gizon-emakume guztiak aske jaiotzen dira, duintasun eta eskubide berberak dituztela.",
    "Ibaia herritik beherago doa, eta neguan inork ez du bertan bainatu nahi izaten.",
    "Amonak ogia egiten zuen larunbatero, eta etxe osoak usain gozoa izaten zuen.",
    "Liburutegia zortziak arte egongo da zabalik, udalak hala erabaki baitu atzo.",
    "Elurra ari duenean umeak ez dira eskolara joaten, eta mendira igotzen dira jolastera.",
)
FRENCH = "Le gouvernement a décidé hier que tous les élèves étudieraient pendant les vacances."


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def chats(*answers: str) -> list[dict[str, str]]:
    return [{"prompt": f"Zer da {number}?", "completion": a} for number, a in enumerate(answers)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Whose tokenizer has seen English only."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(PROSE, vocabulary_size=2_000)
    for name, data in tokenizer_files(tokenizer, model_max_length=CONTEXT).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT}))
    identity = BaseIdentity(
        manifest=None, federation=None, round=None, tensors="", tokenizer="", architecture="",
        licence="",
    )  # fmt: skip
    return Base(folder=folder, identity=identity)


def diagnosis(*paths: Path, **options: Any) -> Diagnosis:
    return diagnose(read_files(paths), **options)


def said(made: Diagnosis) -> str:
    return "\n".join(f"{finding.level}: {finding.what}" for finding in made.findings)


def test_rows_in_another_language_than_declared_are_named(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", *chats(*BASQUE, FRENCH))
    made = diagnosis(file, declared="eus")
    assert [(share.language, share.rows) for share in made.languages] == [("eus", 5), ("fra", 1)]
    assert "warning: 1 row of 6" in said(made)
    assert f"declared Basque: French (1, first {file}:6)" in said(made)
    assert "declared" not in said(diagnosis(file))
    assert "declared" not in said(diagnosis(written(tmp_path / "b.jsonl", *chats(*BASQUE)),
                                            declared="eus"))  # fmt: skip


def test_a_language_that_cannot_be_told_is_not_judged(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", *chats(*BASQUE))
    assert "whether text is in arn cannot be told" in said(diagnosis(file, declared="arn"))


def test_what_is_judged_is_what_the_model_learns_to_write(tmp_path: Path) -> None:
    rows = [{"prompt": FRENCH, "completion": answer} for answer in BASQUE]
    made = diagnosis(written(tmp_path / "a.jsonl", *rows), declared="eus")
    assert {share.language for share in made.languages} == {"eus"}


def test_repeated_rows_are_named_with_what_they_repeat(tmp_path: Path) -> None:
    long = PROSE[0][:1_400]
    rows = [{"text": text} for text in (BASQUE[0], long, BASQUE[0], f"{long[:-9]} changed", "x")]
    file = written(tmp_path / "a.jsonl", *rows)
    made = diagnosis(file)
    assert [(r.row, r.earlier, r.similarity == 1) for r in made.repeats] == [
        (f"{file}:3", f"{file}:1", True),
        (f"{file}:4", f"{file}:2", False),
    ]
    assert "2 rows of 5 repeat an earlier one (1 word for word, 1 nearly)" in said(made)


def test_one_system_prompt_in_all_rows_is_no_repetition(tmp_path: Path) -> None:
    system = PROSE[1][:2_000]
    rows = [row | {"system": system} for row in chats(*BASQUE)]
    assert diagnosis(written(tmp_path / "a.jsonl", *rows)).repeats == []


def test_a_language_that_costs_much_is_said_and_a_stage_advised(tmp_path: Path, base: Base) -> None:
    cyrillic = {ord("a") + n: ord("а") + n for n in range(26)}
    foreign = [text.lower().translate(cyrillic) for text in PROSE[:20]]
    made = diagnosis(written(tmp_path / "a.jsonl", *({"text": t} for t in foreign)), base=base)
    (cost,) = made.costs
    assert cost.times_english is not None
    assert cost.times_english > 3
    assert f"costs about {cost.times_english:.1f} times the tokens of an English one" in said(made)
    assert "begin with the stage vocab" in said(made)
    assert "stage vocab, which" not in said(
        diagnosis(written(tmp_path / "b.jsonl", *({"text": t} for t in PROSE[:20])), base=base)
    )
    seen = inspect([tmp_path / "a.jsonl"], base=base)
    assert seen.stages == ("vocab", "language")
    assert inspect([tmp_path / "b.jsonl"], base=base).stages == ("language",)


def test_rows_beyond_the_context_are_counted_and_named(tmp_path: Path, base: Base) -> None:
    tokenizer = base.tokenizer()
    long = PROSE[2][:3_000]
    assert len(tokenizer(long).input_ids) > CONTEXT
    rows = [*chats(*BASQUE), {"prompt": "Zer da?", "completion": long}]
    file = written(tmp_path / "a.jsonl", *rows)
    made = diagnosis(file, base=base)
    assert made.too_long is not None
    assert made.too_long.rows == [f"{file}:6"]
    assert f"warning: 1 row of 6 do not fit the {CONTEXT} tokens" in said(made)
    text = diagnosis(written(tmp_path / "b.jsonl", {"text": long}), base=base)
    assert text.too_long is not None
    assert text.too_long.rows == []


def test_an_evaluation_that_stands_in_the_data_is_warned_of(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", *chats(*BASQUE))
    suite = written(tmp_path / "suite.jsonl", {"text": BASQUE[1]}, {"text": FRENCH})
    made = diagnosis(file, evaluation=[suite])
    assert f"1 row of the evaluation's 2 stand in the training data too: {suite}:1" in said(made)


@pytest.mark.parametrize("where", ["a file", "a data card", "the rows", "nowhere"])
def test_a_licence_is_found_where_people_put_it(tmp_path: Path, where: str) -> None:
    row = {"text": BASQUE[0]} | ({"license": "CC0-1.0"} if where == "the rows" else {})
    file = written(tmp_path / "a.jsonl", row)
    if where == "a file":
        (tmp_path / "LICENSE").write_text("Public domain.")
    if where == "a data card":
        (tmp_path / "README.md").write_text("---\nlicense: CC0-1.0\n---\nAbout.")
    made = diagnosis(tmp_path)
    assert made.licences.undeclared == ([str(file)] if where == "nowhere" else [])
    assert made.licences.said == ({"CC0-1.0": 1} if where in ("a data card", "the rows") else {})
    assert ("no licence found" in said(made)) == (where == "nowhere")


def test_little_data_is_met_with_what_little_data_can_do(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", *chats(*BASQUE))
    assert "5 chats are few (below about 200): a charter given as a prompt" in said(diagnosis(file))
    many = written(tmp_path / "b.jsonl", *chats(*(f"{BASQUE[0]} {n}" for n in range(200))))
    assert "are few" not in said(diagnosis(many))
    text = tmp_path / "c.txt"
    text.write_text("\n\n".join(PROSE[:30]))
    assert 'method "lora+embeddings"' in said(diagnosis(text))
    (enough,) = advice_on_amounts({"text": Amount(rows=9_000, text_bytes=5_000_000)})
    assert enough.what == '5.0 MB of text is enough for method "full", where it fits into memory'


def test_init_sees_kinds_languages_and_stages(tmp_path: Path) -> None:
    written(tmp_path / "chats.jsonl", *chats(*BASQUE))
    (tmp_path / "texts.txt").write_text("\n\n".join(BASQUE))
    pair = {"prompt": "Zer?", "chosen": BASQUE[0], "rejected": BASQUE[1]}
    written(tmp_path / "pairs.jsonl", pair)
    seen = inspect([tmp_path])
    assert [(f.path.name, f.kind, f.shape, f.rows, f.language) for f in seen.files] == [
        ("chats.jsonl", "chat", "prompt", 5, "eus"),
        ("pairs.jsonl", "pairs", "pairs", 1, "eus"),
        ("texts.txt", "text", "text", 5, "eus"),
    ]
    assert seen.language == "eus"
    assert seen.stages == ("language", "instruct", "values")
    assert seen.method == "lora+embeddings"
    assert seen.files_of("pairs", "thumbs") == [tmp_path / "pairs.jsonl"]
    assert any("5 chats are few" in advice for advice in seen.advice)
    assert seen.files[2].bytes == sum(len(text.encode()) for text in BASQUE)


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Done:
        code = main(["finetune", "doctor", *map(str, arguments)])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def test_the_command_on_a_published_checkpoint(
    tmp_path: Path, federation: Federation, doctor: Any
) -> None:
    file = written(tmp_path / "a.jsonl", *chats(*BASQUE, FRENCH))
    suite = written(tmp_path / "suite.jsonl", {"text": BASQUE[1]})
    given = ("--base", federation.newest, "--evaluation", suite, "--declared-language", "eu")
    done = doctor(file, *given)
    assert done.code == 0
    assert done.out.startswith("read 6 rows of a.jsonl as prompt and completion\n")
    assert "  tokens      Basque: 1.00 bytes a token" in done.out  # its tokens are bytes
    assert "  evaluation  1 of 1 rows stand in the data\n" in done.out
    assert "warning: 1 row of 6 (18% of the text) are in another language" in done.out
    table = json.loads(doctor(file, *given, "--json").out)
    assert table["kinds"] == {
        "chat": {"rows": 6, "text_bytes": table["kinds"]["chat"]["text_bytes"]}
    }
    assert table["overlap"]["leaks"][0]["evaluation"] == f"{suite}:1"
    assert [row["language"] for row in table["languages"]] == ["eus", "fra"]


def test_the_command_on_bad_rows(tmp_path: Path, doctor: Any) -> None:
    (tmp_path / "data").mkdir()
    file = written(tmp_path / "data" / "a.jsonl", {"messages": [{"role": "bot", "content": "x"}]},
                   {"messages": [{"role": "user", "content": "q"},
                                 {"role": "assistant", "content": "a"}]})  # fmt: skip
    done = doctor(file)
    assert done.code == 1
    assert f'{file}:1: messages[0].role is "bot"' in done.err
    faults = json.loads(doctor(file, "--json").out)["faults"]
    assert [(fault["file"], fault["line"]) for fault in faults] == [(str(file), 1)]
    aside = tmp_path / "bad.jsonl"
    done = doctor(file, "--skip-bad", aside)
    assert done.code == 0
    assert f"1 bad row is left out; find them, with reasons, in {aside}" in done.out
    assert json.loads(aside.read_text())["line"] == 1


def test_what_roles_and_columns_mean_can_be_told(tmp_path: Path, doctor: Any) -> None:
    file = written(tmp_path / "a.jsonl", {"frage": "q", "antwort": "a"})
    done = doctor(file, "--column", "frage=prompt", "--column", "antwort=completion")
    assert done.code == 0
    done = doctor(file, "--column", "frage")
    assert done.code == 1
    assert "expected yours=ours" in done.err


# init


def init(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["finetune", "init", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_init_says_how_to_name_columns_and_writes_what_was_said(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "dialogoj.csv"
    table.write_text(
        "demando;respondo\n"
        + "".join(f"Kio estas tio, numero {n}?;Tio estas libro {n}.\n" for n in range(30)),
        encoding="utf-8",
    )
    base, recipe = federation.newest, tmp_path / "recipe.toml"
    code, _, err = init(capsys, table, "--base", base, "--out", recipe)
    assert code == 1
    assert '(it has: "demando", "respondo")' in err
    assert "--column demando=prompt --column respondo=completion (in a recipe: " in err
    assert "prompt (or question) + completion (or response or answer)" in err
    columns = ("--column", "demando=prompt", "--column", "respondo=completion")
    code, out, err = init(capsys, table, "--base", base, "--out", recipe, *columns)
    assert (code, err) == (0, "")
    assert "30 rows, prompt" in out
    assert load_recipe(recipe).data.columns == {"demando": "prompt", "respondo": "completion"}


def test_init_refuses_what_is_no_name_with_one_that_is(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(BASQUE), encoding="utf-8")
    base, recipe = federation.newest, tmp_path / "recipe.toml"
    code, _, err = init(capsys, text, "--base", base, "--out", recipe, "--name", "Nia Helpantĝo")
    assert code == 1
    assert "such as nia-helpantgo" in err
    assert "Traceback" not in err
    assert not recipe.exists()


def test_init_says_the_stages_that_it_writes(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, charter = tmp_path / "text.txt", tmp_path / "charter.toml"
    text.write_text("\n\n".join(BASQUE), encoding="utf-8")
    charter.write_text(starter("eu"), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    code, out, _ = init(
        capsys, text, "--base", federation.newest, "--out", recipe, "--charter", charter
    )
    assert code == 0
    stages = ", ".join(load_recipe(recipe).training.stages)
    assert f"makes eus-assistant, stages {stages}" in out
    assert stages.endswith("language, instruct, values")


def test_init_moves_bad_rows_aside_and_says_what_the_run_needs(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, recipe, aside = (tmp_path / name for name in ("t.jsonl", "recipe.toml", "bad.jsonl"))
    written(text, *({"text": one} for one in BASQUE), {"text": 5})
    asked = (text, "--base", federation.newest, "--out", recipe)
    code, _, err = init(capsys, *asked)
    assert code == 1
    assert "1 fault, " in err
    assert "--skip-bad moves bad rows aside" in err
    code, out, _ = init(capsys, *asked, "--skip-bad", aside)
    assert code == 0
    assert f"note: 1 bad row is left out; find them, with reasons, in {aside}" in out
    assert json.loads(aside.read_text(encoding="utf-8"))["line"] == len(BASQUE) + 1
    assert f"tapestry finetune run {recipe} --skip-bad bad-rows" in out


@pytest.mark.parametrize(
    ("charter", "says"),
    [(None, "charter.toml: "), ("[identity\n", "charter.toml: not valid TOML")],
)
def test_init_refuses_a_charter_that_cannot_be_used(
    federation: Federation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    charter: str | None,
    says: str,
) -> None:
    text = written(tmp_path / "t.jsonl", *({"text": one} for one in BASQUE))
    named, recipe = tmp_path / "charter.toml", tmp_path / "recipe.toml"
    if charter is not None:
        named.write_text(charter, encoding="utf-8")
    base = federation.newest
    code, _, err = init(capsys, text, "--base", base, "--out", recipe, "--charter", named)
    assert code == 1
    assert says in err
    assert not recipe.exists()


def test_a_document_of_an_office_program_is_refused_with_what_to_save_it_as(
    tmp_path: Path, doctor: Any
) -> None:
    (tmp_path / "letter.docx").write_bytes(b"PK")
    for named in (tmp_path, tmp_path / "letter.docx"):
        done = doctor(named)
        assert done.code == 1
        assert "Save documents as .txt and tables as .csv, in UTF-8" in done.err
    (tmp_path / "empty").mkdir()
    assert "Save documents" not in doctor(tmp_path / "empty").err
