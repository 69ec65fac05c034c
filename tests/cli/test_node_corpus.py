"""`tapestry node corpus` and `forget`, from the first look at the files to the last source."""
# ruff: noqa: F811 - fixtures of another module

import json
import random
from pathlib import Path

import pytest

from tapestry.data.corpus import prepare_corpus
from tapestry.data.sources import plain_spec
from tapestry.data.tokenizer import byte_tokenizer
from tapestry.data.usage import RoundUse, SourceUse
from tapestry_node.corpus_history import HISTORY_FILE, record_contribution
from tapestry_node.governing import corpus_spec
from tapestry_node.home import NodeHome
from tests.cli.test_node import Run, home, run  # noqa: F401 - fixtures

FRENCH = "La bibliothèque garde chaque livre dans sa langue, et personne ne sait qui le lira"
BASQUE = "Liburu bakoitzak bere hizkuntza du, eta inork ez daki nork irakurriko duen bihar"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder in French, with a repetition and a text in Basque, and one in several languages."""
    words = FRENCH.split()
    french = [" ".join(random.Random(n).choices(words, k=90)) for n in range(20)]  # noqa: S311
    for name, documents in (
        ("Lettres d'hier", [*french, french[3], f"{BASQUE}. " * 6]),
        ("mixed", [FRENCH, BASQUE] * 3),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (tmp_path / "mixed" / "LICENSE").write_text("CC0")
    return tmp_path


@pytest.fixture
def described(run: Run, home: NodeHome, text: Path) -> NodeHome:
    """A node whose corpus.toml `init` wrote and a person filled in."""
    code, _said, errors = run("corpus", "init", text / "Lettres d'hier", text / "mixed",
                              "--dir", home.folder)  # fmt: skip
    assert (code, errors) == (0, "")
    path = home.folder / "corpus.toml"
    filled = path.read_text(encoding="utf-8").replace('category = ""', 'category = "open"')
    filled = filled.replace('licence = ""', 'licence = "CC0-1.0"')
    filled = filled.replace('jurisdiction = ""', 'jurisdiction = "FR"')
    path.write_text(filled, encoding="utf-8")
    return home


def packed(node: NodeHome) -> str:
    """Pack what the node describes; return the digest."""
    return prepare_corpus(
        corpus_spec(node),
        byte_tokenizer(),
        end_of_text_id=0,
        cache_folder=node.corpus,
        sequence_tokens=16,
    ).digest


def test_init_looks_at_the_files_and_leaves_to_people_what_only_they_know(
    run: Run,
    home: NodeHome,
    text: Path,
) -> None:
    code, said, errors = run("corpus", "init", text / "Lettres d'hier", text / "mixed",
                             "--dir", home.folder, "--json")  # fmt: skip
    assert (code, errors) == (0, "")
    first, second = json.loads(said)["sources"]
    assert (first["name"], first["language"], first["kinds"]) == (
        "lettres-d-hier", "fra", {".txt": 1},
    )  # fmt: skip
    assert (second["name"], second["language"]) == ("mixed", "mul")
    written = (home.folder / "corpus.toml").read_text(encoding="utf-8")
    assert f"# licence: perhaps in {text}/mixed/LICENSE" in written
    assert 'on_expired = "leave-out"' in written
    code, said, errors = run("corpus", "check", home.folder)
    assert (code, said) == (1, "")
    for key in ("licence", "jurisdiction", "category"):
        assert errors.count(f"source lettres-d-hier: {key}:") == 1
    assert "source lettres-d-hier: licence: is empty: fill it in" in errors
    assert "6 faults; nothing was started" in errors
    code, said, _errors = run("corpus", "check", home.folder, "--json")
    assert code == 1
    assert len(json.loads(said)["faults"]) == 7
    code, _said, errors = run("corpus", "init", text, "--dir", home.folder)
    assert code == 1
    assert "exists already: add a [[source]] there" in errors


def test_check_shows_what_is_used_and_what_is_left_out(run: Run, described: NodeHome) -> None:
    path = described.folder / "corpus.toml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "expires = 2020-01-01\n", encoding="utf-8")
    code, said, errors = run("corpus", "check", described.folder)
    assert (code, errors) == (0, "")
    used, left_out = said.splitlines()
    assert used.split()[:4] == ["lettres-d-hier", "fra", "open", "1"]
    assert left_out.split(maxsplit=1) == ["mixed", "left out: expired on 2020-01-01"]
    code, said, _errors = run("corpus", "check", described.folder, "--json")
    assert json.loads(said)["left_out"] == [{"name": "mixed", "reason": "expired on 2020-01-01"}]


def test_the_report_says_the_same_before_and_after_packing(run: Run, described: NodeHome) -> None:
    code, before, errors = run("corpus", "report", described.folder, "--json")
    assert (code, errors) == (0, "")
    digest = packed(described)
    code, after, _errors = run("corpus", "report", described.folder, "--json")
    assert json.loads(before)["sources"] == json.loads(after)["sources"]
    assert json.loads(after)["digest"] == digest
    (first, _second) = json.loads(after)["sources"]
    assert (first["documents"], first["kept"]) == (22, 20)
    assert first["dropped"] == {"exact": 1, "language": 1}
    code, said, _errors = run("corpus", "report", described.folder)
    assert "left out, another language" in said
    dropped = Path(said.splitlines()[-1].split(": ")[1])
    reasons = [json.loads(line)["reason"] for line in dropped.read_text().splitlines()]
    assert sorted(reasons) == ["exact"] * 5 + ["language"]


def test_forgetting_deletes_what_is_packed_and_says_where_it_took_part(
    run: Run,
    described: NodeHome,
) -> None:
    digest = packed(described)
    source = SourceUse(name="mixed", category="open", documents=2, tokens=40)
    for number in (3, 5):
        record_contribution(
            described.corpus,
            round_number=number,
            root="r" * 64,
            use=RoundUse(corpus=digest, sources=(source,)),
        )
    (described.folder / "receipts" / "round-000003.json").write_text("{}")
    described.spool(5).mkdir()
    code, said, errors = run("forget", "mixed", "--dir", described.folder)
    assert (code, errors) == (0, "")
    assert "mixed is forgotten: from the next round on nothing of it is trained on" in said
    assert "packed corpora deleted: 1" in said
    assert "it took part in rounds 3, 5: what those changed in the model stays" in said
    assert f"remove {described.spool(5)} to keep it back" in said
    assert not list(described.corpus.glob("*/corpus.json"))
    code, said, _errors = run("corpus", "history", described.folder)
    assert "round 3 (receipt)" in said
    assert "round 5 (no receipt)" in said
    assert said.splitlines()[-1] == "3 entries; the chain is whole"
    code, said, _errors = run("corpus", "history", described.folder, "--json")
    assert [entry["event"] for entry in json.loads(said)["entries"]] == [
        "contributed", "contributed", "forgotten",
    ]  # fmt: skip
    code, said, errors = run("forget", "mixed", "--dir", described.folder)
    assert (code, said) == (1, "")
    assert "source mixed was forgotten on 20" in errors
    (described.folder / "pool" / "mixd.txt").write_text(
        "\n\n".join(f"open text {n}" for n in range(99))
    )
    pool = plain_spec([described.folder / "pool" / "mixd.txt"])
    prepare_corpus(
        pool, byte_tokenizer(), end_of_text_id=0, cache_folder=described.corpus, sequence_tokens=4
    )
    code, said, errors = run("forget", "mixd.txt", "--dir", described.folder)
    assert "no source is called 'mixd.txt': there are lettres-d-hier, mixed" in errors
    code, said, errors = run("corpus", "check", described.folder)
    assert said.splitlines()[-1].split(maxsplit=1)[1].startswith("left out: forgotten on 20")


def test_what_was_made_twice_for_a_round_has_one_receipt(run: Run, described: NodeHome) -> None:
    source = SourceUse(name="mixed", category="open", documents=2, tokens=40)
    use = RoundUse(corpus="c" * 64, sources=(source,))
    for _refused_then_approved in range(2):
        record_contribution(described.corpus, round_number=2, root="r" * 64, use=use)
    (described.receipts / "round-000002.json").write_text("{}")
    _code, said, _errors = run("corpus", "history", described.folder)
    first, second = (line for line in said.splitlines() if "round 2" in line)
    assert "(no receipt)" in first
    assert "(receipt)" in second


def test_a_history_that_was_changed_is_named(run: Run, described: NodeHome) -> None:
    use = RoundUse(corpus="c" * 64, sources=())
    for number in (1, 2):
        record_contribution(described.corpus, round_number=number, root="r" * 64, use=use)
    path = described.corpus / HISTORY_FILE
    path.write_text(path.read_text().replace('"round": 1', '"round": 7'))
    code, said, errors = run("corpus", "history", described.folder)
    assert (code, said) == (1, "")
    assert f"{path}:2: does not follow from the line before" in errors
