"""Tasks of heads: scores of every target are those of a loop over rows and snapshots, whatever shares a batch."""

import functools

import models
import numpy as np
import pytest
from detection_cases import DETECTION_CASES
from numpy.testing import assert_allclose
from task_cases import N_ROWS, TASK_CASES
from trainers import WeightsByStep, arguments
from unlabeled_cases import UNLABELED_CASES

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.errors import ConfigError, ModelError

FEW = 6  # rows of a training
CASES = TASK_CASES | UNLABELED_CASES | {name: DETECTION_CASES[name] for name in ("object_detection/yolos",)}


def scored(case, rows, batch_size, **options):
    """Scores in float64 over two snapshots, and those snapshots."""
    model = case.model().double()
    states = models.perturbed_states(model, 2)
    scorer = VoGScorer(model, config=VoGConfig(**options), batch_size=batch_size, progress=False)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states)]
    return scorer.score(rows, named, collate_fn=case.collate_fn), states


@functools.cache
def expected_columns(task):
    """Every target's VoG and every companion, by the loop."""
    case = CASES[task]
    states = models.perturbed_states(case.model().double(), 2)
    names = dict(zip(case.targets, VoGConfig(target=case.targets).column_names, strict=True))
    expected = {names[target]: values for target, values in case.expected_vog(states).items()}
    return expected | case.expected_companions(states)


@pytest.mark.parametrize("batch_size", [1, 7, N_ROWS])
@pytest.mark.parametrize("task", CASES)
def test_scores_are_those_of_a_loop_over_rows_and_snapshots(task, batch_size):
    """Every target and companion in float64, for batches of 1, 7 and all rows; what the task lacks is not a column."""
    case = CASES[task]
    scores, _ = scored(case, case.rows(), batch_size, target=case.targets)
    assert scores.manifest["task"] == task.split("/")[0]
    for name, values in expected_columns(task).items():
        assert np.ptp(values) > 0 or name == "correctness"
        assert_allclose(scores.column(name), values, rtol=1e-6, atol=1e-6 * np.abs(values).mean(), err_msg=name)
    assert set(case.absent).isdisjoint(scores.to_pandas().columns)


@pytest.mark.parametrize("task", [name for name, case in CASES.items() if case.predicted])
def test_rows_are_scored_by_the_last_prediction_with_and_without_labels(task):
    """With label="predicted"; companions are of the given label where there is one."""
    case = CASES[task]
    unlabeled = [{name: row[name] for name in case.fed} for row in case.rows()]
    scores, states = scored(case, unlabeled, 7, label="predicted")
    expected = case.expected_vog(states, predicted=True)["logit"]
    assert_allclose(scores.column("vog"), expected, rtol=1e-6)
    scores, _ = scored(case, case.rows(), 7, label="predicted")
    assert_allclose(scores.column("vog"), expected, rtol=1e-6)
    assert_allclose(scores.column("loss"), case.expected_companions(states)["loss"], rtol=1e-6)


@pytest.mark.parametrize("task", [name for name, case in CASES.items() if not case.predicted])
def test_a_task_without_a_predicted_label_says_which_tasks_have_one(task):
    """The error names the tasks, and the option that works."""
    case = CASES[task]
    with pytest.raises(
        ConfigError, match=f"one label per row .*question_answering.* task is {task.split('/')[0]}; use label='given'"
    ):
        scored(case, case.rows()[:FEW], 7, label="predicted")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("question_answering", "collect='training' found no label: .*; pass label_column=, or use collect='replay'"),
        ("semantic_segmentation", "cannot observe the loss of semantic_segmentation .*; use collect='replay'"),
        ("multiple_choice", "cannot observe the loss of multiple_choice .*; use collect='replay'"),
        ("object_detection/yolos", "cannot observe the loss of object_detection .*; use collect='replay'"),
        ("pixel_reconstruction/autoencoder", "collect='training' found no label: .*, or use collect='replay'"),
        ("pair_similarity/clip", "collect='training' found no label: .*, or use collect='replay'"),
        (
            "reward_modeling",
            "collect='training' needs one example per row, .* 4 examples of 2 rows; .*'replay'",
        ),
    ],
)
def test_collecting_in_the_passes_of_the_training_is_refused_before_the_first_step(task, message, tmp_path):
    """The message names what works, which the next test does."""
    case, steps = CASES[task], WeightsByStep()
    args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=3)
    vog = VoGCallback(collect="training", log=False)
    pieces = {"data_collator": case.collate_fn, "callbacks": [vog, steps]}
    with pytest.raises((ConfigError, ModelError), match=message):
        case.trainer(case.model(), args, train_dataset=case.rows()[:FEW], **pieces).train()
    assert not steps.weights


@pytest.mark.slow
@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("task", CASES)
def test_a_training_is_scored_with_one_added_line(task, collect, tmp_path):
    """The callback scores Trainer's own rows, in its own collator's batches, as the loop does."""
    case, steps = CASES[task], WeightsByStep()
    rows = case.rows()[:FEW]
    args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=3, learning_rate=1e-2)
    vog = VoGCallback(collect=collect, snapshots=[2, 4], batch_size=4, log=False)
    pieces = {"data_collator": case.collate_fn, "callbacks": [vog, steps]}
    case.trainer(case.model(), args, train_dataset=rows, **pieces).train()
    expected = case.expected_vog([steps.weights[2], steps.weights[4]])["logit"][:FEW]
    assert_allclose(vog.scores.column("vog"), expected, rtol=2e-4, atol=2e-4 * expected.mean())
