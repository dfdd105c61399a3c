"""`vog-hf score` for heads that read and write text, tags and choices, and for images without labels."""

import json

import models
import numpy as np
import PIL.Image
import pytest
import tagged_texts
import torch
import trainers
from cli_checkpoints import END, START, assert_scores, language, refused, saved, scored
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_from_disk
from detection_cases import collate_images
from detectors import SIDE as DETECTED
from detectors import yolos
from numpy.testing import assert_allclose
from task_cases import collate_choices
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    ByT5Tokenizer,
    CLIPImageProcessor,
    DataCollatorForLanguageModeling,
    ViTImageProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    YolosImageProcessor,
)
from unlabeled_cases import SIDE, answerer, autoencoder, clip, masked_image_model

from vog_hf.cli.image_heads import MaskedImages
from vog_hf.cli.object_heads import Objects
from vog_hf.cli.word_heads import Choices, TaggedWords
from vog_hf.data import SeededPerRow
from vog_hf.errors import DataError, ModelError


def text_row(ids, labels=None):
    """Tokens as the model takes them, with a label each."""
    row = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
    return row if labels is None else row | {"labels": torch.tensor(labels)}


# --- tags -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    """Checkpoints of a tagger, with its texts; one of them has no word."""
    folder, fast = tmp_path_factory.mktemp("tags"), tagged_texts.tokenizer()
    model = tagged_texts.tagger(fast)
    model.config.id2label = dict(enumerate(tagged_texts.TAGS))
    model.config.label2id = {name: number for number, name in enumerate(tagged_texts.TAGS)}
    states = saved(folder, model, fast)
    rows = tagged_texts.tagged(12)
    rows.save_to_disk(str(folder / "data"))
    return folder, model, states, rows, fast


def test_tags_belong_to_the_first_parts_of_words(capfd, tags, tmp_path):
    """As in the published example; the row without a word is skipped, and columns of tags are lists like the tags."""
    folder, model, states, rows, fast = tags
    options = ["--max-length", tagged_texts.MAX_TOKENS, "--on-error", "skip", "--columns", "all"]
    got = scored(capfd, folder, *options, "--save-dataset", tmp_path / "saved", output=tmp_path / "scores")
    kept = [row for row in range(12) if row != 5]
    encoded = tagged_texts.with_labels(rows.select(kept)[:], fast)
    own = [
        {name: torch.tensor(values[at]) for name, values in encoded.items() if name != "token_type_ids"}
        for at in range(len(kept))
    ]
    wanted = assert_scores(got, model, states, own, of=kept)
    assert_allclose(got.units.column("loss_token"), wanted.units.column("loss_token"), rtol=1e-5)
    with_columns = load_from_disk(str(tmp_path / "saved"))
    assert [len(row["loss_token"]) for row in with_columns] == [len(row["ner_tags"]) for row in with_columns]
    assert with_columns.features["prediction_token"].feature.names == tagged_texts.TAGS


def test_tags_are_matched_by_name(capfd, tags, tmp_path):
    """Texts as tags, or numbers in another order, are the model's classes of these names; others name the row."""
    folder, _, _, rows, _ = tags
    rows = rows.select(range(5))
    expected = None
    for order in (tagged_texts.TAGS, tagged_texts.TAGS[::-1], None):
        names = [[tagged_texts.TAGS[tag] for tag in of_row] for of_row in rows["ner_tags"]]
        values = names if order is None else [[order.index(name) for name in of_row] for of_row in names]
        feature = rows.features if order is None else tagged_texts.features(order)
        made = Dataset.from_dict({"words": rows["tokens"][:], "tags": values})
        if order is not None:
            made = made.cast(Features({"words": feature["tokens"], "tags": feature["ner_tags"]}))
        made.save_to_disk(str(tmp_path / f"data-{order}"))
        got = scored(capfd, folder, data=tmp_path / f"data-{order}", output=tmp_path / f"scores-{order}")
        expected = got.column("vog") if expected is None else expected
        assert_allclose(got.column("vog"), expected, rtol=1e-6)
    names[3][1] = "ORG"
    Dataset.from_dict({"words": rows["tokens"][:], "tags": names}).save_to_disk(str(tmp_path / "unknown"))
    message = refused(capfd, folder, tmp_path / "unknown", "--label-column", "tags", "--input-column", "words")
    assert "row 3: label column 'tags' holds 'ORG', which is not a class of the model (O, PER, LOC)" in message


def test_faults_of_tags_show_before_the_model_is_loaded(capfd, tags, tmp_path):
    """Columns, names of lists of scores, targets and labels are checked with the weights out of reach."""
    folder, _, _, rows, _ = tags
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "config.json").write_text((folder / "checkpoint-1" / "config.json").read_text())
    data = tmp_path / "data"
    taken = rows.add_column("loss_token", [[0.0]] * len(rows))
    taken.save_to_disk(str(data))
    save = ["--save-dataset", tmp_path / "saved", "--columns", "all"]
    assert "the dataset has ['loss_token'] already; pass --prefix" in refused(capfd, tmp_path, data, *save)
    assert "--label 'predicted' needs a task that predicts one" in refused(
        capfd, tmp_path, data, "--label", "predicted"
    )
    assert "no column 'words'; it has tokens, ner" in refused(capfd, tmp_path, data, "--input-column", "words")
    message = refused(capfd, tmp_path, data, "--label-column", "tokens")
    assert "needs a column with lists of words and one with as many tags, and the dataset has tokens, ner" in message
    assert "cannot be loaded (as safetensors)" in refused(capfd, tmp_path, data)


def test_a_row_with_a_tag_too_few_is_named(capfd, tags, tmp_path):
    """Before the scoring."""
    rows = {"tokens": [["it", "rained"], ["ann"]], "ner_tags": [[0, 0], [0, 1]]}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "data"))
    message = refused(capfd, tags[0], tmp_path / "data")
    assert "row 1 has 1 words in column 'tokens' and 2 tags in column 'ner_tags'; give each word one tag" in message


def test_a_tokenizer_that_does_not_know_its_words_is_refused(tags):
    """It cannot tell which tokens a tag belongs to."""
    preparation = TaggedWords(ByT5Tokenizer(), "text", ("tokens",), "ner_tags")
    with pytest.raises(
        ModelError, match="ByT5Tokenizer does not say where in the text a token is, which tags of words"
    ):
        preparation.check(tags[3])


# --- choices ----------------------------------------------------------------------------------------------------------


def test_choices_are_columns_or_lists(capfd, tmp_path):
    """SWAG's columns, and a question with a list of choices and the letter of the right one."""
    model = models._made(lambda: BertForMultipleChoice(models.bert_config()), 0)
    states = saved(tmp_path, model, trainers.tokenizer())
    first, second, ends = ["w4", "w5 w6"], ["w7", "w8"], [["w9", "w10 w11"], ["w12", "w13"]]
    columns = {"sent1": first, "sent2": second, "ending0": ends[0], "ending1": ends[1], "label": [1, 0]}
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "data"))
    texts = [[[4, 7, 9], [4, 7, 12]], [[5, 6, 8, 10, 11], [5, 6, 8, 13, 0]]]
    own = [
        {
            "input_ids": torch.tensor(ids),
            "attention_mask": (torch.tensor(ids) > 0).long(),
            "labels": torch.tensor(label),
        }
        for ids, label in zip(texts, (1, 0), strict=True)
    ]
    wanted = assert_scores(scored(capfd, tmp_path), model, states, own, collate_fn=collate_choices)
    rows = {"question": first, "choices": [["w7 w9", "w7 w12"], ["w8 w10 w11", "w8 w13"]], "answer": ["B", "A"]}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "lists"))
    named = ["--label-column", "answer"]
    got = scored(capfd, tmp_path, *named, data=tmp_path / "lists", output=tmp_path / "again")
    assert_allclose(got.column("vog"), wanted.column("vog"), rtol=1e-5)
    rows["choices"][1].append("w4")
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "more"))
    message = refused(capfd, tmp_path, tmp_path / "more", *named)
    assert "row 1 has 3 choices in column 'choices', and row 0 has 2" in message
    assert "; score rows with other numbers of choices as a dataset of their own" in message
    message = refused(capfd, tmp_path, tmp_path / "data", "--input-column", "sent1")
    assert "multiple choice needs a column with the text and one for each choice" in message


def test_eleven_endings_are_choices_by_their_numbers():
    """The label is the number of an ending, so that ending10 comes last, not after ending1."""
    endings = [f"ending{number}" for number in range(11)]
    rows = Dataset.from_dict({name: ["w4"] for name in ["sent1", "sent2", *sorted(endings)]} | {"label": [10]})
    inputs, _ = Choices.find_columns(rows, None, (), None)
    assert inputs == ("sent1", "sent2", *endings)


# --- language models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """Checkpoints of a causal language model."""
    folder, model = tmp_path_factory.mktemp("writer"), answerer()
    return folder, model, saved(folder, model, language())


LANGUAGE_ROWS = {
    "text": ({"text": ["w4 w5", "w6 w7 w8 w3"]}, [([4, 5, END], 0), ([6, 7, 8, END], 0)]),
    "completion": (
        {"prompt": ["w4 w5 ", "w6 "], "completion": ["w7", "w8 w10"]},
        [([4, 5, 7, END], 2), ([6, 8, 10, END], 1)],
    ),
    "conversation": (
        {"messages": [[("user", "w4"), ("assistant", "w5 w6")], [("user", "w7 w8")]]},
        [([4, 5, 6], 0), ([7, 8], 0)],
    ),
    "conversation with a completion": (
        {"prompt": [[("user", "w4")], [("user", "w7 w8")]], "completion": [[("assistant", "w9 w5 w6")]] * 2},
        [([4, START, 5, 6], 2), ([7, 8, START, 5, 6], 3)],
    ),
}


@pytest.mark.parametrize("kind", LANGUAGE_ROWS)
def test_texts_and_conversations_are_tokenized_as_for_their_training(capfd, writer, tmp_path, kind):
    """As TRL's SFTTrainer does it: the end of a text counts, the tokens of a prompt do not."""
    folder, model, states = writer
    columns, expected = LANGUAGE_ROWS[kind]
    made = {
        name: [
            row if isinstance(row, str) else [{"role": role, "content": content} for role, content in row]
            for row in rows
        ]
        for name, rows in columns.items()
    }
    Dataset.from_dict(made).save_to_disk(str(tmp_path / "data"))
    own = [text_row(ids, [-100] * n_prompt + ids[n_prompt:]) for ids, n_prompt in expected]
    got = scored(capfd, folder, data=tmp_path / "data", output=tmp_path / "scores")
    assert_scores(got, model, states, own)
    assert got.manifest["transform"]["labels"] == ("completion" if "completion" in kind else "all tokens")


def test_a_causal_language_model_has_no_label_column(capfd, writer, tmp_path):
    """Nor a prediction to use instead, nor conversations without a template."""
    Dataset.from_dict({"text": ["w4 w5"], "label": [1]}).save_to_disk(str(tmp_path / "data"))
    message = refused(capfd, writer[0], tmp_path / "data", "--label-column", "label")
    assert "a causal language model has no label column, and --label-column names 'label'; leave it out" in message
    message = refused(capfd, writer[0], tmp_path / "data", "--label", "predicted")
    assert "--label 'predicted' needs a task that predicts one label per row" in message
    Dataset.from_dict({"messages": [[{"role": "user", "content": "w4"}]]}).save_to_disk(str(tmp_path / "chat"))
    language(chat_template=None).save_pretrained(tmp_path / "plain")
    message = refused(capfd, writer[0], tmp_path / "chat", "--processor", tmp_path / "plain")
    assert "column 'messages' holds conversations, and" in message
    assert "has no chat template; save the training's tokenizer with the model" in message


def test_masks_of_texts_are_the_same_in_every_batch(capfd, tmp_path):
    """A masked language model hides tokens, drawn once for each row, whatever shares its batch."""
    model = models._made(lambda: BertForMaskedLM(models.bert_config()), 0)
    fast = language()
    states = saved(tmp_path, model, fast)
    texts = ["w4 w5 w6 w7", "w8 w9", "w10 w11 w12"]
    Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "data"))
    got = scored(capfd, tmp_path, "--batch-size", "2")
    own = [dict(fast(text, return_special_tokens_mask=True)) for text in texts]
    masking = SeededPerRow(DataCollatorForLanguageModeling(fast, mlm_probability=0.15))
    assert_scores(got, model, states, own, collate_fn=masking)
    language(mask_token=None).save_pretrained(tmp_path / "plain")
    message = refused(capfd, tmp_path, tmp_path / "data", "--processor", tmp_path / "plain")
    assert "has no mask token, which a masked language model needs" in message


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_texts_to_write_are_labels(capfd, tmp_path, kind):
    """Texts and summaries of several lengths, by their usual names or as named."""
    model = models.CASES[kind]().model
    states = saved(tmp_path, model, trainers.tokenizer())
    read, written = ["w4 w5 w6", "w7"], ["w8 w9", "w10 w11 w12"]
    Dataset.from_dict({"text": read, "summary": written}).save_to_disk(str(tmp_path / "data"))
    own = [
        text_row(ids) | {"labels": torch.tensor(labels)} for ids, labels in (([4, 5, 6], [8, 9]), ([7], [10, 11, 12]))
    ]
    assert_scores(scored(capfd, tmp_path), model, states, own)
    Dataset.from_dict({"a": read, "b": written}).save_to_disk(str(tmp_path / "named"))
    message = refused(capfd, tmp_path, tmp_path / "named", "--input-column", "a")
    assert "needs a column that it reads and one that it writes, and the dataset has a, b; name them" in message
    if kind == "t5":
        named = ["--input-column", "a", "--label-column", "b"]
        assert_scores(
            scored(capfd, tmp_path, *named, data=tmp_path / "named", output=tmp_path / "again"), model, states, own
        )


def test_sounds_to_write_down_go_through_both_processors(capfd, tmp_path):
    """The transcript that Whisper writes has no token by which its decoder begins."""
    config = WhisperConfig(
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=10, max_target_positions=10,
        vocab_size=models.VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=3, decoder_start_token_id=2,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = models._made(lambda: WhisperForConditionalGeneration(config), 0)
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=100, hop_length=5, chunk_length=1, n_fft=32)
    states = saved(tmp_path, model, extractor, language())
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)).tolist() for n in (100, 80)]
    Dataset.from_dict({"wave": waves, "text": ["w2 w4 w5", "w2 w6"]}).save_to_disk(str(tmp_path / "data"))
    features = extractor([np.float32(wave) for wave in waves], sampling_rate=100)["input_features"]
    own = [
        {"input_features": torch.tensor(row), "labels": torch.tensor(ids)}
        for row, ids in zip(features, ([4, 5], [6]), strict=True)
    ]
    assert_scores(scored(capfd, tmp_path, "--input-column", "wave"), model, states, own)


# --- images without labels --------------------------------------------------------------------------------------------


def pictures(folder, n=4, **columns):
    """Images as a dataset, and as the model takes them."""
    values = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    rows = Dataset.from_dict({"image": [PIL.Image.fromarray(value) for value in values], **columns})
    rows.cast_column("image", Image()).save_to_disk(str(folder / "data"))
    pixels = ((values / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    return [{"pixel_values": torch.from_numpy(image)} for image in pixels]


def halves(kind=ViTImageProcessor, **options):
    """An image processor for them."""
    return kind(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, **options)


def test_a_masked_autoencoder_has_no_label(capfd, tmp_path):
    """Its noise is the row's; a label column is refused."""
    model = autoencoder()
    states = saved(tmp_path, model, halves())
    own = pictures(tmp_path, label=[0, 1, 0, 1])
    assert_scores(scored(capfd, tmp_path, "--batch-size", "3"), model, states, own)
    message = refused(capfd, tmp_path, tmp_path / "data", "--label-column", "label")
    assert "the reconstruction of images has no label column" in message
    assert "target 'probability' does not exist for task" in refused(
        capfd, tmp_path, tmp_path / "data", "--target", "probability"
    )


def test_masks_of_images_are_the_same_in_every_batch(capfd, tmp_path):
    """Three of four patches, 60 percent rounded up as in the published example, whatever shares the batch."""
    model = masked_image_model()
    states = saved(tmp_path, model, halves())
    own = pictures(tmp_path)
    alone, together = (
        scored(capfd, tmp_path, "--batch-size", size, output=tmp_path / size).column("vog") for size in ("1", "4")
    )
    assert_allclose(together, alone, rtol=1e-5)
    preparation = MaskedImages(None, "image", ("image",), None, patches=2)
    batch = preparation.collate(own)
    assert batch["bool_masked_pos"].sum(1).tolist() == [3] * 4
    assert_scores(scored(capfd, tmp_path, output=tmp_path / "4"), model, states, own, collate_fn=preparation.collate)
    large = MaskedImages(None, "image", ("image",), None, patches=12, side=2)
    masked = large.collate(own)["bool_masked_pos"].reshape(4, 6, 2, 6, 2)
    assert (masked.sum((1, 2, 3, 4)) == 4 * 22).all()
    assert (masked.float().mean((2, 4)) % 1 == 0).all()


def test_images_go_with_their_captions(capfd, tmp_path):
    """Captions of several lengths; the columns are found by their types."""
    model = clip()
    fast = language()
    states = saved(tmp_path, model, halves(CLIPImageProcessor, do_center_crop=False), fast)
    captions = ["w4 w5 w2", "w6 w2", "w7 w8 w9 w2", "w4 w2"]
    own = pictures(tmp_path, caption=captions)
    own = [image | text_row(fast(text)["input_ids"]) for image, text in zip(own, captions, strict=True)]
    got = scored(capfd, tmp_path)
    assert_scores(got, model, states, own, columns=("vog", "prediction"))
    assert got.manifest["transform"]["input_columns"] == ["image", "caption"]
    message = refused(capfd, tmp_path, tmp_path / "data", "--input-column", "image")
    assert "a dual encoder takes two columns, image and text, got image; name both with --input-column" in message


def test_objects_go_through_the_processor_with_their_image(capfd, tmp_path):
    """Boxes in pixels, and categories by their names; images of several sizes are refused."""
    model = yolos()
    model.config.id2label, model.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    size = {"height": DETECTED, "width": DETECTED}
    processor = YolosImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pad=False)
    states = saved(tmp_path, model, processor)
    values = np.random.default_rng(0).integers(0, 256, (4, DETECTED, DETECTED, 3), dtype=np.uint8)
    boxes = [[[0.0, 0.0, 8.0, 4.0], [4.0, 4.0, 8.0, 8.0]], [[2.0, 2.0, 4.0, 4.0]], [[0.0, 8.0, 16.0, 8.0]]]
    boxes.append([[1.0, 1.0, 2.0, 2.0]])
    classes = [[0, 2], [1], [2], [0]]
    columns = {
        "image": [PIL.Image.fromarray(value) for value in values],
        "objects": [
            {"bbox": of_row, "category": [2 - number for number in numbers]}
            for of_row, numbers in zip(boxes, classes, strict=True)
        ],
    }
    lists = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["c", "b", "a"]))}
    features = Features({"image": Image(), "objects": lists})
    Dataset.from_dict(columns, features=features).save_to_disk(str(tmp_path / "data"))
    pixels = ((values / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    own = []
    for image, of_row, numbers in zip(pixels, boxes, classes, strict=True):
        corners = torch.tensor(of_row) / DETECTED
        shares = torch.cat([corners[:, :2] + corners[:, 2:] / 2, corners[:, 2:]], dim=1)
        labels = {"class_labels": torch.tensor(numbers), "boxes": shares}
        own.append({"pixel_values": torch.from_numpy(image), "labels": labels})
    got = scored(capfd, tmp_path, "--batch-size", "3")
    wanted = assert_scores(got, model, states, own, collate_fn=collate_images)
    assert_allclose(got.units.column("loss_object"), wanted.units.column("loss_object"), rtol=1e-5)
    message = refused(capfd, tmp_path, tmp_path / "data", "--label-column", "image")
    assert "detection needs a column with lists bbox (left, top, width, height, in pixels) and category" in message
    preparation = Objects(processor, "image", ("image",), "objects")
    with pytest.raises(DataError, match=r"gives images of several sizes .* set size to a height and a width"):
        preparation.collate([{"pixel_values": torch.zeros(3, n, n), "labels": {}} for n in (4, 8)])


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "kind", "advice"),
    [
        ("LlavaForConditionalGeneration", "llava", "with a collator that calls the model's processor"),
        ("BertForPreTraining", "bert", "use the same checkpoint with a head of this list, or VoGScorer"),
        ("Wav2Vec2ForPreTraining", "wav2vec2", "use the same checkpoint with a head of this list, or VoGScorer"),
        ("XLNetLMHeadModel", "xlnet", "use VoGScorer(model), from Python"),
        ("LayoutLMForTokenClassification", "layoutlm", "use VoGScorer(model), from Python, with a collator"),
        ("DPTForDepthEstimation", "dpt", "use VoGScorer(model, config=VoGConfig(target=a callable)), from Python"),
    ],
)
def test_a_refused_model_names_what_works(capfd, tmp_path, architecture, kind, advice):
    """Before its weights are looked for."""
    (tmp_path / "checkpoint-1").mkdir()
    described = {"model_type": kind, "architectures": [architecture]}
    (tmp_path / "checkpoint-1" / "config.json").write_text(json.dumps(described))
    Dataset.from_dict({"text": ["w4"]}, features=Features({"text": Value("string")})).save_to_disk(
        str(tmp_path / "data")
    )
    message = refused(capfd, tmp_path, tmp_path / "data")
    assert "vog-hf score takes classification, regression, token classification" in message
    assert f"is a {architecture}; use" in message
    assert advice in message


def test_a_model_of_another_library_is_refused(capfd, tmp_path):
    """Its class is not one of transformers."""
    (tmp_path / "checkpoint-1").mkdir()
    described = {"model_type": "bert", "architectures": ["MyModel"]}
    (tmp_path / "checkpoint-1" / "config.json").write_text(json.dumps(described))
    Dataset.from_dict({"text": ["w4"]}).save_to_disk(str(tmp_path / "data"))
    message = refused(capfd, tmp_path, tmp_path / "data")
    assert "vog-hf score takes models of transformers, and" in message
    assert "is a MyModel; score it from Python with VoGScorer" in message
