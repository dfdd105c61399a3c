"""Flipped tags that are planted in made texts are found by the scores of their tokens, as cleanlab finds them."""

import random

import numpy as np
import pytest
import torch
from cleanlab.token_classification.rank import get_label_quality_scores
from sklearn.metrics import roc_auc_score
from torch.nn.utils.rnn import pad_sequence
from trainers import arguments
from transformers import BertConfig, BertForTokenClassification, Trainer, set_seed

from vog_hf import VoGCallback, VoGConfig

TAGS = 4  # other, person, place, organization
ROWS, EPOCHS, FLIPPED = 400, 6, 0.1
N_OTHER, N_NAMES, N_SHARED = 60, 40, 12  # words of no tag; names of each tag; names that only the word before tells
HIGHER_IS_WORSE = ("vog_token", "vog_loss_token", "loss_token", "variability_token", "forgetting_token", "el2n_token")


def made_texts(seed):
    """Rows of token ids with true tags: rare and frequent names, and names whose tag the word before tells."""
    draw = random.Random(seed)
    marks = range(4, 4 + TAGS)  # the words before a shared name: one for each tag
    others = range(4 + TAGS, 4 + TAGS + N_OTHER)
    names = {tag: range(others.stop + (tag - 1) * N_NAMES, others.stop + tag * N_NAMES) for tag in range(1, TAGS)}
    shared = range(names[TAGS - 1].stop, names[TAGS - 1].stop + N_SHARED)
    rows = []
    for i in range(ROWS):
        words, tags = [], []
        while len(words) < 5 + i % 9:
            tag = draw.choice([0, 0, *range(TAGS)])
            if tag and draw.random() < 0.3:
                words += [marks[tag], draw.choice(shared)]
                tags += [0, tag]
            else:
                words.append(min(draw.choices(names.get(tag, others), k=2)))  # the first ones are the frequent ones
                tags.append(tag)
        rows.append({"input_ids": torch.tensor(words), "labels": torch.tensor(tags)})
    return rows, shared.stop


def with_flipped_tags(rows, seed):
    """The rows with the tag of every tenth word replaced by another one; and which words these are."""
    draw = np.random.default_rng(seed)
    flipped = [draw.random(len(row["labels"])) < FLIPPED for row in rows]
    given = []
    for row, at in zip(rows, flipped, strict=True):
        other = (row["labels"].numpy() + draw.integers(1, TAGS, len(at))) % TAGS
        given.append({**row, "labels": torch.tensor(np.where(at, other, row["labels"].numpy()))})
    return given, np.concatenate(flipped)


def collate(rows):
    """Rows padded to one length, with a mask."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def tagger(vocabulary, seed):
    """A small BERT."""
    set_seed(seed)
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return BertForTokenClassification(BertConfig(**size, vocab_size=vocabulary, num_labels=TAGS))


def aurocs(seed, folder):
    """AUROC of a flipped tag for each column of units, in the direction that its meaning says, and for cleanlab."""
    true_rows, vocabulary = made_texts(seed)
    rows, flipped = with_flipped_tags(true_rows, seed)
    args = arguments(folder, num_train_epochs=EPOCHS, per_device_train_batch_size=16, learning_rate=2e-3, seed=seed)
    vog = VoGCallback(config=VoGConfig(target=("logit", "loss")), snapshots="epoch", log=False, batch_size=64)
    trainer = Trainer(tagger(vocabulary, seed), args, train_dataset=rows, data_collator=collate, callbacks=[vog])
    trainer.train()
    units = vog.scores.units
    assert units.column("label_token").tolist() == torch.cat([row["labels"] for row in rows]).tolist()
    names = [name for name in units.columns if name not in ("label_token", "position_token", "prediction_token")]
    found = {
        name: roc_auc_score(flipped, units.column(name) * (1 if name in HIGHER_IS_WORSE else -1)) for name in names
    }
    found["vog of the row"] = roc_auc_score(flipped, vog.scores.column("vog")[units.rows])
    found["loss of the row"] = roc_auc_score(flipped, vog.scores.column("loss")[units.rows])
    return found | {"cleanlab, last snapshot": roc_auc_score(flipped, -cleanlab_scores(trainer.model.eval(), rows))}


def cleanlab_scores(model, rows):
    """Cleanlab's quality of each tag, of the predictions of one model."""
    with torch.no_grad():
        alone = [model(input_ids=row["input_ids"][None]).logits[0].softmax(-1).numpy() for row in rows]
    _, of_tokens = get_label_quality_scores([row["labels"].tolist() for row in rows], alone)
    return np.concatenate([np.asarray(scores) for scores in of_tokens])


@pytest.mark.slow
def test_flipped_tags_are_found_by_the_scores_of_their_tokens(tmp_path):
    """By loss and confidence as well as by the ranking of cleanlab, and better than by the scores of their rows."""
    found = aurocs(0, tmp_path)
    assert found["loss_token"] > 0.9
    assert found["confidence_token"] > 0.9
    assert found["loss_token"] >= found["cleanlab, last snapshot"] - 0.01
    assert found["loss_token"] > found["loss of the row"] + 0.1


if __name__ == "__main__":  # the figures of docs/concepts/score.md
    from pathlib import Path
    from tempfile import TemporaryDirectory

    for seed in range(3):
        with TemporaryDirectory() as made:
            print(seed, {name: round(float(value), 3) for name, value in aurocs(seed, Path(made)).items()})
