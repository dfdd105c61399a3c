"""Columns of images beside texts, sides of a pair, and each text of a row do not depend on the number of processes."""

import numpy as np
import pytest
from launch import launched

from vog_hf.scores.vog_scores import VoGScores

OF_IMAGES = ("vog_image", "vog_text", "image_share")
OWN = {"images": (*OF_IMAGES, "loss"), "texts": ("vog_text_1", "vog_text_2", "vog_text_3", "loss"), "sides": OF_IMAGES}


@pytest.mark.slow
def test_two_processes_give_the_columns_of_one(tmp_path):
    """To 1e-6, in batches that other rows share; rows without an image have no value on any number of processes."""
    for n_processes in (1, 2):
        started = launched(
            "score_parts_of_inputs.py",
            tmp_path / str(n_processes),
            n_processes,
            processes=None if n_processes == 1 else n_processes,
        )
        with started as run:
            run.succeed()
    for name, own in OWN.items():
        one, two = (VoGScores.load(tmp_path / str(n) / name) for n in (1, 2))
        assert one.column_names == two.column_names
        for column in ("vog", *own):
            assert np.isfinite(one.column(column)).any()
            np.testing.assert_allclose(two.column(column), one.column(column), rtol=1e-6, err_msg=column)
