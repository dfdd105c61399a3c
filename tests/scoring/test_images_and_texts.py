"""Models of images and text: both are differentiated in one pass, whatever images the other rows of a batch have."""

import functools

import numpy as np
import pytest
import torch
from models import perturbed_states
from numpy.testing import assert_allclose
from trainers import WeightsByStep, arguments
from transformers import Trainer
from vlm_cases import N_ROWS, OTHER_VLM_CASES, VLM_CASES

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.errors import ConfigError, DataError, ModelError
from vog_hf.gradients.input_gradients import input_gradients

FEW = 6  # rows of a training
CASES = VLM_CASES | OTHER_VLM_CASES


def scored(case, rows, batch_size, **options):
    """Scores in float64 over two snapshots, and those snapshots."""
    model = case.model().double()
    states = perturbed_states(model, 2)
    scorer = VoGScorer(model, config=VoGConfig(**options), batch_size=batch_size, progress=False)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states)]
    return scorer.score(rows, named, collate_fn=case.collate_fn), states


@functools.cache
def expected_columns(name):
    """The columns by the loop."""
    return CASES[name].expected(perturbed_states(CASES[name].model().double(), 2))


def assert_as_expected(name, batch_size):
    """Every column in float64."""
    scores, _ = scored(CASES[name], CASES[name].rows(), batch_size)
    assert scores.manifest["task"] == "causal_language_model"
    for column, values in expected_columns(name).items():
        assert np.nanmax(values) > np.nanmin(values)
        scale = np.nanmean(np.abs(values))
        assert_allclose(scores.column(column), values, rtol=1e-6, atol=1e-6 * scale, err_msg=column)


@pytest.mark.parametrize("batch_size", [1, 7, N_ROWS])
@pytest.mark.parametrize("name", VLM_CASES)
def test_image_and_text_are_those_of_a_loop_over_rows_and_snapshots(name, batch_size):
    """For batches of 1, 7 and all rows, with no, one or two images in a row, and texts of several lengths."""
    assert_as_expected(name, batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_VLM_CASES)
def test_other_families_are_scored_as_well(name):
    """With windows of attention, or token types."""
    assert_as_expected(name, 7)


def test_further_targets_are_of_the_text_and_the_columns_of_parts_of_the_first():
    """The image's columns are those of the first target, whatever follows it."""
    case = VLM_CASES["qwen2-vl"]
    both, _ = scored(case, case.rows()[:7], 7, target=("logit", "loss"))
    alone, _ = scored(case, case.rows()[:7], 7)
    for column in ("vog", "vog_image", "vog_text", "image_share"):
        assert_allclose(both.column(column), alone.column(column), rtol=1e-9, err_msg=column)
    assert (both.column("vog_loss") > 0).all()


def test_rows_without_any_image_have_no_columns_of_images():
    """A text model's columns alone, also of a model that could see."""
    case = VLM_CASES["llava"]
    scores, _ = scored(case, case.rows()[2::3][:7], 7)
    assert not {"vog_image", "vog_text", "image_share"} & set(scores.to_pandas().columns)
    assert (scores.column("vog") > 0).all()


def test_the_gradient_of_a_batch_is_that_of_its_texts():
    """`input_gradients` takes batches with any number of images."""
    case = VLM_CASES["qwen2-vl"]
    batch = case.collate_fn(case.rows()[:3])
    gradients = input_gradients(case.model(), batch)
    assert gradients.shape == (*batch["input_ids"].shape, 16)
    assert not gradients[batch["input_ids"] == 31].any()


@pytest.mark.parametrize("name", ["llava", "qwen2-vl"])
def test_images_that_fit_no_row_are_refused(name):
    """A text that was cut off within its image, as `truncation=True` does."""
    case = VLM_CASES[name]
    batch = case.collate_fn(case.rows()[1:2])
    cut = {key: value[:, 2:] if value.shape == batch["input_ids"].shape else value for key, value in batch.items()}
    with pytest.raises(DataError, match="a text may have been cut off within an image; do not truncate rows"):
        input_gradients(case.model(), cut)


def test_images_alone_are_the_main_input_only_where_each_row_has_one():
    """The columns of the image need no other main input, and the message says so."""
    case = VLM_CASES["llava"]
    model = case.model()
    model.main_input_name = "pixel_values"
    with pytest.raises(ModelError, match=r"rows with several images, or none, cannot have .* as the main input"):
        input_gradients(model, case.collate_fn(case.rows()[:3]))
    one_each = VLM_CASES["llava, one image each"]
    assert input_gradients(model, one_each.collate_fn(one_each.rows()[:3])).shape == (3, 3, 8, 8)
    scorer = VoGScorer(model, config=VoGConfig(token_units=True), batch_size=3, progress=False)
    with pytest.raises(ConfigError, match=r"the gradient is that of 'pixel_values'; set model\.main_input_name"):
        scorer.check(one_each.rows()[:3], collate_fn=one_each.collate_fn)


@pytest.mark.slow
@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("name", ["llava", "smolvlm", "qwen2-vl"])
def test_a_training_is_scored_with_one_added_line(name, collect, tmp_path):
    """The callback scores Trainer's own rows, in its own collator's batches, as the loop does."""
    case, steps = CASES[name], WeightsByStep()
    args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=3, learning_rate=1e-2)
    vog = VoGCallback(collect=collect, snapshots=[2, 4], batch_size=4, log=False)
    pieces = {"data_collator": case.collate_fn, "callbacks": [vog, steps]}
    Trainer(case.model(), args, train_dataset=case.rows()[:FEW], **pieces).train()
    for column, values in case.expected([steps.weights[2], steps.weights[4]], FEW).items():
        scale = np.nanmean(np.abs(values))
        assert_allclose(vog.scores.column(column), values, rtol=2e-4, atol=2e-4 * scale, err_msg=column)


def test_live_moments_are_restored_with_those_of_the_image():
    """The state of a live run holds all that the columns are made of."""
    from vog_hf.metric.batch_accumulator import BatchAccumulator
    from vog_hf.metric.windows import Windows

    def made():
        return BatchAccumulator(("vog",), Windows(4), channel_axis=None, mask=None, heat_maps=False)

    generator = torch.Generator().manual_seed(0)
    whole, first, second = made(), made(), made()
    masks = {
        "part/text": torch.tensor([[True, False], [True, True]]),
        "beside/mask/image": torch.ones(2, dtype=torch.bool),
    }
    for k in range(4):
        images = {"beside/share/image": torch.rand(2, generator=generator), **masks}
        images["beside/gradient/image"] = torch.randn(2, 3, 3, generator=generator)
        gradient = torch.randn(2, 2, 4, generator=generator)
        whole.update([gradient], dict(images))
        if k == 2:
            second.restore({name: value.clone() for name, value in first.state().items()}, 2)
        (first if k < 2 else second).update([gradient], dict(images))
    for name, values in whole.results().columns.items():
        np.testing.assert_array_equal(second.results().columns[name], values, err_msg=name)
    assert {"vog_image", "vog_text", "image_share"} <= set(second.results().columns)
