"""Duplicates: found in every script, by order alone, and nothing else called one."""

import random

import numpy as np

from tapestry.data import duplicates

ENGLISH = "the institution keeps every letter that a traveller wrote home from the far north in"
KHMER = "សៀវភៅនីមួយៗមានភាសារបស់វា ហើយគ្មាននរណាម្នាក់ដឹងថានរណានឹងអានវា"


def words(vocabulary: list[str], count: int, *, seed: int, space: str = " ") -> str:
    return space.join(random.Random(seed).choices(vocabulary, k=count))  # noqa: S311


def near(texts: list[str], similarity: float = 0.8) -> list[int]:
    signatures, can_compare = duplicates.sign([text.encode() for text in texts])
    candidates = np.flatnonzero(can_compare)
    found, _similarities = duplicates.near_duplicates(signatures, candidates, similarity=similarity)
    originals = np.full(len(texts), -1)
    originals[candidates] = found
    return list(map(int, originals))


def jaccard(left: str, right: str) -> float:
    """The exact similarity of what is compared: windows of 20 bytes without case and blanks."""
    sets = []
    for text in (left, right):
        plain = bytes(b for b in text.lower().encode() if chr(b) not in " .,\n")
        sets.append({plain[i : i + 20] for i in range(len(plain) - 19)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_exact_duplicates_name_the_first() -> None:
    digests = np.array([[5, 1], [7, 1], [5, 1], [5, 2], [7, 1], [5, 1]], np.uint64)
    assert list(duplicates.exact_duplicates(digests)) == [-1, -1, 0, -1, 1, 0]


def test_near_duplicates_are_found_in_every_script_and_others_are_not() -> None:
    for vocabulary, space in ((ENGLISH.split(), " "), (list(KHMER), "")):
        texts = [words(vocabulary, 300, seed=n, space=space) for n in range(40)]
        close = texts[3][:-30] + " Another End."
        assert jaccard(texts[3], close) > 0.85
        assert near([*texts, close]) == [-1] * 40 + [3]


def test_case_blanks_and_punctuation_make_no_difference() -> None:
    text = words(ENGLISH.split(), 120, seed=1)
    assert near([text, text.upper().replace(" ", ",\n")]) == [-1, 0]


def test_the_estimate_is_near_the_exact_similarity() -> None:
    base = words(ENGLISH.split(), 1200, seed=2)
    pairs = [(base, base[:cut] + words([*KHMER.split(), "x"], 90, seed=3)) for cut in
             range(1500, len(base), 500)]  # fmt: skip
    for left, right in pairs:
        signatures, _ = duplicates.sign([left.encode(), right.encode()])
        estimate = float((signatures[0] == signatures[1]).mean())
        assert abs(estimate - jaccard(left, right)) < 0.25  # four deviations of 64 places


def test_a_short_text_is_compared_exactly_only() -> None:
    _signatures, can_compare = duplicates.sign([b"", b"yes", b"a" * 19, ENGLISH.encode() * 9])
    assert list(can_compare) == [False, False, False, True]


def test_a_text_has_one_signature_whatever_is_beside_it() -> None:
    texts = [words(ENGLISH.split(), n * 40, seed=n).encode() for n in range(60)]
    together, _ = duplicates.sign(texts)
    alone = np.concatenate([duplicates.sign([text])[0] for text in texts])
    assert np.array_equal(together, alone)


def test_a_lower_similarity_compares_more_and_each_pair_at_the_threshold() -> None:
    for similarity in (0.5, 0.7, 0.8, 0.9, 0.99):
        rows = duplicates.rows_of_band(similarity)
        bands = duplicates.PLACES // rows
        assert 1 - (1 - similarity**rows) ** bands >= 0.99
    assert duplicates.rows_of_band(0.5) < duplicates.rows_of_band(0.8)


def test_many_repetitions_are_all_of_the_first() -> None:
    text = words(ENGLISH.split(), 200, seed=5)
    assert near([f"{text} {n}" for n in range(500)]) == [-1] + [0] * 499
