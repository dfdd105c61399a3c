"""The column learning_pattern of scores: from labels and predictions, typed, null without a label, or absent."""

import numpy as np
import pytest
from datasets import Dataset, Value

from vog_hf.errors import ConfigError, OutputFolderError
from vog_hf.evaluation import recommended_ranking
from vog_hf.scores import VoGScores, add_vog_columns
from vog_hf.scores.dataset_columns import scores_from_columns
from vog_hf.scores.findings import Findings
from vog_hf.scores.ranking import row_values
from vog_hf.scores.scored_rows import ScoredSplit

LABEL = np.array([1, 0, 1, 1, 0, -1, -1], dtype=np.int32)
PREDICTION = np.array(  # the sixth row has no label, the last one was skipped
    [[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1], [-1, -1, -1, -1]]
)
PATTERNS = ["learned_early", "learned_late", "unstable", "forgotten", "never_learned", None, None]


def make(*, trajectories=True, **changes):
    """Scores of seven rows, with other columns or without some."""
    vog = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, np.nan], dtype=np.float32)
    columns = {"label": LABEL, "prediction": PREDICTION[:, -1], "vog": vog, "vog_class_normalized": vog, "loss": vog}
    columns = {name: values for name, values in (columns | changes).items() if values is not None}
    return VoGScores(columns, {}, trajectories={"prediction": PREDICTION} if trajectories else {})


def test_each_row_has_its_pattern():
    """It follows from label and prediction at each snapshot; rows without a label or a score have none."""
    scores = make()
    assert scores.column("learning_pattern").tolist() == PATTERNS
    assert scores.text_column_names == ["learning_pattern"]
    assert "learning_pattern" not in scores.column_names
    assert scores.to_pandas()["learning_pattern"].dropna().tolist() == PATTERNS[:5]
    assert list(row_values(scores, "learning_pattern", [2, 5])) == ["unstable", None]
    assert scores.select([3, 0]).column("learning_pattern").tolist() == ["forgotten", "learned_early"]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (make(label=np.full(7, -1)), "no row of these scores has a label"),
        (make(label=None), "no row of these scores has a label"),
        (make(vog_class_normalized=None), "no single class each"),
        (make(trajectories=False), "no prediction for each snapshot"),
    ],
    ids=["unlabeled", "without labels", "without classes", "without trajectories"],
)
def test_where_rows_have_none_it_is_absent_and_asking_says_why(scores, reason):
    """Nothing is filled in: no column in tables, and an error with the reason for whoever names it."""
    assert scores.text_column_names == []
    assert "learning_pattern" not in scores.to_pandas()
    assert Findings(ScoredSplit("", scores)).learning_patterns is None
    rows = Dataset.from_dict({"text": list("abcdefg")})
    assert "learning_pattern" not in add_vog_columns(rows, scores, "all").column_names
    for ask in (lambda: scores.column("learning_pattern"), lambda: add_vog_columns(rows, scores, ["learning_pattern"])):
        with pytest.raises(ConfigError, match=rf"there is no column 'learning_pattern', because .*{reason}"):
            ask()


def test_it_is_a_text_column_of_a_dataset_and_comes_back():
    """It is added with "all" and not with "core", null where a row has none; read back, it is the same."""
    rows = Dataset.from_dict({"text": list("abcdefg"), "label": LABEL})
    assert "learning_pattern" not in add_vog_columns(rows, make()).column_names
    scored = add_vog_columns(rows, make(), "all", prefix="my_")
    assert scored.features["my_learning_pattern"] == Value("string", id="vog_hf:my_:learning_pattern")
    assert scored["my_learning_pattern"][:] == PATTERNS
    found = scores_from_columns(scored)
    assert found.column("learning_pattern").tolist() == PATTERNS
    own = rows.add_column("learning_pattern", list("abcdefg"))
    with pytest.raises(ConfigError, match=r"has \['learning_pattern'\] already; pass prefix="):
        add_vog_columns(own, make(), "all")


def test_it_stays_what_it_was_when_labels_are_corrected(tmp_path):
    """A selection keeps the pattern by the labels that were scored, also once its labels are edited and saved."""
    selected = make().select(range(7))
    selected.column("label")[4] = 1
    selected.save(tmp_path / "scores")
    assert VoGScores.load(tmp_path / "scores").column("learning_pattern").tolist() == PATTERNS
    make(learning_pattern=np.array(["never"] * 7, dtype=object)).save(tmp_path / "other")
    with pytest.raises(OutputFolderError, match=r"holds 'never' .*expected one of learned_early, learned_late"):
        VoGScores.load(tmp_path / "other")


def test_findings_count_rows_and_rank_by_numbers_only():
    """The table is over the rows with a pattern, and a text is never a ranking."""
    rows = Dataset.from_dict({"text": list("abcdefg"), "is_corrupted": [False, False, False, True, True, True, False]})
    table = Findings(ScoredSplit("", make(), rows)).learning_patterns
    assert table["rows"].tolist() == [1] * 5
    assert table["error"].tolist() == [0, 0, 0, 1, 1]
    assert table["known_wrong"].tolist() == [0, 0, 0, 1, 1]
    assert recommended_ranking(make()).column == "loss"
