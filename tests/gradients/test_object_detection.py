"""Object detection: which labels are those of a detector, and which models have a loss that can be matched."""

import copy

import pytest
import torch
from detection_cases import FAMILIES, collate_images, images
from detectors import d_fine, grounding_dino, owl_vit, yolos
from torch.testing import assert_close

from vog_hf import input_gradients
from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.detection import ObjectDetection, object_labels
from vog_hf.gradients.targets import find_task

FAST = ("detr", "yolos", "d_fine", "lw_detr")
OF_ENCODER = {"loss_ce_enc": 1.0, "loss_bbox_enc": 5.0, "loss_giou_enc": 2.0}  # weights of LW-DETR and RF-DETR


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in FAMILIES])
def test_the_loss_of_a_row_is_that_of_the_model_for_the_row_alone(name):
    """As transformers' own forward with labels gives it, without the losses of layers before the last."""
    model = FAMILIES[name][0]().eval()
    model.config.auxiliary_loss = False
    model.config.group_detr = 1  # of LW-DETR and RF-DETR: more are for training, and their loss would split queries
    batch = collate_images(images(3))
    with torch.no_grad():
        together = model(pixel_values=batch["pixel_values"])
        task, labels = find_task(model, together, None), object_labels(batch["labels"])
        losses = task.scalar("loss", task.logits(together, {}), labels)
        for i, row in enumerate(batch["labels"]):
            alone = model(pixel_values=batch["pixel_values"][i : i + 1], labels=[row])
            of_encoder = sum(OF_ENCODER.get(part, 0.0) * value for part, value in alone.loss_dict.items())
            assert_close(losses[i], torch.as_tensor(alone.loss) - of_encoder, rtol=1e-4, atol=1e-5)


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


def test_boxes_beyond_the_image_count_as_the_loss_clips_them():
    """As transformers' own loss of D-FINE and DEIMv2, which may predict centers and sizes above 1."""
    model, batch = d_fine().eval(), collate_images(images(3))
    model.config.auxiliary_loss = False
    with torch.no_grad():
        outputs = model(pixel_values=batch["pixel_values"])
        outputs["pred_boxes"] = 2 * outputs.pred_boxes
        task, labels = find_task(model, outputs, None), object_labels(batch["labels"])
        losses = task.scalar("loss", task.logits(outputs, {}), labels)
        for i, row in enumerate(batch["labels"]):
            of_row = outputs.logits[i : i + 1], [row], torch.device("cpu"), outputs.pred_boxes[i : i + 1]
            assert_close(losses[i], model.loss_function(*of_row, model.config)[0], rtol=1e-4, atol=1e-5)
    assert (outputs.pred_boxes > 1).any()


@pytest.mark.parametrize("make", [owl_vit, grounding_dino])
def test_a_detector_whose_classes_are_words_is_refused(make):
    """The message names the losses that are known, models that have them, and the callable target that works."""
    model, words = make().eval(), torch.tensor([[1, 5, 2]] * 2)
    model.main_input_name = "pixel_values"
    batch = collate_images(images(2)) | {"input_ids": words, "attention_mask": torch.ones_like(words)}
    message = (
        rf"the detection loss of {type(model).__name__} is not one of ForObject.* cannot be matched; score a "
        r"detector with a fixed list of classes \(RTDetrV2ForObjectDetection, .*\) instead, or pass a callable"
    )
    with pytest.raises(ModelError, match=message):
        input_gradients(model, batch)
    gradients = input_gradients(model, batch, target=lambda outputs, _: outputs.logits.amax((1, 2)))
    assert gradients.shape == batch["pixel_values"].shape
    assert (gradients.abs().amax((1, 2, 3)) > 0).all()


def test_outputs_that_are_not_finite_have_no_matching_and_scores_that_are_not_finite():
    """A training that diverged is named as such; transformers' own matcher would fail on its boxes."""
    model = yolos().eval()
    batch = collate_images(images(2))
    outputs = model(pixel_values=batch["pixel_values"])
    task, labels = find_task(model, outputs, None), object_labels(batch["labels"])
    outputs["pred_boxes"] = torch.full_like(outputs.pred_boxes, float("nan"))
    assert not torch.isfinite(task.scalar("loss", task.logits(outputs, {}), labels)).any()
