"""Planted faults in a part of a row are found by the scores of that part: one end of an answer, one class of a mask."""

import random

import numpy as np
import pytest
import torch
from cleanlab.segmentation.rank import get_label_quality_scores
from sklearn.metrics import roc_auc_score
from torch.nn.utils.rnn import pad_sequence
from trainers import arguments
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    set_seed,
)

from vog_hf import VoGCallback

FAULTY = 0.1  # share of rows with one fault
TEXTS, TEXT_EPOCHS, N_OTHER, N_NAMES = 400, 8, 40, 20
IMAGES, IMAGE_EPOCHS, SIDE, CLASSES = 300, 8, 24, 4
HIGHER_IS_WORSE = ("loss", "variability", "forgetting", "el2n", "vog")


def answers(seed):
    """Texts with one run of one to four names, which is the answer; every tenth has one end of it shifted."""
    draw, rows, faults = random.Random(seed), [], []
    for _ in range(TEXTS):
        before, n_names, after = draw.randint(2, 7), draw.randint(1, 4), draw.randint(3, 7)
        others = [4 + draw.randrange(N_OTHER) for _ in range(before + after)]
        names = [4 + N_OTHER + draw.randrange(N_NAMES) for _ in range(n_names)]
        ids = [2, *others[:before], *names, *others[before:]]
        ends, faulty = [1 + before, before + n_names], [False, False]
        if draw.random() < FAULTY:
            end = draw.randrange(2)
            ends[end] += (-1 if end == 0 else 1) * draw.choice([1, 2])  # a longer answer, so that it is still a span
            faulty[end] = True
        rows.append({"input_ids": torch.tensor(ids), "start_positions": ends[0], "end_positions": ends[1]})
        faults.append(faulty)
    return rows, np.array(faults)


def collate_texts(rows):
    """Rows padded to one length, with a mask."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    ends = {name: torch.tensor([row[name] for row in rows]) for name in ("start_positions", "end_positions")}
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), **ends}


def masks(seed):
    """Images of two noisy boxes in the colors of their classes; in every tenth, the mask gives one another class."""
    generator = np.random.default_rng(seed)
    colors = 2 * generator.normal(size=(CLASSES, 3))
    rows, faults = [], []
    for _ in range(IMAGES):
        mask = np.zeros((SIDE, SIDE), dtype=np.int64)
        first, second, other = generator.permutation(np.arange(1, CLASSES))
        for number, corner in ((first, 0), (second, SIDE // 2)):
            y, x = corner + generator.integers(0, 4), generator.integers(0, SIDE - 10)
            mask[y : y + 8, x : x + generator.integers(6, 10)] = number
        pixels = colors[mask] + generator.normal(size=(SIDE, SIDE, 3))
        given, swapped = mask.copy(), None
        if generator.random() < FAULTY:
            given[mask == second] = other
            swapped = int(other)
        rows.append({"pixel_values": torch.tensor(pixels.transpose(2, 0, 1)).float(), "labels": torch.tensor(given)})
        faults.append(swapped)
    return rows, faults


def segmenter():
    """A small SegFormer."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[1, 1],
            hidden_sizes=[16, 32],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=32,
            num_labels=CLASSES,
        )
    )


def trained(model, rows, folder, epochs, seed, **options):
    """Scores of the rows, and the model after the training."""
    args = arguments(folder, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=2e-3, seed=seed)
    vog = VoGCallback(log=False, batch_size=64)
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[vog], **options)
    trainer.train()
    return vog.scores, trainer.model.eval()


def unit_aurocs(scores, is_fault):
    """AUROC of a faulty unit for each column of units, and for the loss and VoG of their rows."""
    units, found = scores.units, {}
    for column in units.columns:
        name = column.rpartition("_")[0]
        if name not in ("label", "position", "prediction"):
            sign = 1 if name in HIGHER_IS_WORSE else -1
            found[column] = roc_auc_score(is_fault, sign * units.column(column))
    of_rows = {f"{name} of the row": scores.column(name)[units.rows] for name in ("loss", "vog")}
    return found | {name: roc_auc_score(is_fault, values) for name, values in of_rows.items()}


def answer_aurocs(seed, folder):
    """AUROC of a shifted end."""
    rows, faults = answers(seed)
    set_seed(seed)
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = BertForQuestionAnswering(BertConfig(**size, vocab_size=4 + N_OTHER + N_NAMES, num_labels=2))
    scores, _ = trained(model, rows, folder, TEXT_EPOCHS, seed, data_collator=collate_texts)
    assert (scores.units.sizes == 2).all()
    return unit_aurocs(scores, faults.flatten())


def mask_aurocs(seed, folder):
    """AUROC of a class that stands where another one is, and for the scores of cleanlab."""
    rows, faults = masks(seed)
    set_seed(seed)
    scores, model = trained(segmenter(), rows, folder, IMAGE_EPOCHS, seed)
    units = scores.units
    label = units.column("label_class")
    is_fault = label == np.array([-1 if fault is None else fault for fault in faults])[units.rows]
    of_images, of_pixels, given = cleanlab_scores(model, rows)
    of_units = [of_pixels[row][given[row] == k].mean() for row, k in zip(units.rows, label, strict=True)]
    return unit_aurocs(scores, is_fault) | {
        "cleanlab, pixels of the class": roc_auc_score(is_fault, -np.array(of_units)),
        "cleanlab, image": roc_auc_score(is_fault, -of_images[units.rows]),
    }


def cleanlab_scores(model, rows):
    """Cleanlab's quality of each image and of each pixel, of the predictions of one model, and the given masks."""
    with torch.no_grad():
        logits = model(pixel_values=torch.stack([row["pixel_values"] for row in rows])).logits
        logits = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    given = np.stack([row["labels"].numpy() for row in rows])
    of_images, of_pixels = get_label_quality_scores(given, logits.softmax(1).numpy(), verbose=False)
    return of_images, of_pixels, given


@pytest.mark.slow
def test_a_shifted_end_is_found_by_its_loss(tmp_path):
    """Better than by the loss of its row, which says of neither end which one is wrong."""
    found = answer_aurocs(0, tmp_path)
    assert found["loss_end"] > 0.9
    assert found["loss_end"] > found["loss of the row"] + 0.02


@pytest.mark.slow
def test_a_swapped_class_is_found_by_its_loss(tmp_path):
    """As well as by cleanlab's scores of its pixels, and better than by those of its image."""
    found = mask_aurocs(0, tmp_path)
    assert found["loss_class"] > 0.9
    assert found["loss_class"] >= found["cleanlab, pixels of the class"] - 0.01
    assert found["loss_class"] > found["loss of the row"] + 0.05
    assert found["loss_class"] > found["cleanlab, image"] + 0.02


if __name__ == "__main__":  # the figures of docs/concepts/score.md
    from pathlib import Path
    from tempfile import TemporaryDirectory

    for aurocs in (answer_aurocs, mask_aurocs):
        for seed in range(3):
            with TemporaryDirectory() as made:
                found = aurocs(seed, Path(made))
                print(aurocs.__name__, seed, {name: round(float(value), 3) for name, value in found.items()})
