"""Small data and models for the scripts of `tests/scripts` with a task of their own, by the name of the script."""

import json

import models
import numpy as np
import PIL.Image
import sentence_cases
import tagged_texts
import task_cases
import trainers
import unlabeled_cases
from cli_checkpoints import END, language
from datasets import Dataset, Image
from example_scripts import make_images, make_texts
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    CLIPImageProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    SegformerImageProcessor,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

N_ROWS, SIDE = 12, unlabeled_cases.SIDE
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def words(n, seed):
    """Texts of ``n`` words."""
    draw = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in draw.integers(4, models.VOCABULARY, n)) for _ in range(N_ROWS)]


def saved(folder, model, *processors):
    """A model with its processors."""
    for part in (model, *processors):
        part.save_pretrained(folder / "model")


def lines(folder, rows, name="train.json"):
    """Rows as a file of JSON lines."""
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def parquet(folder, columns, *images):
    """Columns as a file, some of them of images."""
    rows = Dataset.from_dict(columns)
    for name in images:
        rows = rows.cast_column(name, Image())
    rows.to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


def pictures(high=256, channels=(3,)):
    """Images of noise."""
    values = np.random.default_rng(0).integers(0, high, (N_ROWS, SIDE, SIDE, *channels), dtype=np.uint8)
    return [PIL.Image.fromarray(value) for value in values]


def ner(folder):
    """Words with names of tags."""
    fast = tagged_texts.tokenizer()
    saved(folder, tagged_texts.tagger(fast), fast)
    rows = tagged_texts.tagged(N_ROWS + 1).select([row for row in range(N_ROWS + 1) if row != 5])
    named = [{**row, "ner_tags": [tagged_texts.TAGS[tag] for tag in row["ner_tags"]]} for row in rows]
    return lines(folder, named)


def qa(folder):
    """Texts with their third word as the answer."""
    model = models._made(lambda: BertForQuestionAnswering(models.bert_config(num_labels=2)), 0)
    saved(folder, model, trainers.tokenizer())
    rows = []
    for question, context in zip(words(3, 0), words(6, 1), strict=True):
        answer = context.split()[2]
        start = len(" ".join(context.split()[:2])) + 1
        rows.append({"question": question, "context": context, "answers": {"text": [answer], "answer_start": [start]}})
    return lines(folder, rows)


def swag(folder):
    """Two beginnings and four endings."""
    saved(folder, models._made(lambda: BertForMultipleChoice(models.bert_config()), 0), trainers.tokenizer())
    columns = {"sent1": words(3, 0), "sent2": words(2, 1), **{f"ending{i}": words(1 + i, 2 + i) for i in range(4)}}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return lines(folder, [{**row, "label": i % 4} for i, row in enumerate(rows)])


def segmentation(folder):
    """Images with masks of three classes."""
    size = {"height": SIDE, "width": SIDE}
    saved(folder, task_cases.segmenter(), SegformerImageProcessor(size=size, do_reduce_labels=False))
    return parquet(folder, {"pixel_values": pictures(), "label": pictures(3, ())}, "pixel_values", "label")


def clm(folder):
    """A text of several blocks."""
    config = LlamaConfig(**unlabeled_cases.WIDTH, vocab_size=models.VOCABULARY, max_position_embeddings=32)
    saved(folder, models._made(lambda: LlamaForCausalLM(config), 0), trainers.tokenizer())
    (folder / "train.txt").write_text("\n".join(words(16, 0)) + "\n")
    return folder / "train.txt"


def mlm(folder):
    """A text per line."""
    fast = trainers.tokenizer()
    fast.mask_token = "w3"  # noqa: S105 (a word)
    saved(folder, models._made(lambda: BertForMaskedLM(models.bert_config()), 0), fast)
    (folder / "train.txt").write_text("\n".join(words(9, 0)) + "\n")
    return folder / "train.txt"


def mae(folder):
    """Images."""
    saved(folder, unlabeled_cases.autoencoder(), ViTImageProcessor(size={"height": SIDE, "width": SIDE}, **HALF))
    return parquet(folder, {"image": pictures()}, "image")


def clip(folder):
    """Images with captions."""
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE, **HALF)
    saved(folder, unlabeled_cases.clip(), processor, trainers.tokenizer())
    captions = [f"{text} w28" for text in words(4, 0)]
    return parquet(folder, {"image": pictures(), "caption": captions}, "image")


def ctc(folder):
    """Waves with transcripts."""
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=False)
    saved(folder, task_cases.recognizer(), extractor, trainers.tokenizer())
    waves = np.random.default_rng(0).normal(size=(N_ROWS, 60)).tolist()
    return parquet(folder, {"audio": waves, "text": words(2, 0)})


def nli_bi_encoder(folder):
    """Triplets, and pairs with scores."""
    saved(folder, sentence_cases.bert(), trainers.tokenizer())
    triplets = zip(words(4, 0), words(3, 1), words(5, 2), strict=True)
    lines(folder, [dict(zip(sentence_cases.TRIPLET, texts, strict=True)) for texts in triplets])
    pairs = zip(words(4, 3), words(4, 4), strict=True)
    lines(folder, [{"sentence1": a, "sentence2": b, "score": i / 12} for i, (a, b) in enumerate(pairs)], "dev.json")
    return folder / "train.json"


def duplicates_cross_encoder(folder):
    """Pairs with a label of 0 or 1."""
    model = models._made(lambda: BertForSequenceClassification(models.bert_config(num_labels=1)), 0)
    saved(folder, model, trainers.tokenizer())
    for name, seed in (("dev.json", 2), ("train.json", 0)):
        pairs = zip(words(4, seed), words(3, seed + 1), strict=True)
        lines(folder, [{"sentence1": a, "sentence2": b, "label": i % 2} for i, (a, b) in enumerate(pairs)], name)
    return folder / "train.json"


def nlp_loop(folder):
    """Texts that praise or blame."""
    make_texts(folder)
    return folder / "train.csv"


def cv_loop(folder):
    """Digits."""
    make_images(folder)
    return folder / "train"


def folder_of(folder, rows):
    """Rows in a folder, which a script loads by its name."""
    (folder / "rows").mkdir()
    lines(folder / "rows", rows)
    return folder / "rows"


def writer(folder):
    """A small language model with a tokenizer that ends its texts and has a chat template."""
    config = LlamaConfig(
        **unlabeled_cases.WIDTH,
        vocab_size=models.VOCABULARY,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=END,
    )
    saved(folder, models._made(lambda: LlamaForCausalLM(config), 0), language())


def sft(folder):
    """Prompts with their completions, of uneven length."""
    writer(folder)
    rows = zip(words(3, 0), words(4, 1), strict=True)
    texts = [
        {"prompt": prompt, "completion": " " + " ".join(text.split()[: 1 + i % 4])}
        for i, (prompt, text) in enumerate(rows)
    ]
    return folder_of(folder, texts)


def dpo(folder):
    """Conversations that differ in their last message."""
    writer(folder)
    parts = zip(words(3, 0), words(4, 1), words(2, 2), strict=True)

    def talk(question, answer):
        return [{"role": "user", "content": question}, {"role": "assistant", "content": f"w9 {answer}"}]

    return folder_of(folder, [{"chosen": talk(q, a), "rejected": talk(q, b)} for q, a, b in parts])


def reward(folder):
    """Texts with a prompt."""
    writer(folder)
    names = ("prompt", "chosen", "rejected")
    parts = zip(words(3, 0), words(4, 1), words(2, 2), strict=True)
    return folder_of(folder, [dict(zip(names, (f"{q} ", a, b), strict=True)) for q, a, b in parts])


DATA = {
    "ner": ner,
    "qa": qa,
    "swag": swag,
    "segmentation": segmentation,
    "clm": clm,
    "mlm": mlm,
    "mae": mae,
    "clip": clip,
    "ctc": ctc,
    "nli_bi_encoder": nli_bi_encoder,
    "duplicates_cross_encoder": duplicates_cross_encoder,
    "nlp_loop": nlp_loop,
    "cv_loop": cv_loop,
    "sft": sft,
    "dpo": dpo,
    "reward": reward,
}
