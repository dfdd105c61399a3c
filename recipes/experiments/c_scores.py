"""(not a program) Published consistency scores (C-scores; Jiang et al. 2021, arXiv 2002.03206) of a training set.

The authors' file for CIFAR-10, cifar10-cscores-orig-order.npz from https://pluskid.github.io/structural-regularity,
holds ``scores`` (0..1; 1 = a typical example, which models get right without having seen it) and ``labels``, both
``[50000]``, in the original order of the rows.
"""

import zipfile

import numpy as np
from image_training import stop
from scipy.stats import spearmanr


def c_score_correlations(columns, path, rows, labels):
    """Spearman correlation of each column with the C-scores of the same rows, -1..1, by name.

    Args:
        columns: ``[n]`` by name.
        path: npz file with ``scores`` and ``labels``.
        rows: ``[n]`` places of the rows in the file.
        labels: ``[n]`` true labels of the rows, compared with those of the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            scores, known = np.asarray(file["scores"], dtype=float), np.asarray(file["labels"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        stop(f"--c_scores {path} must be an npz with `scores` and `labels`: {error}")
    if scores.shape != known.shape or max(rows) >= len(scores):
        stop(f"--c_scores {path} has {len(scores):,} scores, expected one for each row up to {max(rows):,}")
    differ = np.flatnonzero(known[rows] != np.asarray(labels))
    if len(differ):
        row = rows[differ[0]]
        stop(
            f"--c_scores {path} has label {known[row]} at row {row}, the dataset {labels[differ[0]]}; both must be in "
            "the original order"
        )
    return {name: float(spearmanr(columns[name], scores[rows])[0]) for name in columns}
