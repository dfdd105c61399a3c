"""Semantic segmentation: which pixels count, and which models and outputs are segmentation."""

import pytest
import torch
from task_cases import segmenter
from torch import nn
from torch.testing import assert_close

from vog_hf import input_gradients
from vog_hf.errors import DataError, LabelError
from vog_hf.gradients.segmentation import SemanticSegmentation
from vog_hf.gradients.targets import find_task


def masks(*shape, classes=3, seed=0):
    """Masks of these classes."""
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"semantic_loss_ignore_index": 0}, {"semantic_loss_ignore_index": 254}])
def test_the_loss_of_a_row_is_that_of_the_model_whatever_it_ignores(options):
    """Upsampled as in transformers, without the class that the configuration ignores."""
    model = segmenter(**options)
    ignored = options.get("semantic_loss_ignore_index", 255)
    labels = masks(1, 9, 7)
    labels[0, :4] = ignored
    pixels = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        outputs = model(pixel_values=pixels, labels=labels)
    task = find_task(model, outputs, labels)
    task.check_labels(labels, task.n_outputs(outputs.logits))
    assert_close(task.scalar("loss", task.logits(outputs, {}), labels)[0], outputs.loss)


def test_pixels_of_255_have_no_class_unless_the_model_has_so_many():
    """Also where the configuration names another class to ignore; of 300 classes 255 is one."""
    logits, labels = torch.randn(1, 3, 2, 2), torch.tensor([[[0, 255], [2, 9]]])
    task = SemanticSegmentation(ignored=9)
    task.check_labels(labels, 3)
    assert_close(task.scalar("logit", logits, labels)[0], (logits[0, 0, 0, 0] + logits[0, 2, 1, 0]) / 2)
    logits, labels = torch.randn(1, 300, 1, 2), torch.tensor([[[255, 9]]])
    task.check_labels(labels, 300)
    assert_close(task.scalar("logit", logits, labels)[0], logits[0, 255, 0, 0])


def test_masks_that_the_task_cannot_have_are_refused_with_their_row():
    """A class beyond the model's, a mask without any class, and masks of another form."""
    task, good = SemanticSegmentation(), masks(3, 4, 4)
    task.check_labels(good.to(torch.uint8), 3)
    for value in (3, -1):
        bad = good.clone()
        bad[1, 2, 2] = value
        with pytest.raises(
            LabelError, match=f"class {value} of a pixel is outside the model's 3 classes; 255 = left"
        ) as error:
            task.check_labels(bad, 3)
        assert error.value.position == 1
    empty = good.clone()
    empty[2] = 255
    with pytest.raises(LabelError, match="a row has no labeled pixel") as error:
        task.check_labels(empty, 3)
    assert error.value.position == 2
    for bad in (good[:, None], good.float(), good[:, 0]):
        with pytest.raises(DataError, match=r"masks must be class numbers \[batch, height, width\], got"):
            task.check_labels(bad, 3)


class Pixelwise(nn.Module):
    """A classifier of each pixel by itself."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Conv2d(3, 4, 1)

    def forward(self, pixel_values):
        return self.classes(pixel_values)


def test_a_plain_module_with_masks_as_labels_is_segmentation():
    """Logits with a place for each class and labels with a class for each place; the gradient is the weight's share."""
    model, labels = Pixelwise(), masks(2, 5, 6, classes=4)
    assert find_task(model, torch.zeros(2, 4, 5, 6), labels).name == "semantic_segmentation"
    gradients = input_gradients(model, (torch.randn(2, 3, 5, 6), labels))
    weight = model.classes.weight[:, :, 0, 0]
    assert_close(gradients[1, :, 2, 3], weight[labels[1, 2, 3]].detach() / 30)
