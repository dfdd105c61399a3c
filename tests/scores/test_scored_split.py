"""Scores paired with their rows, and the one view of a row that all outputs share."""

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from vog_hf import VoGScores, add_vog_columns
from vog_hf.errors import RowMismatchError
from vog_hf.scores.pictures import RowViews, row_view
from vog_hf.scores.scored_rows import ScoredSplit


def test_a_split_is_verified_when_it_is_made():
    """Rows that were not scored are refused before anything is shown; the scored ones, and none at all, are taken."""
    scores = VoGScores({"vog": np.array([0.2, 0.1])}, {})
    with pytest.raises(RowMismatchError, match="scores cover 2 rows"):
        ScoredSplit("train", scores, ["a", "b", "c"])
    assert ScoredSplit("train", scores, ["a", "b"]).without_rows() is not None
    scored = add_vog_columns(Dataset.from_dict({"text": ["a", "b"]}), scores, ["vog"])
    assert ScoredSplit("train", scores, scored).rows is scored


def test_each_thumbnail_is_made_once():
    """A row that is in several tables is read once, and its picture reduced once."""
    calls = []

    def fit(image, side):
        calls.append(side)
        return row_view.thumbnail(image, side)

    rows = [{"image": Image.new("L", (40, 20), shade)} for shade in (10, 200)]
    views = RowViews(ScoredSplit("", VoGScores({"vog": np.array([0.2, 0.1])}, {}), rows), 16, fit=fit)
    first = views.views([0, 1, 0])
    assert first[0] is first[2]
    assert [view.picture.size for view in first[:2]] == [(16, 8)] * 2
    assert views.view(1).size == (40, 20)
    assert calls == [16, 16]
