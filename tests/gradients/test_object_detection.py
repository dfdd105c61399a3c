"""Object detection: which labels are those of a detector, and which models have a loss that can be matched."""

import copy

import pytest
import torch
from detection_cases import FAMILIES, collate_images, images, yolos
from torch.testing import assert_close

from vog_hf import input_gradients
from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.detection import ObjectDetection, object_labels
from vog_hf.gradients.targets import find_task

SLOW = ("deformable_detr", "rt_detr", "conditional_detr")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in FAMILIES])
def test_the_loss_of_a_row_is_that_of_the_model_for_the_row_alone(name):
    """As transformers' own forward with labels gives it, without the losses of layers before the last."""
    model = FAMILIES[name][0]().eval()
    model.config.auxiliary_loss = False
    batch = collate_images(images(3))
    with torch.no_grad():
        together = model(pixel_values=batch["pixel_values"])
        task, labels = find_task(model, together, None), object_labels(batch["labels"])
        losses = task.scalar("loss", task.logits(together, {}), labels)
        for i, row in enumerate(batch["labels"]):
            alone = model(pixel_values=batch["pixel_values"][i : i + 1], labels=[row])
            assert_close(losses[i], torch.as_tensor(alone.loss), rtol=1e-4, atol=1e-5)


def test_gradients_of_a_batch_as_trainer_collates_it():
    """`input_gradients` takes the labels of image processors, and any callable gets them as a tensor."""
    model, batch = yolos().eval(), collate_images(images(3))
    gradients = input_gradients(model, batch)
    alone = input_gradients(model, collate_images(images(3)[1:2]))
    assert_close(gradients[1:2], alone, rtol=1e-4, atol=1e-6)
    shapes = []

    def target(outputs, given):
        shapes.append(given["labels"].shape)
        return outputs.logits.sum((1, 2))

    input_gradients(model, batch, target=target)
    assert shapes == [(3, 3, 5)]


def test_objects_that_the_task_cannot_have_are_refused_with_their_row():
    """No object, a class beyond the model's, a box in pixels, more objects than queries, and labels of another form."""
    task, good = ObjectDetection(n_queries=4), object_labels(collate_images(images(4))["labels"])
    task.check_labels(good, 3)
    for place, value, message in (
        ((1, 0, 0), 3.0, "class 3 of an object is outside the model's 3 classes"),
        ((1, 0, 0), -1.0, "class -1 of an object is outside"),
        (
            (1, 1, 2),
            17.0,
            r"the box \[.*17\.0, .*\] of an object is not .*a center, a width and a height as shares of the image",
        ),
        ((1, 1, 3), float("nan"), "the box .*nan.* of an object is not a center"),
        ((1, 1, 4), -0.1, "the box .* of an object is not a center"),
    ):
        bad = good.clone()
        bad[place] = value
        with pytest.raises(LabelError, match=message) as error:
            task.check_labels(bad, 3)
        assert error.value.position == 1
    empty = good.clone()
    empty[2] = -100
    with pytest.raises(LabelError, match=r"a row has no object, .* on_error='skip', or a callable target") as error:
        task.check_labels(empty, 3)
    assert error.value.position == 2
    with pytest.raises(LabelError, match="a row has 4 objects, and the model has 3 queries for them; leave") as error:
        ObjectDetection(n_queries=3).check_labels(good, 3)
    assert error.value.position == 3
    for bad in (good[..., :4], good.long(), good[0]):
        with pytest.raises(DataError, match="labels of a detector must be the class_labels and boxes of each row, got"):
            task.check_labels(bad, 3)


def test_labels_of_image_processors_become_one_tensor():
    """Rows with fewer objects are filled up; labels of another kind are left alone; boxes must fit classes."""
    labels = collate_images(images(3))["labels"]
    tensor = object_labels(labels)
    assert tensor.shape == (3, 3, 5)
    assert tensor[..., 0].tolist()[0][1:] == [-100, -100]
    assert_close(tensor[2, :, 1:], labels[2]["boxes"])
    assert object_labels([{"mask_labels": torch.zeros(1)}]) is None
    wrong = copy.deepcopy(labels)
    wrong[1]["boxes"] = wrong[1]["boxes"][:1]
    with pytest.raises(DataError, match=r"class_labels of a row have the shape \(2,\) and its boxes \(1, 4\)"):
        object_labels(wrong)


def test_a_detector_with_another_loss_is_refused():
    """The message names the losses that are known, and the callable target that works."""
    model = yolos()
    model.loss_type = "DFineForObjectDetection"
    batch = collate_images(images(2))
    with pytest.raises(ModelError, match=r"the detection loss of Yolos.* is not one of ForObject.*; pass a callable"):
        input_gradients(model, batch)
    gradients = input_gradients(model, batch, target=lambda outputs, _: outputs.logits.sum((1, 2)))
    assert gradients.shape == batch["pixel_values"].shape


def test_outputs_that_are_not_finite_have_no_matching_and_scores_that_are_not_finite():
    """A training that diverged is named as such; transformers' own matcher would fail on its boxes."""
    model = yolos().eval()
    batch = collate_images(images(2))
    outputs = model(pixel_values=batch["pixel_values"])
    task, labels = find_task(model, outputs, None), object_labels(batch["labels"])
    outputs["pred_boxes"] = torch.full_like(outputs.pred_boxes, float("nan"))
    assert not torch.isfinite(task.scalar("loss", task.logits(outputs, {}), labels)).any()
