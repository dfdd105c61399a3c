"""Trainings on several texts per row (preferences): refused, and scored text by text as advised."""

import models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from limitations_page import code_of_page
from reference import reference_gradients, reference_vog
from safetensors.torch import load_file
from torch.testing import assert_close
from trainers import WeightsByStep, arguments
from transformers import (
    BertForSequenceClassification,
    Trainer,
    default_data_collator,
)

from vog_hf import VoGCallback, VoGScorer
from vog_hf.errors import DataError

N_ROWS, N_TOKENS = 6, 6
OPTIONS = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-2}


def seeded(make, config):
    """The model, the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(config)


def pairs():
    """Two texts per row, ``[rows, 2, tokens]``."""
    return torch.randint(4, models.VOCABULARY, (N_ROWS, 2, N_TOKENS), generator=torch.Generator().manual_seed(0))


def singles():
    """The same texts, each as a row of its own."""
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in pairs().flatten(0, 1)]


def trained(model, rows, folder, *callbacks, trainer_class=Trainer, **pieces):
    """A training that saves a checkpoint per epoch."""
    args = arguments(folder, save_strategy="epoch", **OPTIONS)
    trainer_class(model, args, train_dataset=rows, callbacks=list(callbacks), **pieces).train()


class RewardTrainer(Trainer):
    """As TRL's: the collator puts chosen and rejected texts into one batch of twice the rows."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        rewards = model(**inputs).logits.squeeze(-1)
        chosen, rejected = rewards.chunk(2)
        return -F.logsigmoid(chosen - rejected).mean()


def chosen_and_rejected(rows):
    """Chosen texts, then rejected ones."""
    ids = torch.cat([torch.stack([row["input_ids"][k] for row in rows]) for k in (0, 1)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


TRAININGS = {
    "rewards": (
        BertForSequenceClassification,
        [{"input_ids": ids} for ids in pairs()],
        {"trainer_class": RewardTrainer, "data_collator": chosen_and_rejected},
        DataError,
        r"the collator made 12 examples of 6 rows; .*\(the texts of a pair, the two answers of a preference\) as a row",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_texts_are_scored_one_by_one_with_the_checkpoints_of_their_training(name, tmp_path):
    """The callback names the way, and the page's function gives the scores of the loop for each text."""
    make, rows, pieces, error, message = TRAININGS[name]
    config, steps = models.bert_config(num_labels=1), WeightsByStep()
    with pytest.raises(error, match=message):
        trained(seeded(make, config), rows, tmp_path / "refused", VoGCallback(log=False), steps, **pieces)
    assert not steps.weights
    trained(seeded(make, config), rows, tmp_path / "run", **pieces)
    seeded(make, config).save_pretrained(tmp_path / "base")
    found = code_of_page()["score_texts"](tmp_path / "run", tmp_path / "base", singles(), models.collate)
    states = [load_file(tmp_path / "run" / f"checkpoint-{k}" / "model.safetensors") for k in (2, 4)]
    model = BertForSequenceClassification(config)
    expected = reference_vog(reference_gradients(model, states, singles(), "logit", [0] * 12, task="regression"))
    assert np.ptp(expected) > 0
    assert_close(found.column("vog").astype(np.float64), expected, rtol=1e-4, atol=1e-4 * expected.mean())


class Masking(torch.utils.data.Dataset):
    """Images whose transform draws a mask, as in the published script of masked image modeling."""

    def __len__(self):
        return N_ROWS

    def __getitem__(self, row):
        return {"pixel_values": torch.full((3, 8, 8), row / N_ROWS), "bool_masked_pos": torch.rand(4) < 0.5}


def test_a_mask_that_the_transform_draws_is_sent_to_the_collator():
    """The message names the wrapper of collators, with which the rows are the same in each reading."""
    from transformers import ViTConfig, ViTForMaskedImageModeling

    width = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    scorer = VoGScorer(
        ViTForMaskedImageModeling(ViTConfig(image_size=8, patch_size=4, encoder_stride=4, **width)), progress=False
    )
    with pytest.raises(DataError, match=r"draw a mask that the task needs in the collator: collate_fn=SeededPerRow\("):
        scorer.check(Masking(), collate_fn=default_data_collator)
