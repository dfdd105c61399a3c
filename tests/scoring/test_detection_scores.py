"""Object detection: scores of rows and of their objects are those of a loop, whatever shares a batch."""

import copy
import dataclasses
import functools

import models
import numpy as np
import pytest
import torch
from detection_cases import DETECTION_CASES, FAMILIES, collate_images, images
from detectors import SIDE
from numpy.testing import assert_allclose, assert_array_equal
from reference import _snapshots
from task_cases import N_ROWS

from vog_hf import VoGConfig, VoGScorer
from vog_hf.errors import LabelError

OTHERS = [name for name in FAMILIES if name not in ("detr", "yolos")]  # their tests are slow; YOLOS: also test_tasks.py
TARGETS = ("logit", "probability", "loss")


def marked(names):
    """Names of families, of which some are slow."""
    return [pytest.param(name, marks=pytest.mark.slow if name in OTHERS else ()) for name in names]


@functools.cache
def states(name):
    """Weights of two snapshots."""
    return models.perturbed_states(DETECTION_CASES[f"object_detection/{name}"].model().double(), 2)


def scored(name, batch_size, rows=None, target=TARGETS, **options):
    """Scores in float64 over these snapshots."""
    model = DETECTION_CASES[f"object_detection/{name}"].model().double()
    scorer = VoGScorer(model, config=VoGConfig(target=target), batch_size=batch_size, progress=False, **options)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states(name))]
    return scorer.score(rows or images(), named, collate_fn=collate_images)


def expected_units(name):
    """Every column of objects by a loop over rows and snapshots."""
    case, (_, family) = DETECTION_CASES[f"object_detection/{name}"], FAMILIES[name]
    seen = [[] for _ in range(N_ROWS)]
    for snapshot in _snapshots(case.model(), states(name)):
        for of_row, row in zip(seen, case.rows(), strict=True):
            of_row.append(family.objects(snapshot.config, case._outputs(snapshot, row), row))
    objects = [over_time for of_row in seen for over_time in zip(*of_row, strict=True)]
    correct = [[seen["correct"] for seen in over_time] for over_time in objects]
    values = {n: np.array([[float(s[n]) for s in o] for o in objects]) for n in ("loss", "iou", "probability")}
    return {
        "label_object": [over_time[0]["class"] for over_time in objects],
        "position_object": [i for row in case.rows() for i in range(len(row["labels"]["boxes"]))],
        "loss_object": values["loss"].mean(1),
        "iou_object": values["iou"].mean(1),
        "confidence_object": values["probability"].mean(1),
        "variability_object": values["probability"].std(1),
        "correctness_object": np.mean(correct, axis=1),
        "forgetting_object": [2 if not any(seen) else int(seen == [True, False]) for seen in correct],
        "prediction_object": [over_time[-1]["prediction"] for over_time in objects],
        "prediction_probability_object": [float(over_time[-1]["highest"]) for over_time in objects],
        **rectangles("", [box for row in case.rows() for box in row["labels"]["boxes"].double()]),
        **rectangles("predicted_", [over_time[-1]["predicted"] for over_time in objects]),
    }


def rectangles(prefix, boxes, extent=(1.0, 1.0)):
    """Columns of boxes, as shares of the part of the image that is not padding."""
    x, y, width, height = np.array([box.tolist() for box in boxes]).T
    sides = {"left": (x - width / 2) / extent[0], "top": (y - height / 2) / extent[1]}
    sides |= {"width": width / extent[0], "height": height / extent[1]}
    return {f"{prefix}{name}_object": values for name, values in sides.items()}


@pytest.mark.parametrize("name", marked(["detr", *OTHERS]))
def test_scores_are_those_of_a_loop_for_every_family(name):
    """Every target and companion in float64, by transformers' matcher and the formulas of its losses."""
    scores, case = scored(name, 7), DETECTION_CASES[f"object_detection/{name}"]
    expected = case.expected_vog(states(name))
    for target, column in zip(TARGETS, VoGConfig(target=TARGETS).column_names, strict=True):
        assert_allclose(scores.column(column), expected[target], rtol=1e-6, atol=1e-6 * expected[target].mean())
    for column, values in case.expected_companions(states(name)).items():
        assert_allclose(scores.column(column), values, rtol=1e-6, err_msg=column)
    assert set(case.absent).isdisjoint(scores.to_pandas().columns)


@pytest.mark.parametrize("name", marked(["yolos", *OTHERS]))
def test_units_are_the_objects_of_each_row(name):
    """Loss, IoU, confidence and the others of each object, in the order of the labels, in batches of 1, 7 and all."""
    expected = expected_units(name)
    for batch_size in (1, 7, N_ROWS):
        scores = scored(name, batch_size, target="logit")
        assert scores.manifest["units"]["of"] == "objects"
        assert set(scores.units.columns) == set(expected)
        assert_array_equal(scores.units.sizes, [len(row["labels"]["boxes"]) for row in images()])
        for column, values in expected.items():
            assert_allclose(scores.units.column(column), values, rtol=1e-6, err_msg=column)


def test_the_matching_changes_from_snapshot_to_snapshot():
    """Otherwise the tests here could not tell a matching of the last snapshot from one of each."""
    case, (_, family) = DETECTION_CASES["object_detection/yolos"], FAMILIES["yolos"]
    first, last = (
        [family.matches(snapshot.config, case._outputs(snapshot, row), row) for row in case.rows()]
        for snapshot in _snapshots(case.model(), states("yolos"))
    )
    assert first != last


def padded(row):
    """A smaller image in the corner of one of the usual size, with the mask of what is not padding."""
    height, width = SIDE - 4, SIDE - 7
    pixels, mask = torch.zeros_like(row["pixel_values"]), torch.zeros((SIDE, SIDE), dtype=torch.int64)
    pixels[:, :height, :width] = row["pixel_values"][:, :height, :width]
    mask[:height, :width] = 1
    return {**row, "pixel_values": pixels, "pixel_mask": mask}


def test_padding_under_a_pixel_mask_does_not_count():
    """The model gets the mask, and the score is over the pixels that are not padding."""
    rows = [padded(row) if i % 2 else {**row, "pixel_mask": torch.ones((SIDE, SIDE))} for i, row in enumerate(images())]
    case = dataclasses.replace(
        DETECTION_CASES["object_detection/detr"],
        rows=lambda: rows,
        fed=("pixel_values", "pixel_mask"),
        targets=("logit",),
        counted=lambda row: (slice(None), row["pixel_mask"].bool().numpy()),
    )
    scores = scored("detr", 7, rows, target="logit")
    assert_allclose(scores.column("vog"), case.expected_vog(states("detr"))["logit"], rtol=1e-6)
    of_row = rectangles("", rows[3]["labels"]["boxes"].double(), extent=((SIDE - 7) / SIDE, (SIDE - 4) / SIDE))
    for name, values in of_row.items():
        assert_allclose(scores.units.of_row(name, 3), values, rtol=1e-6)


def test_a_row_without_objects_is_named_or_skipped():
    """It has no target: the error names it, and on_error="skip" leaves it without units."""
    rows = copy.deepcopy(images(12))
    rows[5]["labels"] = {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros((0, 4))}
    with pytest.raises(LabelError, match="row 5: a row has no object, so it has no target; leave such rows out"):
        scored("yolos", 7, rows)
    scores, expected = scored("yolos", 7, rows, on_error="skip"), scored("yolos", 7, images(12))
    assert np.isnan(scores.column("vog")[5])
    assert scores.units.sizes[5] == 0
    others = [row for row in range(12) if row != 5]
    assert_allclose(scores.column("vog")[others], expected.column("vog")[others], rtol=1e-9)
    assert_allclose(scores.units.column("loss_object"), expected.units.select(others).column("loss_object"), rtol=1e-9)
