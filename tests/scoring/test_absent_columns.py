"""What a task does not have is not a column, and asking for it is an error that says which columns there are."""

import functools
import re

import models
import numpy as np
import pytest
from datasets import Dataset
from detection_cases import DETECTION_CASES
from sentence_cases import SENTENCE_CASES
from task_cases import TASK_CASES
from unlabeled_cases import UNLABELED_CASES

from vog_hf import VoGScorer, add_vog_columns
from vog_hf.errors import ConfigError
from vog_hf.gradients.tasks import TASKS
from vog_hf.metric.unit_kinds import UNIT_COLUMNS
from vog_hf.metric.vocabulary import COLUMNS, LEARNING_PATTERN
from vog_hf.scores.unit_columns import BOXES

FEW = 5
VOG = {"vog", "vog_early", "vog_late", "vog_percentile", "gradient_magnitude"}
OF_LABELS = {"loss", "confidence", "variability", "correctness"}
OF_CLASSES = {*OF_LABELS, "forgetting", "margin", "el2n", "prediction", "prediction_probability", "label"}
OF_CLASS_UNITS = (OF_CLASSES - {"label"}) | {"label", "position"}
HEADS = {
    "single_label_classification": models.bert,
    "multi_label_classification": models.multi_label_bert,
    "regression": models.regression_bert,
    "token_classification": models.token_bert,
    "token_prediction": models.t5,
    "causal_language_model": models.gpt2,
}
OTHERS = TASK_CASES | UNLABELED_CASES | {name: DETECTION_CASES[name] for name in ("object_detection/yolos",)}
OTHERS |= SENTENCE_CASES
COMPANIONS_OF = {
    "single_label_classification": OF_CLASSES,
    "multi_label_classification": OF_LABELS,
    "regression": {"loss", "prediction"},
    "token_classification": OF_LABELS,
    "token_prediction": OF_LABELS,
    "causal_language_model": OF_LABELS,
    "question_answering": OF_LABELS | {"margin"},
    "semantic_segmentation": OF_LABELS,
    "object_detection": OF_LABELS,
    "speech_recognition": {"loss", "correctness"},
    "multiple_choice": OF_CLASSES,
    "pixel_reconstruction": {"loss"},
    "pair_similarity": {"prediction", "vog_image", "vog_text", "image_share"},
    "reward_modeling": OF_LABELS | {"margin"},
    "preference_optimization": {"margin"},
    "text_similarity": {"prediction", "vog_text_1", "vog_text_2"},
    "text_contrast": {*OF_LABELS, "margin", "vog_text_1", "vog_text_2", "vog_text_3"},
    "pair_score": {"loss", "prediction", "label"},
}
UNITS_OF = {
    "token_classification": ("token", OF_CLASS_UNITS | {"vog"}),
    "question_answering": ("end", OF_CLASS_UNITS),
    "multiple_choice": ("choice", {"position", "vog", "confidence", "variability"}),
    "semantic_segmentation": ("class", {"label", *OF_LABELS}),
    "object_detection": (
        "object",
        {*OF_LABELS, "label", "position", "iou", "forgetting", "prediction", "prediction_probability", *BOXES},
    ),
    "reward_modeling": ("side", {"position", "vog", "reward"}),
    "preference_optimization": ("side", {"position", "vog", "loss", "logp"}),
    "pixel_reconstruction": ("patch", {"position", "loss"}),
}


@functools.cache
def scored(name):
    """Scores of a few rows over three snapshots."""
    if name in HEADS:
        case = HEADS[name]()
        rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
        model, collate_fn = case.model, models.collate
    else:
        case = OTHERS[name]
        model, rows, collate_fn = case.model(), case.rows()[:FEW], case.collate_fn
    named = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 3))]
    return VoGScorer(model, progress=False).score(rows, named, collate_fn=collate_fn)


def test_every_task_is_here():
    """A new task says which columns it has."""
    assert {name.partition("/")[0] for name in HEADS | OTHERS} == set(TASKS) == set(COMPANIONS_OF)


@pytest.mark.parametrize("name", HEADS | OTHERS)
def test_a_task_has_its_columns_and_no_other(name):
    """Columns of rows and of units, none of them filled with nothing; every other known column is refused by name."""
    scores, task = scored(name), name.partition("/")[0]
    assert scores.manifest["task"] == task
    normalized = "vog_class_normalized" if TASKS[task].has_classes else "vog_normalized"
    found = set(scores.column_names) - {"label"}
    assert found == {*VOG, normalized, *COMPANIONS_OF[task]} - {"label"}
    assert ("label" in scores.column_names) == (task == "regression" or "label" in COMPANIONS_OF[task])
    assert all(np.isfinite(scores.column(column)).all() for column in found)
    for column in set(COLUMNS) - set(scores.column_names) - set(scores.text_column_names):
        with pytest.raises(ConfigError, match=f"there is no column '{column}'"):
            scores.column(column)
    assert scores.text_column_names == ([LEARNING_PATTERN] if task == "single_label_classification" else [])


@pytest.mark.parametrize("name", HEADS | OTHERS)
def test_a_task_has_its_units_and_no_other(name):
    """Without units there is none of their columns; with units, those of another kind are refused by name."""
    scores, task = scored(name), name.partition("/")[0]
    kind, names = UNITS_OF.get(task, (None, ()))
    assert (scores.units is None) == (kind is None) == ("units" not in scores.manifest)
    columns = set() if scores.units is None else set(scores.units.columns)
    assert columns == {f"{of_rows}_{kind}" for of_rows in names}
    rows = Dataset.from_dict({"number": range(len(scores))})
    for column in {known.name for known in UNIT_COLUMNS} - columns:
        with pytest.raises(ConfigError, match=re.escape(f"the scores have no columns ['{column}']; they have ")):
            add_vog_columns(rows, scores, [column])
        if scores.units is not None:
            with pytest.raises(ConfigError, match=f"there is no column '{column}' of units; these have "):
                scores.units.column(column)
