"""Pixel reconstruction: the row's loss is the model's own of the row alone, under a mask that belongs to the row."""

import numpy as np
import pytest
import torch
import transformers as T
from models import _made, perturbed_states
from torch import nn
from torch.testing import assert_close
from unlabeled_cases import N_PATCHES, SIDE, _images, autoencoder, masked_image_model

from vog_hf import VoGConfig, VoGScorer
from vog_hf.errors import ConfigError, LabelError, ModelError
from vog_hf.gradients.fixed_noise import fixed_noise
from vog_hf.gradients.input_gradients import input_gradients
from vog_hf.gradients.model_inputs import forward_inputs
from vog_hf.gradients.targets import find_task
from vog_hf.scoring.forward_only import companions


def hiera(**options):
    """A hierarchical masked autoencoder, which masks several patches at a time and normalizes its targets."""
    config = T.HieraConfig(
        embed_dim=4, image_size=[32, 32], depths=[1, 1], num_heads=[1, 1], masked_unit_size=[2, 2], num_query_pool=1,
        decoder_hidden_size=8, decoder_depth=1, decoder_num_heads=1, mask_ratio=0.5, **options,
    )  # fmt: skip
    return _made(lambda: T.HieraForPreTraining(config), 0)


def swin():
    """SimMIM on Swin."""
    config = T.SwinConfig(image_size=16, patch_size=2, embed_dim=4, depths=[1, 1], num_heads=[1, 1], window_size=2)
    config.encoder_stride = 4
    return _made(lambda: T.SwinForMaskedImageModeling(config), 0)


MODELS = {
    "autoencoder": (autoencoder, SIDE),
    "autoencoder, normalized": (lambda: autoencoder(norm_pix_loss=True), SIDE),
    "hiera": (hiera, 32),
    "hiera, not normalized": (lambda: hiera(normalize_pixel_loss=False), 32),
    "masked images": (masked_image_model, SIDE),
    "swin": (swin, 16),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_row_is_that_of_the_model_for_the_row_alone(name):
    """In float64, for each row of a batch, with the noise of the library or a mask that the batch has."""
    make, side = MODELS[name]
    model, generator = make().double(), torch.Generator().manual_seed(2)
    batch = {"pixel_values": torch.randn((5, 3, side, side), generator=generator, dtype=torch.float64)}
    if "masked" in name or name == "swin":
        n_patches = (side // model.config.patch_size) ** 2
        batch["bool_masked_pos"] = torch.rand((5, n_patches), generator=generator) < 0.6
        batch["bool_masked_pos"][:, 0] = True
    inputs = forward_inputs(model, batch, None)
    with torch.no_grad():
        outputs = model(**inputs)
        task = find_task(model, outputs, None)
        losses = task.observation(task.logits(outputs, inputs), None)["loss"]
        alone = [model(**{key: value[i : i + 1] for key, value in inputs.items()}).loss for i in range(5)]
    assert task.name == "pixel_reconstruction"
    assert_close(losses, torch.stack(alone))


def test_noise_belongs_to_the_row_whatever_shares_its_batch():
    """It is made of the row's pixels, in whatever dtype; a batch that has noise keeps it; global streams stay."""
    model, pixels = autoencoder(), torch.stack([row["pixel_values"] for row in _images()])
    state = torch.get_rng_state()
    noise = fixed_noise(model, {"pixel_values": pixels})["noise"]
    assert noise.shape == (len(pixels), N_PATCHES)
    assert len({tuple(row.tolist()) for row in noise}) == len(pixels)
    assert 0.4 < float(noise.mean()) < 0.6
    assert_close(fixed_noise(model, {"pixel_values": pixels[7:9].double()})["noise"], noise[7:9], rtol=0, atol=0)
    given = {"pixel_values": pixels, "noise": torch.zeros(len(pixels), N_PATCHES)}
    assert forward_inputs(model, given, None)["noise"] is given["noise"]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_without_noise_is_scored_under_the_rows_own_masks():
    """Scores are equal in batches of 1, 7 and all rows, and those of rows that bring the same noise along."""
    model, rows = autoencoder().double(), [{"pixel_values": row["pixel_values"]} for row in _images()]
    named = [(f"epoch-{k}", state) for k, state in enumerate(perturbed_states(model, 2))]
    noise = fixed_noise(model, {"pixel_values": torch.stack([row["pixel_values"] for row in rows])})["noise"]
    noisy = [row | {"noise": of_row} for row, of_row in zip(rows, noise, strict=True)]
    scored = [
        VoGScorer(model, batch_size=size, progress=False).score(data, named).to_pandas()
        for data, size in ((noisy, 53), (rows, 53), (rows, 7), (rows, 1))
    ]
    for scores in scored[1:]:
        np.testing.assert_allclose(scores["vog"], scored[0]["vog"], rtol=1e-9)
        np.testing.assert_allclose(scores["loss"], scored[0]["loss"], rtol=1e-9)
    found = companions(model, rows, named, batch_size=7)
    np.testing.assert_allclose(found["loss"], scored[0]["loss"], rtol=1e-6)
    assert list(found) == ["loss"]


def test_masked_pixels_have_no_gradient_and_the_target_is_constant():
    """The gradient goes through the reconstruction alone, so pixels that the model does not see have none."""
    model, (row, *_) = masked_image_model(), _images(bool_masked_pos=lambda *_: torch.arange(N_PATCHES) < 1)
    gradient = input_gradients(model, {name: value[None] for name, value in row.items()})
    assert float(gradient[0, :, :4, :4].abs().max()) == 0.0
    assert float(gradient[0].abs().max()) > 0.0


def test_what_the_task_cannot_have_is_refused():
    """A missing mask, one that hides nothing, other outputs, a probability."""
    model, rows = masked_image_model(), _images(bool_masked_pos=lambda i, _: torch.arange(N_PATCHES) < i % 20)
    with pytest.raises(LabelError, match=r"row 0: a row has no masked patch .*; mask at least one patch of each row"):
        VoGScorer(model, progress=False).check(rows)
    VoGScorer(model, progress=False).check(rows[1:20])
    with pytest.raises(ModelError, match=r"has no bool_masked_pos .*collate_fn=SeededPerRow\(collator\)"):
        VoGScorer(model, progress=False).check(_images())
    with pytest.raises(ConfigError, match="'probability' does not exist for pixel_reconstruction, which has log"):
        VoGScorer(model, config=VoGConfig(target="probability"), progress=False).check(rows[1:20])
    task = find_task(nn.Identity(), torch.zeros(2, 3), None, name="pixel_reconstruction")
    with pytest.raises(ModelError, match=r"needs images and outputs with `reconstruction`.* got Tensor"):
        task.logits(torch.zeros(2, 3), {"pixel_values": torch.zeros(2, 3, 4, 4)})
