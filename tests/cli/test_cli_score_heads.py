"""`vog-hf score` for heads with a task of their own: answers, masks and transcripts from the columns of a dataset."""

import models
import numpy as np
import PIL.Image
import pytest
import torch
from cli_checkpoints import assert_scores, refused, saved, scored
from datasets import Dataset, Image
from task_cases import BLANK, recognizer, segmenter
from trainers import tokenizer
from transformers import (
    BertForQuestionAnswering,
    SegformerImageProcessor,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from vog_hf.cli.head_inputs import answer_tokens


def test_answers_are_found_among_the_tokens_of_the_context(capfd, tmp_path):
    """Whole words, a part of a word, and rows without an answer, in the columns of published datasets."""
    model = models._made(lambda: BertForQuestionAnswering(models.bert_config(num_labels=2)), 0)
    states = saved(tmp_path, model, tokenizer())
    questions, contexts = ["w5 w6", "w7", "w8 w9 w4"], ["w7 w8 w9 w10", "w5 w6", "w11 w12 w13"]
    answers = [{"text": ["w8 w9"], "answer_start": [3]}, {"text": ["w6"], "answer_start": [3]}]
    answers.append({"text": [], "answer_start": []})
    rows = {"question": questions, "context": contexts, "answers": answers}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "data"))
    ends = [(3, 4), (2, 2), (0, 0)]
    own = [
        {**{k: torch.tensor(v) for k, v in tokenizer()(q, c).items()}, "start_positions": a, "end_positions": b}
        for q, c, (a, b) in zip(questions, contexts, ends, strict=True)
    ]
    assert_scores(scored(capfd, tmp_path), model, states, own)
    Dataset.from_dict({"a": questions, "b": contexts}).save_to_disk(str(tmp_path / "unlabeled"))
    message = refused(capfd, tmp_path, tmp_path / "unlabeled")
    assert "question answering needs two columns, question and context, and the dataset has a, b; name them" in message
    named = ["--input-column", "a", "--input-column", "b"]
    assert "the dataset has no label (columns a, b)" in refused(capfd, tmp_path, tmp_path / "unlabeled", *named)


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [("bc", 1, (4, 4)), ("abc de", 0, (3, 4)), ("f", 6, (6, 6)), ("e f", 4, (4, 6)), ("abc", 0, (3, 4))],
)
def test_an_answer_that_is_cut_off_has_an_end_behind_the_tokens(text, start, expected):
    """A question of one token, and a context of which "f" is cut off."""
    parts, offsets = [None, 0, None, 1, 1, None], [(0, 0), (0, 2), (0, 0), (0, 1), (1, 6), (0, 0)]
    assert answer_tokens(parts, offsets, {"text": [text], "answer_start": [start]}) == expected
    assert answer_tokens(parts, offsets, None) == (0, 0)


def test_masks_go_through_the_processor_with_their_images(capfd, tmp_path):
    """The column of images that is not the input is that of the masks; masks in color are refused."""
    model = segmenter()
    states = saved(tmp_path, model, SegformerImageProcessor(size={"height": 8, "width": 8}, do_reduce_labels=False))
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    masks = generator.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (5, 8, 8))
    columns = {
        "image": [PIL.Image.fromarray(picture) for picture in pictures],
        "annotation": [PIL.Image.fromarray(mask) for mask in masks],
    }
    data = Dataset.from_dict(columns).cast_column("image", Image()).cast_column("annotation", Image())
    data.save_to_disk(str(tmp_path / "data"))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = ((pictures / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    own = [
        {"pixel_values": torch.from_numpy(image), "labels": torch.from_numpy(mask).long()}
        for image, mask in zip(pixels, masks, strict=True)
    ]
    assert_scores(scored(capfd, tmp_path), model, states, own)
    swapped = refused(capfd, tmp_path, tmp_path / "data", "--input-column", "annotation")
    assert "masks in column 'image' must have one class number per pixel, got an image of shape (8, 8, 3)" in swapped
    data.remove_columns("annotation").save_to_disk(str(tmp_path / "unlabeled"))
    assert "needs a column of images with the masks" in refused(capfd, tmp_path, tmp_path / "unlabeled")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "plain")
    message = refused(capfd, tmp_path, tmp_path / "data", "--processor", tmp_path / "plain")
    assert "cannot process these images with their masks" in message


def test_transcripts_go_through_the_tokenizer_of_the_model(capfd, tmp_path):
    """Waveforms and transcripts of several lengths."""
    model = recognizer()
    assert model.config.pad_token_id == BLANK
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=False, return_attention_mask=True)
    states = saved(tmp_path, model, extractor, tokenizer())
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (40, 53, 47)]
    texts = ["w4 w5", "w6 w6 w7", "w8"]
    Dataset.from_dict({"wave": [wave.tolist() for wave in waves], "text": texts}).save_to_disk(str(tmp_path / "data"))
    tokens = [[4, 5], [6, 6, 7], [8]]
    own = [
        {"input_values": wave, "attention_mask": torch.ones(len(wave)).long(), "labels": torch.tensor(row)}
        for wave, row in zip(waves, tokens, strict=True)
    ]
    assert_scores(scored(capfd, tmp_path, "--input-column", "wave"), model, states, own)
    Dataset.from_dict({"wave": [wave.tolist() for wave in waves]}).save_to_disk(str(tmp_path / "unlabeled"))
    message = refused(capfd, tmp_path, tmp_path / "unlabeled", "--input-column", "wave")
    assert "speech recognition needs a column with the transcripts; name one of wave with --label-column" in message
