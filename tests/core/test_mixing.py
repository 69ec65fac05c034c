"""Budgets by language and how often each stream is drawn; numbers can be redone by hand."""

import numpy as np
import pytest

from tapestry.data.batches import TrainingBatches
from tapestry.data.mixing import Stream, schedule, streams_of, unimax
from tapestry.data.packing import Part
from tapestry.data.sources import CorpusSpec, Mixing, Source


def parts(*sizes: tuple[str, str, int]) -> list[Part]:
    made, start = [], 0
    for source, language, tokens in sizes:
        made.append(Part(source, language, start, tokens, 0, 0))
        start += tokens
    return made


def spec(mixing: Mixing | None = None, **weights: float) -> CorpusSpec:
    sources = tuple(Source(name=n, paths=(), weight=w) for n, w in weights.items())
    return CorpusSpec(sources=sources, mixing=mixing or Mixing())


def test_unimax_gives_what_small_languages_cannot_take_to_the_others() -> None:
    # 1200 over three: 400 each; eus takes 50 * 4 = 200, of the 1000 left each other takes 500
    given = unimax({"fra": 5000, "eus": 50, "bre": 900}, budget_tokens=1200, max_epochs=4)
    assert given == {"eus": 200, "bre": 500, "fra": 500}
    # all are at their bound before the budget is spent
    assert unimax({"a": 10, "b": 20}, budget_tokens=1000, max_epochs=2) == {"a": 20, "b": 40}


def test_text_that_is_drawn_by_its_size_is_one_stream() -> None:
    some = parts(("one", "fra", 300), ("two", "fra", 100), ("one", "eus", 5))
    streams = streams_of(some, spec(one=1.0, two=1.0), sequence_tokens=8)
    assert streams == (Stream("all", 0, 405, 1.0),)


def test_unimax_streams_are_languages_and_keep_their_places() -> None:
    some = parts(("one", "eus", 100), ("one", "fra", 600), ("two", "fra", 300))
    mixing = Mixing(languages="unimax", max_epochs=2)
    streams = streams_of(some, spec(mixing, one=1.0, two=1.0), sequence_tokens=8)
    # budget 1000: eus 2 * 100, fra the rest
    assert [(s.name, s.start, s.tokens) for s in streams] == [("eus", 0, 100), ("fra", 100, 900)]
    assert [s.share for s in streams] == pytest.approx([0.2, 0.8])


def test_weights_part_a_language_into_its_sources() -> None:
    some = parts(("one", "fra", 600), ("two", "fra", 200))
    streams = streams_of(some, spec(one=1.0, two=3.0), sequence_tokens=8)
    assert [s.share for s in streams] == pytest.approx([0.5, 0.5])  # 600 * 1 and 200 * 3


def test_what_is_too_short_for_a_sequence_is_named_and_not_drawn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    some = parts(("one", "eus", 8), ("one", "fra", 600))
    mixing = Mixing(languages="unimax")
    streams = streams_of(some, spec(mixing, one=1.0), sequence_tokens=8)
    assert [(s.name, s.share) for s in streams] == [("fra", 1.0)]
    assert "eus has 8 tokens, a sequence needs 9" in caplog.text


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.70001, 0.29998, 0.00001], [1.0]])
def test_a_schedule_holds_the_shares_and_spreads_them(shares: list[float]) -> None:
    cycle = schedule(shares)
    counts = np.bincount(cycle, minlength=len(shares))
    assert (counts >= 1).all()
    assert np.abs(counts / len(cycle) - shares).max() <= 2 / len(cycle)
    for begin in range(0, len(cycle) - 100, 333):
        window = np.bincount(cycle[begin : begin + 100], minlength=len(shares)) / 100
        assert np.abs(window - shares).max() < 0.03


def test_batches_draw_streams_by_their_shares_and_each_sequence_once_an_epoch() -> None:
    own = np.arange(10_000, dtype=np.uint16)
    streams = (Stream("few", 0, 1001, 0.5), Stream("many", 1001, 8999, 0.5))

    def made(seed: int) -> TrainingBatches:
        return TrainingBatches(
            own, None, sequences=4, sequence_tokens=10, shared_fraction=0.0, seed=seed,
            streams=streams,
        )  # fmt: skip

    batches = made(1)
    starts = np.concatenate([batches.batch(step)[:, 0] for step in range(50)])
    few = starts[starts < 1001]
    assert len(few) == 100  # of 200 sequences half, which is one epoch of its 100
    assert sorted(few) == list(range(0, 1000, 10))
    assert np.array_equal(batches.own_starts(0, 50), starts)
    assert np.array_equal(made(1).batch(49), batches.batch(49))
    assert not np.array_equal(made(2).batch(49), batches.batch(49))
