"""Learning patterns: every sequence of right and wrong predictions has exactly one, that of the words."""

from itertools import product

import numpy as np
import pytest

from vog_hf.errors import ConfigError
from vog_hf.evaluation import PATTERNS, learning_pattern, learning_pattern_table
from vog_hf.metric.windows import Windows


def in_words(correct, early):
    """The patterns that fit a sequence, each by the words that describe it."""
    text = "".join("x" if right else "-" for right in correct)
    first, k = text.find("x"), len(text)
    is_lost, is_relearned = "x-" in text, "x" in text.partition("x-")[2]
    fits = {
        "never_learned": text == "-" * k,
        "learned_early": 0 <= first < early and text == "-" * first + "x" * (k - first),
        "learned_late": first >= early and text == "-" * first + "x" * (k - first),
        "forgotten": is_lost and text.endswith("-") and not is_relearned,
        "unstable": is_lost and is_relearned,
    }
    return [name for name, fit in fits.items() if fit]


@pytest.mark.parametrize("n_snapshots", range(2, 11))
def test_every_sequence_has_exactly_one_pattern(n_snapshots):
    """Of all 2^K sequences each fits the words of one pattern, and that is the one it gets."""
    sequences = list(product([False, True], repeat=n_snapshots))
    early = Windows(n_snapshots).width
    expected = [in_words(sequence, early) for sequence in sequences]
    assert {len(names) for names in expected} == {1}
    assert learning_pattern(sequences, early=early).tolist() == [name for [name] in expected]
    possible = set(PATTERNS) if n_snapshots > 2 else set(PATTERNS) - {"learned_late", "unstable"}
    assert {name for [name] in expected} == possible


def test_bad_input_is_named_next_to_good_input():
    """One snapshot, a vector, values that are not true or false, and early beyond the snapshots are refused."""
    assert learning_pattern(np.ones((2, 2)), early=2).tolist() == ["learned_early"] * 2
    assert learning_pattern(np.ones((0, 3)), early=2).tolist() == []
    for correct in (np.ones((2, 1)), np.ones(3)):
        with pytest.raises(ConfigError, match=r"at least 2 snapshots, got shape"):
            learning_pattern(correct, early=1)
    with pytest.raises(ConfigError, match="correct must be true or false"):
        learning_pattern([[0.5, 1]], early=1)
    with pytest.raises(ConfigError, match=r"early must lie in 1\.\.2, got 3"):
        learning_pattern(np.ones((2, 2)), early=3)


def test_the_table_counts_rows_errors_and_known_wrong_labels():
    """Every pattern has a line; a row without a pattern counts nowhere; shares are of the rows of a pattern."""
    pattern = ["forgotten", None, "unstable", "unstable", "learned_early"]
    wrong = [True, True, False, True, False]
    table = learning_pattern_table(pattern, is_error=[True, True, False, True, False], known_wrong=wrong)
    assert table["pattern"].tolist() == list(PATTERNS)
    assert table["rows"].tolist() == [1, 0, 2, 1, 0]
    assert table["share"].tolist() == [0.25, 0, 0.5, 0.25, 0]
    for name in ("error", "known_wrong"):
        np.testing.assert_array_equal(table[name], [0, np.nan, 0.5, 1, np.nan])
    assert "known_wrong" not in learning_pattern_table(pattern, is_error=wrong)
    with pytest.raises(ConfigError, match="got 'late'"):
        learning_pattern_table(["late"], is_error=[True])
    with pytest.raises(ConfigError, match="one value per row"):
        learning_pattern_table(pattern, is_error=[True])
