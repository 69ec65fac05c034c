"""Batches from their number alone, and windows that score every text token once."""

import math

import numpy as np
import pytest

from tapestry.data.batches import NOT_SCORED, TrainingBatches, evaluation_windows

SHARED_FROM = 10_000


def stream(tokens: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + tokens, dtype=np.uint16)


def batches(
    own: int = 41,
    shared: int | None = 21,
    *,
    sequences: int = 4,
    fraction: float = 0.0,
    seed: int = 7,
) -> TrainingBatches:
    """Return batches of sequences of 4 tokens, the own ones from 0, the shared from 10,000."""
    return TrainingBatches(
        stream(own),
        None if shared is None else stream(shared, SHARED_FROM),
        sequences=sequences,
        sequence_tokens=4,
        shared_fraction=fraction,
        seed=seed,
    )


def test_a_sequence_is_a_run_of_its_stream_with_the_next_token() -> None:
    batch = batches().batch(0)
    assert batch.shape == (4, 5)
    assert batch.dtype == np.int64
    assert np.array_equal(batch, batch[:, :1] + np.arange(5))
    assert not (batch[:, 0] % 4).any()


def test_an_epoch_visits_every_sequence_once_and_the_next_in_another_order() -> None:
    made = batches(own=41, sequences=5)  # (41 - 1) / 4 = 10 sequences, 2 batches an epoch
    assert made.own_tokens_per_epoch == 40
    epochs = [np.concatenate([made.batch(s), made.batch(s + 1)])[:, 0] for s in (0, 2, 4)]
    for starts in epochs:
        assert sorted(starts.tolist()) == list(range(0, 40, 4))
    assert len({tuple(starts.tolist()) for starts in epochs}) == 3


def test_tokens_that_fill_no_sequence_are_left_out() -> None:
    assert batches(own=40).own_tokens_per_epoch == 36
    starts = np.concatenate([batches(own=40, sequences=9).batch(s)[:, 0] for s in range(4)])
    assert set(starts.tolist()) == set(range(0, 36, 4))


def test_a_batch_depends_on_its_number_alone() -> None:
    straight = batches(fraction=0.3)
    expected = [straight.batch(step) for step in range(40)]
    restarted = batches(fraction=0.3)
    for step in (39, 0, 17, 16, 39):
        assert np.array_equal(restarted.batch(step), expected[step])


def test_another_seed_gives_another_order() -> None:
    one, two = batches(own=401, seed=1), batches(own=401, seed=2)
    assert not np.array_equal(one.batch(0), two.batch(0))


def test_an_epochs_order_is_that_of_its_seed_stream_and_number() -> None:
    made = batches(own=41, shared=41, sequences=20, fraction=0.5)
    for epoch in range(3):
        batch = made.batch(epoch)  # 10 own and 10 shared sequences: one epoch of each
        for number, (rows, first) in enumerate(((batch[:10], 0), (batch[10:], SHARED_FROM))):
            seeds = np.random.SeedSequence([7, number, epoch])
            order = np.random.Generator(np.random.PCG64(seeds)).permutation(10)
            assert np.array_equal(rows[:, 0], first + 4 * order)


@pytest.mark.parametrize(
    ("fraction", "numerator", "denominator"),
    [(0.25, 1, 4), (0.3, 3, 10), (0.29, 29, 100), (1 / 3, 1, 3), (0.01, 1, 100), (1.0, 1, 1)],
)
@pytest.mark.parametrize("sequences", [1, 3, 4, 100])
def test_the_shared_part_of_the_first_batches_is_the_fraction_rounded_down(
    fraction: float, numerator: int, denominator: int, sequences: int
) -> None:
    made = batches(sequences=sequences, fraction=fraction)
    shared = 0
    for step in range(60):
        batch = made.batch(step)
        assert len(batch) == sequences
        shared += int((batch[:, 0] >= SHARED_FROM).sum())
        assert shared == (step + 1) * sequences * numerator // denominator


def test_without_a_shared_fraction_everything_is_own() -> None:
    alone = batches(shared=None)
    for step in range(10):
        assert np.array_equal(batches(fraction=0.0).batch(step), alone.batch(step))
        assert alone.batch(step).max() < SHARED_FROM


def test_a_shared_sequence_takes_no_own_one_away() -> None:
    mixed, alone = batches(fraction=0.25), batches(shared=None)
    own = np.concatenate([mixed.batch(step) for step in range(8)])
    own = own[own[:, 0] < SHARED_FROM]
    assert np.array_equal(own, np.concatenate([alone.batch(step) for step in range(6)]))


def test_batches_far_into_training_are_made_at_once() -> None:
    assert batches(fraction=0.1).batch(10**12).shape == (4, 5)


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"shared": None, "fraction": 0.25}, "0.25, but there is no shared stream"),
        ({"fraction": 1.5}, "1.5, expected 0 to 1"),
        ({"fraction": -0.1}, "-0.1, expected 0 to 1"),
        ({"fraction": math.nan}, "nan, expected 0 to 1"),
        ({"own": 4}, "the own stream has 4 tokens, a sequence needs 5"),
        ({"shared": 4, "fraction": 0.5}, "the shared stream has 4 tokens, a sequence needs 5"),
        ({"sequences": 0}, "expected 1 or more"),
    ],
)
def test_settings_that_give_no_batch_are_refused(settings: dict[str, float], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        batches(**settings)  # type: ignore[arg-type]


def test_batches_are_numbered_from_zero() -> None:
    with pytest.raises(ValueError, match="step is -1"):
        batches().batch(-1)


def test_windows_by_hand() -> None:
    # end-of-text is 0; documents "5 6 7" and "8"; windows of 4, one at a time
    tokens = np.array([5, 6, 7, 0, 8, 0], np.uint16)
    windows = list(evaluation_windows(tokens, sequence_tokens=4, end_of_text_id=0, batch=1))
    (first, first_targets), (second, second_targets) = windows
    assert first.tolist() == [[0, 5, 6, 7]]
    assert first_targets.tolist() == [[5, 6, 7, NOT_SCORED]]
    assert second.tolist() == [[0, 8, 0, 0]]
    assert second_targets.tolist() == [[8, NOT_SCORED, NOT_SCORED, NOT_SCORED]]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 63, 64, 65, 200])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_every_text_token_is_predicted_once_from_the_one_before(length: int, batch: int) -> None:
    end = 3
    tokens = np.random.default_rng(length).integers(0, 6, length).astype(np.uint32)
    inputs, targets = [], []
    for some_inputs, some_targets in evaluation_windows(
        tokens, sequence_tokens=8, end_of_text_id=end, batch=batch
    ):
        assert some_inputs.shape == some_targets.shape
        assert some_inputs.shape[0] <= batch
        assert some_inputs.shape[1] == 8
        assert some_inputs.dtype == some_targets.dtype == np.int64
        inputs.append(some_inputs.ravel())
        targets.append(some_targets.ravel())
    flat_inputs, flat_targets = np.concatenate(inputs), np.concatenate(targets)
    scored = flat_targets != NOT_SCORED
    assert scored.sum() == (tokens != end).sum()
    assert np.array_equal(flat_targets[scored], tokens[tokens != end])
    before = np.concatenate([[end], tokens[:-1]])
    assert np.array_equal(flat_inputs[scored], before[tokens != end])


def test_an_empty_stream_has_no_windows() -> None:
    empty = np.array([], np.uint16)
    assert list(evaluation_windows(empty, sequence_tokens=4, end_of_text_id=0, batch=2)) == []
