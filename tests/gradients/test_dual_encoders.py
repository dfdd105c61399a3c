"""Dual encoders: the row's own pair, image and text in one pass, either as the main input, and what is refused."""

import functools

import numpy as np
import pytest
import torch
import transformers as T
from models import _made, bert, collate, perturbed_states
from reference import reference_vog
from torch.testing import assert_close
from trainers import arguments
from unlabeled_cases import SIDE, WIDTH, captioned, clip, siglip, with_loss

from vog_hf import VoGCallback, VoGConfig, VoGScorer
from vog_hf.errors import ConfigError, ModelError
from vog_hf.gradients.dual_encoders import PairSimilarity, main_input, text_encoder
from vog_hf.gradients.input_gradients import input_gradients
from vog_hf.gradients.input_leaf import find_leaf


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


def word_embedding(model):
    """The embedding of the words, which the encoder of transformers 5.0 does not name."""
    names = ("token_embedding", "word_embeddings")
    (found,) = [module for name, module in model.text_model.named_modules() if name.endswith(names)]
    return found


def gradients_of_both(model, row):
    """Gradients of the similarity of one row alone: of its pixels or sound, and of the embeddings of its own tokens."""
    embedding, kept = word_embedding(model), []

    def cut(_module, _args, output):
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()

    handle = embedding.register_forward_hook(cut)
    inputs = {name: value[None].double() if value.is_floating_point() else value[None] for name, value in row.items()}
    name = next(name for name in inputs if name in ("pixel_values", "input_features"))
    inputs[name].requires_grad_()
    outputs = model(**inputs)  # of CLAP, the similarity has a scale of its own for each side
    similarity = outputs["logits_per_audio" if name == "input_features" else "logits_per_text"][0, 0]
    handle.remove()
    return [gradient[0].numpy() for gradient in torch.autograd.grad(similarity, [inputs[name], kept[0]])]


def expected_of_both(make, rows, states, seen="image"):
    """The columns of both sides, by a loop over snapshots and rows."""
    of_rows = [[[], []] for _ in rows]
    for state in states:
        model = make().double().eval()
        model.load_state_dict(state)
        for of_row, row in zip(of_rows, rows, strict=True):
            for gradients, gradient in zip(of_row, gradients_of_both(model, row), strict=True):
                gradients.append(gradient)
    image, text = ([np.stack(of_row[k]) for of_row in of_rows] for k in (0, 1))
    sizes = [[(g**2).reshape(len(g), -1).sum(1) for g in side] for side in (image, text)]
    return {
        f"vog_{seen}": reference_vog(image, channel_mean=seen != "audio"),
        "vog_text": reference_vog(text),
        f"{seen}_share": np.array([np.mean(a / (a + b)) for a, b in zip(*sizes, strict=True)]),
    }


def scored(model, rows, batch_size, **options):
    """Scores over two snapshots."""
    named = [(f"epoch-{k}", state) for k, state in enumerate(perturbed_states(model, 2))]
    scorer = VoGScorer(model, config=VoGConfig(**options), batch_size=batch_size, progress=False)
    return scorer.score(rows, named, collate_fn=collate)


def assert_columns(scores, expected):
    """To 1e-6, none of them constant."""
    for name, values in expected.items():
        assert np.ptp(values) > 0, name
        assert np.isfinite(values).all(), name
        np.testing.assert_allclose(
            scores.column(name), values, rtol=1e-6, atol=1e-6 * np.abs(values).mean(), err_msg=name
        )


@functools.cache
def expected_of_clip():
    """The columns of both sides of CLIP, over the snapshots that `scored` takes."""
    return expected_of_both(clip, captioned(), perturbed_states(clip().double(), 2))


@pytest.mark.parametrize("main", ["pixel_values", "input_ids"])
@pytest.mark.parametrize("batch_size", [1, 7, 53])
def test_image_and_text_are_both_reported_from_one_pass(batch_size, main):
    """In float64, for texts of several lengths, whichever of the two is the main input, which `vog` is of."""
    model, rows = clip().double(), captioned()
    if main == "input_ids":
        model.main_input_name = main
    scores, expected = scored(model, rows, batch_size), expected_of_clip()
    vog = expected["vog_image" if main == "pixel_values" else "vog_text"]
    assert_columns(scores, {**expected, "vog": vog})
    with torch.no_grad():
        model.load_state_dict(perturbed_states(model, 2)[-1])
        alone = collate(rows[3:4]) | {"pixel_values": rows[3]["pixel_values"][None].double()}
        similarity = model(**alone).logits_per_image
    np.testing.assert_allclose(scores.column("prediction")[3], float(similarity), rtol=1e-6)


def clap():
    """CLAP on one stage of a small window transformer."""
    audio = {"hidden_size": 8, "patch_embeds_hidden_size": 8, "depths": [1], "num_attention_heads": [2]}
    audio |= {"window_size": 2, "spec_size": 16, "num_mel_bins": 8, "patch_size": 4, "patch_stride": [4, 4]}
    text = {**WIDTH, "vocab_size": 29, "pad_token_id": 0, "max_position_embeddings": 16}
    config = T.ClapConfig(text_config=text, audio_config=audio, projection_dim=8, num_hidden_layers=1)
    return _made(lambda: T.ClapModel(config), 0)


def with_sounds():
    """Spectrograms with texts."""
    generator = torch.Generator().manual_seed(2)
    texts = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in captioned()[:7]]  # 2 to 8 tokens
    return [{"input_features": torch.randn((1, 32, 8), generator=generator), **text} for text in texts]


@pytest.mark.parametrize("name", ["siglip", "align", "clap"])
def test_other_families_report_both_sides(name):
    """Texts without a mask, an encoder with batch norm, sounds of as many mel bins as the longest text has tokens.

    The attention mask is the text's: no part of a sound is padding by it.
    """
    make = {"siglip": siglip, "align": align, "clap": clap}[name]
    rows = captioned(length=5)[:7] if name != "clap" else with_sounds()
    if name == "align":
        generator = torch.Generator().manual_seed(1)
        rows = [{**row, "pixel_values": torch.randn((3, 32, 32), generator=generator)} for row in rows]
    model = make().double()
    seen = "audio" if name == "clap" else "image"
    assert_columns(scored(model, rows, 4), expected_of_both(make, rows, perturbed_states(model, 2), seen))


def test_colors_are_kept_on_both_sides_alike():
    """`reduce_channels=False` keeps the colors of the image, whether it is the main input or beside the text."""
    rows, states = captioned()[:7], perturbed_states(clip().double(), 2)
    expected = expected_of_both(clip, rows, states, "image")
    pixels = []
    for row in rows:
        of_row = []
        for state in states:
            model = clip().double()
            model.load_state_dict(state)
            of_row.append(gradients_of_both(model, row)[0])
        pixels.append(np.stack(of_row))
    expected["vog_image"] = reference_vog(pixels)
    for main in ("pixel_values", "input_ids"):
        model = clip().double()
        model.main_input_name = main
        assert_columns(scored(model, rows, 4, reduce_channels=False), expected)


def test_live_scores_of_both_sides_are_those_of_replay(tmp_path):
    """In a training, to the bit of rounding."""
    found = []
    for collect in ("replay", "live"):
        args = arguments(tmp_path / collect, num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-2)
        vog = VoGCallback(collect=collect, snapshots=[2, 4], batch_size=3, log=False)
        pieces = {"data_collator": with_loss, "callbacks": [vog]}
        T.Trainer(clip(), args, train_dataset=captioned()[:8], **pieces).train()
        found.append(vog.scores)
    for column in ("vog", "vog_image", "vog_text", "image_share"):
        assert np.ptp(found[0].column(column)) > 0
        np.testing.assert_allclose(found[1].column(column), found[0].column(column), rtol=1e-5, err_msg=column)


def test_the_input_is_the_image_unless_the_model_names_another():
    """The class's own name says nothing of a dual encoder; other models keep theirs."""
    model, batch = clip(), with_loss(captioned()[:2])
    assert find_leaf(model, batch).name == "pixel_values"
    model.main_input_name = "input_ids"
    leaf = find_leaf(model, batch)
    assert (leaf.name, leaf.embedding) == ("input_ids", word_embedding(model))
    assert leaf.beside.name == "pixel_values"
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
