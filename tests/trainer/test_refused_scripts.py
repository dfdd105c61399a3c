"""Published trainings that are refused as they are: what the message and docs/limitations.md advise is scored right."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from limitations_page import code_of_page
from random_models import WAVES
from reference import reference_gradients, reference_vog
from torch.testing import assert_close
from trainers import WeightsByStep, arguments
from transformers import Trainer
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

from vog_hf import VoGCallback, VoGConfig
from vog_hf.data import SeededPerRow
from vog_hf.errors import DataError, ModelError

pytestmark = pytest.mark.slow
N_ROWS, SIDE = 6, 8
WIDTH = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def page_code():
    """The names that the code blocks of the page define, run one after the other, for the small models here."""
    names = code_of_page()
    names["N_PATCHES"] = (SIDE // 4) ** 2
    return names


PAGE_CODE = page_code()


def drawn(*shape):
    """Numbers of one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def stacked(rows):
    """A batch of rows whose tensors have one shape; everything else becomes a list."""
    return {
        name: torch.stack([row[name] for row in rows])
        if isinstance(rows[0][name], torch.Tensor)
        else [row[name] for row in rows]
        for name in rows[0]
    }


@dataclass(frozen=True)
class Script:
    """A training as it is published, why it is refused, and how it is scored.

    Attributes:
        model: Makes the model.
        rows: What Trainer trains on.
        collate_fn: Trainer's collator.
        refused: Text of the error.
        target: Name of the callable on the page; None: the model has a task.
        scalar: The same of one row by other means: ``scalar(outputs, row) -> [1]``.
        collate_scored: Collator that is passed to the callback, where the message asks for another.
        channels: Whether gradients are averaged over channels.
    """

    model: Callable[[], Any]
    rows: Callable[[], list[dict[str, Any]]]
    refused: str
    target: str | None
    scalar: Callable[[Any, dict[str, Any]], torch.Tensor]
    collate_fn: Callable[[list[Any]], Any] = stacked
    collate_scored: Callable[[list[Any]], Any] | None = None
    channels: bool = True
    fed: tuple[str, ...] = field(default=("pixel_values",))

    def built(self) -> Any:
        """The model, the same in every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.model()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model


# --- models, rows and what they mean --------------------------------------------------------------------------------


def images(**others):
    """Rows of pixels, with a function of the row number for every other key."""
    pixels = drawn(N_ROWS, 3, SIDE, SIDE)
    return [{"pixel_values": pixels[i], **{name: make(i) for name, make in others.items()}} for i in range(N_ROWS)]


def detector():
    """DETR on a small ResNet."""
    backbone = T.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = T.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, use_pretrained_backbone=False,
        num_queries=4, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_labels=3,
    )  # fmt: skip
    return T.DetrForObjectDetection(config)


def objects(i):
    """One object, or none."""
    classes = torch.tensor([] if i == 2 else [i % 3], dtype=torch.int64)
    return {"class_labels": classes, "boxes": torch.full((len(classes), 4), 0.5)}


def masked_image_model():
    """SimMIM on ViT."""
    return T.ViTForMaskedImageModeling(T.ViTConfig(image_size=SIDE, patch_size=4, encoder_stride=4, **WIDTH))


def masked_error_of_one_row(outputs, row):
    """Mean absolute error over the pixels of masked patches and their channels."""
    errors, n = 0, 0
    for patch in row["bool_masked_pos"].nonzero().flatten().tolist():
        y, x = 4 * (patch // 2), 4 * (patch % 2)
        place = (slice(None), slice(y, y + 4), slice(x, x + 4))
        errors, n = errors + (outputs.reconstruction[0][place] - row["pixel_values"][place]).abs().sum(), n + 16
    return (errors / n / 3)[None]


def speech_pretraining():
    """Wav2Vec2 with its quantizer."""
    options = {"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8, "num_negatives": 2}
    return T.Wav2Vec2ForPreTraining(T.Wav2Vec2Config(**{**WAVES, **options, "do_stable_layer_norm": True}))


def mask_speech(rows):
    """As the published collator: masks and negatives, drawn from numpy's global stream."""
    mask = _compute_mask_indices((len(rows), 14), 0.6, 2)
    negatives = _sample_negative_indices((len(rows), 14), 2, mask_time_indices=mask)
    return {
        "input_values": torch.stack([row["input_values"] for row in rows]),
        "mask_time_indices": torch.tensor(mask),
        "sampled_negative_indices": torch.tensor(negatives),
    }


def speech_similarity_of_one_row(outputs, row):
    """Mean cosine between state and quantized state over the masked steps."""
    steps = row["mask_time_indices"].nonzero().flatten()
    a, b = outputs.projected_states[0][steps], outputs.projected_quantized_states[0][steps]
    return ((a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()).mean()[None]


SCRIPTS = {
    "object detection of images without objects": Script(
        detector,
        lambda: images(labels=objects),
        r"row 2: a row has no object, so it has no target; .*a callable target",
        "objectness",
        lambda outputs, row: outputs.logits[0, :, :-1].exp().sum(-1).log().max()[None],
    ),
    "masked image modeling": Script(
        masked_image_model,
        images,
        r"the collator is random.*SeededPerRow\(collator\), from vog_hf\.data",
        None,
        masked_error_of_one_row,
        collate_fn=PAGE_CODE["masked_images"],
        collate_scored=PAGE_CODE["collate_images"],
        fed=("pixel_values", "bool_masked_pos"),
    ),
    "speech pretraining": Script(
        speech_pretraining,
        lambda: [{"input_values": values} for values in drawn(N_ROWS, 60)],
        r"the collator is random.*SeededPerRow\(collator\), from vog_hf\.data",
        "masked_similarity",
        speech_similarity_of_one_row,
        collate_fn=mask_speech,
        collate_scored=SeededPerRow(mask_speech),
        channels=False,
        fed=("input_values", "mask_time_indices", "sampled_negative_indices"),
    ),
}


# --- trainings ------------------------------------------------------------------------------------------------------


def trained(script, model, folder, *callbacks):
    """Two epochs of the script."""
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-2}
    Trainer(
        model,
        arguments(folder, **options),
        train_dataset=script.rows(),
        data_collator=script.collate_fn,
        callbacks=list(callbacks),
    ).train()
    return model


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_as_it_is_published_is_refused_before_the_first_step(name, tmp_path):
    """The message names what works, which the next test does."""
    script, steps = SCRIPTS[name], WeightsByStep()
    with pytest.raises((DataError, ModelError), match=script.refused):
        trained(script, script.built(), tmp_path, VoGCallback(log=False), steps)
    assert not steps.weights


@pytest.mark.parametrize("collect", ["replay", "live"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_advice_leads_to_scores(name, collect, tmp_path):
    """With the page's target and collator, scores are those of a loop over rows and snapshots by another formula."""
    script, steps = SCRIPTS[name], WeightsByStep()
    vog = VoGCallback(
        script.rows(),
        config=VoGConfig(target=PAGE_CODE[script.target] if script.target else "logit"),
        collate_fn=script.collate_scored,
        collect=collect,
        snapshots=[2, 4],
        batch_size=4,
        log=False,
    )
    trained(script, script.built(), tmp_path, vog, steps)
    expected = expected_scores(script, [steps.weights[2], steps.weights[4]])
    assert np.ptp(expected) > 0
    assert_close(vog.scores.column("vog").astype(np.float64), expected, rtol=2e-4, atol=2e-4 * expected.mean())


def expected_scores(script, states):
    """The oracle's: one row at a time, as the collator makes it alone."""
    model = script.built()
    gradients = []
    for row in script.rows():
        alone = row
        if script.collate_scored is not None:
            alone = {name: value[0] for name, value in script.collate_scored([row]).items()}
        exact = {n: v.double() if n in script.fed and v.is_floating_point() else v for n, v in alone.items()}
        gradients += reference_gradients(
            copy.deepcopy(model),
            states,
            [{name: exact[name] for name in script.fed}],
            lambda outputs, _, exact=exact: script.scalar(outputs, exact),
            [0],
            task="callable",
        )
    return reference_vog(gradients, channel_mean=script.channels)
