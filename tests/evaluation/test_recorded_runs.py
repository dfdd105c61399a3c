"""What the headline says of recorded experiments, against their deciles and their AUROC.

`recorded_runs.npz` holds, of seed 0 of the runs of that name in recipes/experiments/runs.toml, each row's rank by
``vog_class_normalized`` and by mean loss, and whether its last prediction is wrong.
"""

from pathlib import Path

import numpy as np
import pytest

from vog_hf.evaluation import auroc, error_by_decile, hard_tail

RECORDED = np.load(Path(__file__).parent / "recorded_runs.npz")
RUNS = sorted({name.partition("/")[0] for name in RECORDED})


def run(name):
    """Columns of a recorded run; class 1 stands for a wrong prediction, since only right and wrong were kept."""
    vog = RECORDED[f"{name}/vog"].astype(float)
    wrong = np.unpackbits(RECORDED[f"{name}/is_error"], count=len(vog)).astype(int)
    return {"vog": vog, "loss": RECORDED[f"{name}/loss"].astype(float), "label": 0 * wrong, "prediction": wrong}


@pytest.mark.parametrize("name", RUNS)
def test_the_headline_agrees_with_the_deciles_and_the_strength_with_the_auroc(name):
    """A hard end errs more than the middle deciles, and the AUROC in its direction is that of the named strength."""
    columns = run(name)
    found = hard_tail(columns, n_resamples=200)
    area = auroc(columns["vog"], columns["prediction"])
    error = error_by_decile(columns["vog"], columns["prediction"])["error"].to_numpy()
    low, middle, high = error[:2].mean(), error[2:8].mean(), error[8:].mean()
    least, most = {"none": (0, 0.56), "weak": (0.53, 0.68), "moderate": (0.6, 0.75), "strong": (0.7, 1)}[found.strength]
    assert least <= max(area, 1 - area) <= most
    if found.strength == "none":
        assert "is not a guide" in found.headline or "It is unclear" in found.headline
    else:
        assert f"VoG is a {found.strength} guide in this run" in found.headline
        assert (found.tail in ("high", "both")) <= (high > middle)
        assert (found.tail in ("low", "both")) <= (low > middle)
        assert ("lowest rows first" in found.headline) == (found.tail == "low")
    assert found.headline.endswith("Mean loss orders the same rows better.")


def test_the_recorded_runs_differ():
    """Weak guides in both directions and none at all are among them, so that the agreement above is not of one kind."""
    found = {name: hard_tail(run(name), n_resamples=200) for name in RUNS}
    assert {"none", "weak"} <= {tail.strength for tail in found.values()}
    assert {"high", "low"} <= {tail.tail for tail in found.values()}
    assert "the hard ones" not in found["timm_accelerate"].headline, "AUROC 0.54 is not a reason to name a hard end"
