"""Dual encoders: the row's own pair, the image or the text as the input, and what is refused."""

import numpy as np
import pytest
import torch
import transformers as T
from models import _made, bert, collate, perturbed_states
from reference import reference_vog
from torch.testing import assert_close
from unlabeled_cases import SIDE, WIDTH, captioned, clip, siglip, with_loss

from vog_hf import VoGConfig, VoGScorer
from vog_hf.errors import ConfigError, ModelError
from vog_hf.gradients.dual_encoders import PairSimilarity, main_input, text_encoder
from vog_hf.gradients.input_gradients import input_gradients
from vog_hf.gradients.input_leaf import find_leaf

NEEDS_EMBEDDING = pytest.mark.skipif(
    not hasattr(clip().text_model, "get_input_embeddings"), reason="the text part of this CLIP names no embedding"
)


def align():
    """ALIGN on one block of EfficientNet, with batch norm."""
    vision = {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 8}
    config = T.AlignConfig(text_config={**WIDTH, "vocab_size": 29}, vision_config=vision, projection_dim=32)
    return _made(lambda: T.AlignModel(config), 0)


@pytest.mark.parametrize(("make", "side"), [(clip, SIDE), (siglip, SIDE), (align, 32)])
def test_the_similarity_of_a_row_is_the_models_for_the_row_alone(make, side):
    """In float64, and its gradient with respect to the pixels is that of the row alone, whatever shares the batch."""
    model, rows = make().double(), captioned(length=5)[:3]
    batch = with_loss(rows)
    generator = torch.Generator().manual_seed(1)
    batch["pixel_values"] = torch.randn((3, 3, side, side), generator=generator, dtype=torch.float64)
    gradients = input_gradients(model, batch)
    for i in range(3):
        alone = {name: value[i : i + 1] for name, value in batch.items() if name != "return_loss"}
        x = alone["pixel_values"].clone().requires_grad_()
        similarity = model(**{**alone, "pixel_values": x}).logits_per_text[0, 0]
        assert_close(gradients[i], torch.autograd.grad(similarity, x)[0][0], rtol=1e-6, atol=1e-9)


def text_gradient(model, row):
    """Gradient of the similarity of one row with respect to the embeddings of its own tokens, by a hook."""
    embedding, kept = model.text_model.get_input_embeddings(), []

    def cut(_module, _args, output):
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    handle = embedding.register_forward_hook(cut)
    inputs = {name: value[None].double() if value.is_floating_point() else value[None] for name, value in row.items()}
    similarity = model(**inputs).logits_per_image[0, 0]
    handle.remove()
    return torch.autograd.grad(similarity, kept[0])[0][0].numpy()


@NEEDS_EMBEDDING
@pytest.mark.parametrize("batch_size", [1, 7, 53])
def test_the_text_is_the_input_where_the_model_names_it(batch_size):
    """With ``main_input_name = "input_ids"``, texts of several lengths are scored by their own tokens."""
    model, rows = clip().double(), captioned()
    model.main_input_name = "input_ids"
    states = perturbed_states(model, 2)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states)]
    scores = VoGScorer(model, batch_size=batch_size, progress=False).score(rows, named, collate_fn=collate)
    gradients = [[] for _ in rows]
    for state in states:
        other = clip().double()
        other.load_state_dict(state)
        for of_row, row in zip(gradients, rows, strict=True):
            of_row.append(text_gradient(other, row))
    np.testing.assert_allclose(scores.column("vog"), reference_vog([np.stack(g) for g in gradients]), rtol=1e-6)
    with torch.no_grad():
        other_logits = other(**collate(rows[3:4]) | {"pixel_values": rows[3]["pixel_values"][None].double()})
    np.testing.assert_allclose(scores.column("prediction")[3], float(other_logits.logits_per_image), rtol=1e-6)


@NEEDS_EMBEDDING
def test_the_input_is_the_image_unless_the_model_names_another():
    """The class's own name says nothing of a dual encoder; other models keep theirs."""
    model, batch = clip(), with_loss(captioned()[:2])
    assert find_leaf(model, batch).name == "pixel_values"
    model.main_input_name = "input_ids"
    leaf = find_leaf(model, batch)
    assert (leaf.name, leaf.embedding) == ("input_ids", model.text_model.get_input_embeddings())
    single = bert().model
    assert (main_input(single), text_encoder(single)) == ("input_ids", None)


def test_what_the_task_cannot_have_is_refused():
    """A loss of its own, several texts per image, other outputs."""
    with pytest.raises(ConfigError, match="'loss' does not exist for pair_similarity, which has logit or a callable"):
        VoGScorer(clip(), config=VoGConfig(target="loss"), progress=False).check(captioned(), collate_fn=collate)
    task, outputs = PairSimilarity(), dict.fromkeys(("logits_per_image", "logits_per_text"), torch.zeros(2, 3))
    with pytest.raises(ModelError, match=r"needs as many texts as images or sounds, got \(2, 3\)"):
        task.logits(outputs, {})
    with pytest.raises(ModelError, match="needs outputs with logits_per_text and one of logits_per_image"):
        task.logits(torch.zeros(2, 2), {})
