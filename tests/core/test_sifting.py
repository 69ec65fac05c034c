"""What is kept of a corpus and what is left out: each document with its file, line and reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from tapestry.data import sifting as sifting_module
from tapestry.data.sifting import DROPPED_FILE, SourceReport, sifting
from tapestry.data.sources import PLAIN, CorpusSpec, Filters, Source
from tapestry.errors import ConfigError

FRENCH = "La bibliothèque garde chaque livre dans sa langue, et personne ne sait qui le lira"
BASQUE = "Liburu bakoitzak bere hizkuntza du, eta inork ez daki nork irakurriko duen bihar"


def long_text(sentence: str, *, begin: int = 0) -> str:
    return "\n".join(f"{n}. {sentence} numéro {n * n}." for n in range(begin, begin + 12))


def spec_of(folder: Path, filters: Filters, **languages: str) -> CorpusSpec:
    return CorpusSpec(
        sources=tuple(
            Source(name=name, paths=(folder / name,), language=language)
            for name, language in languages.items()
        ),
        filters=filters,
    )


def written(path: Path, *documents: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    joined = [one if isinstance(one, bytes) else one.encode() for one in documents]
    path.write_bytes(b"\n\n".join(joined) + b"\n")
    return path


def sifted(
    spec: CorpusSpec, folder: Path
) -> tuple[list[str], list[dict[str, Any]], list[SourceReport]]:
    """Return the texts kept, the lines of what is left out, and the reports."""
    target = folder / "sifted"
    target.mkdir(exist_ok=True)
    with sifting(spec, spec.files(), target) as found:
        kept = [found.text(n) for n in range(len(found.records))]
        reports = found.reports
    assert [path.name for path in target.iterdir()] == [DROPPED_FILE]
    lines = (target / DROPPED_FILE).read_text(encoding="utf-8").splitlines()
    dropped = [json.loads(line) for line in lines]
    for one in dropped:
        one["file"] = str(Path(one["file"]).relative_to(folder))
    return kept, dropped, reports


def test_each_reason_has_its_file_and_line(tmp_path: Path) -> None:
    first, near = long_text(FRENCH), long_text(FRENCH) + "\nEncore."
    written(tmp_path / "fr" / "a.txt", first, "Oui.", long_text(BASQUE))
    written(tmp_path / "fr" / "b.txt", "x" * 5000, near, first, long_text(FRENCH, begin=90))
    filters = Filters(min_characters=20, max_characters=4000)
    kept, dropped, (report,) = sifted(spec_of(tmp_path, filters, fr="fra"), tmp_path)
    assert kept == [first, long_text(FRENCH, begin=90)]
    told = {(d["file"], d["line"]): (d["reason"], d) for d in dropped}
    assert {place: reason for place, (reason, _) in told.items()} == {
        ("fr/a.txt", 14): "short",
        ("fr/a.txt", 16): "language",
        ("fr/b.txt", 1): "long",
        ("fr/b.txt", 3): "near",
        ("fr/b.txt", 17): "exact",
    }
    assert told["fr/a.txt", 16][1]["found"] == "eus"
    assert told["fr/b.txt", 17][1]["like"] == f"{tmp_path}/fr/a.txt:1"
    assert told["fr/b.txt", 3][1]["similarity"] > 0.8
    assert report.documents == 7
    assert (report.kept, report.kept_bytes) == (2, sum(len(one.encode()) for one in kept))
    assert report.dropped == dict.fromkeys(["short", "language", "long", "exact", "near"], 1)
    assert not any(FRENCH[:20] in json.dumps(d, ensure_ascii=False) for d in dropped)


def test_duplicates_across_sources_and_batches_keep_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sifting_module, "_BATCH_BYTES", 3000)
    texts = [long_text(FRENCH, begin=100 * n) for n in range(20)]
    written(tmp_path / "one" / "a.txt", *texts[:12])
    written(tmp_path / "two" / "a.txt", *reversed([text + " Fin." for text in texts]))
    kept, dropped, reports = sifted(spec_of(tmp_path, Filters(), one="fra", two="fra"), tmp_path)
    assert kept == texts[:12] + [text + " Fin." for text in reversed(texts[12:])]
    assert [d["source"] for d in dropped] == ["two"] * 12
    assert [report.kept for report in reports] == [12, 8]


def test_bare_paths_are_kept_as_they_are(tmp_path: Path) -> None:
    written(tmp_path / "any" / "a.txt", "un", "deux", "un")
    kept, dropped, _ = sifted(spec_of(tmp_path, PLAIN, any=""), tmp_path)
    assert (kept, dropped) == (["un", "deux", "un"], [])


def test_a_source_in_several_languages_has_each_document_identified(tmp_path: Path) -> None:
    written(tmp_path / "both" / "a.txt", long_text(FRENCH), long_text(BASQUE), "17.")
    kept, _, (report,) = sifted(spec_of(tmp_path, Filters(), both="mul"), tmp_path)
    assert len(kept) == 3
    assert report.languages == {"fra": 1, "eus": 1, "und": 1}


def test_a_language_that_cannot_be_told_leaves_nothing_out_and_says_so(tmp_path: Path) -> None:
    written(tmp_path / "rif" / "a.txt", long_text(FRENCH))
    kept, _, (report,) = sifted(spec_of(tmp_path, Filters(), rif="rif"), tmp_path)
    assert len(kept) == 1
    assert report.notes == [
        "whether text is in rif cannot be told: none was left out for its language"
    ]


def test_what_is_unreadable_is_skipped_with_its_line_or_refused(tmp_path: Path) -> None:
    written(tmp_path / "mixed" / "a.txt", "premier", b"caf\xe9\nnoir", "troisième")
    written(tmp_path / "mixed" / "b.jsonl", '{"text": "quatre"}\n{"text": 5}\n\n{"text": "six"}')
    (tmp_path / "mixed" / "c.txt.gz").write_bytes(b"\x1f\x8b\x08 not really")
    refusing = spec_of(tmp_path, Filters(wrong_language="keep"), mixed="fra")
    with pytest.raises(ConfigError, match=r"a\.txt:3: not UTF-8 after letter 3 of the line"):
        sifted(refusing, tmp_path)
    skipping = Filters(unreadable="skip", wrong_language="keep")
    kept, dropped, (report,) = sifted(spec_of(tmp_path, skipping, mixed="fra"), tmp_path)
    assert kept == ["premier", "troisième", "quatre", "six"]
    places = [(d["file"], d["line"], d["reason"]) for d in dropped]
    assert places == [
        ("mixed/a.txt", 3, "unreadable"),
        ("mixed/b.jsonl", 2, "unreadable"),
        ("mixed/c.txt.gz", 0, "unreadable"),
    ]
    assert report.documents == 7


def test_a_file_that_vanishes_after_it_was_listed_is_named(tmp_path: Path) -> None:
    written(tmp_path / "some" / "a.txt", "premier")
    gone = written(tmp_path / "some" / "b.txt", "deuxième")
    target = tmp_path / "sifted"
    target.mkdir()
    for filters in (Filters(unreadable="skip"), Filters()):
        spec = spec_of(tmp_path, filters, some="fra")
        files = [(0, tmp_path / "some" / "a.txt"), (0, gone)]
        gone.unlink(missing_ok=True)
        if filters.unreadable == "skip":
            with sifting(spec, files, target) as found:
                assert len(found.records) == 1
            assert "is gone since the files were listed" in (target / DROPPED_FILE).read_text()
        else:
            with (
                pytest.raises(ConfigError, match=r"b\.txt: is gone since the files were listed"),
                sifting(spec, files, target),
            ):
                pass
