"""Trainings on packed sequences and padding-free batches: each document is scored as if it were alone."""

import numpy as np
import pytest
import torch
from models import llama
from packed_texts import PaddingFree, documents, language_model, packed
from reference import reference_gradients, reference_vog
from torch.testing import assert_close
from trainers import WeightsByStep, arguments, tokenizer
from transformers import DataCollatorWithFlattening, Trainer

from vog_hf import VoGCallback
from vog_hf.data import unpack_documents
from vog_hf.errors import ConfigError, DataError

OPTIONS = {"num_train_epochs": 2, "per_device_train_batch_size": 5, "remove_unused_columns": True}


class SftTrainer(Trainer):
    """The shape of TRL's: its collator gets columns that forward does not take."""

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "labels", "seq_lengths", "completion_mask"]


def masked():
    """The documents as earlier versions of TRL prepare them: with a mask instead of labels."""
    of_labels = [[int(token != -100) for token in row["labels"]] for row in documents()]
    return [
        {"input_ids": row["input_ids"], "completion_mask": mask}
        for row, mask in zip(documents(), of_labels, strict=True)
    ]


def expected(steps, order=range(53)):
    """VoG of each document by the oracle, of the weights that the training had."""
    rows = [documents()[i] for i in order]
    alone = [{"input_ids": torch.tensor(row["input_ids"])} for row in rows]
    states = [steps.weights[k] for k in sorted(steps.weights)]
    labels = [row["labels"] for row in rows]
    return reference_vog(
        reference_gradients(language_model(), states, alone, "logit", labels, task="causal_language_model")
    )


def trainer_of(rows, folder, trainer_class=SftTrainer, *, collator=None, **options):
    """A Trainer in float64, and the weights that it has after each epoch."""
    steps = WeightsByStep()
    model, args = language_model(), arguments(folder, **{**OPTIONS, **options})
    return trainer_class(
        model, args, train_dataset=rows, data_collator=collator or PaddingFree(), callbacks=[steps]
    ), steps


@pytest.mark.parametrize("make", [documents, masked])
def test_a_packed_training_has_scores_of_its_documents_with_two_lines_more(make, tmp_path):
    """With the collator and the columns of TRL's trainer; packed rows themselves are refused before the first step."""
    rows, order = packed(make())
    trainer, steps = trainer_of(rows, tmp_path)
    refused = VoGCallback(trainer.train_dataset, log=False)
    trainer.add_callback(refused)
    with pytest.raises(DataError, match=r"holds \d documents \(seq_lengths\), .*unpack_documents\(dataset\)"):
        trainer.train()
    assert not steps.weights
    trainer.remove_callback(refused)
    vog = VoGCallback(unpack_documents(trainer.train_dataset), snapshots=[1, 2, 4], log=False)
    trainer.add_callback(vog)
    trainer.train()
    steps.weights = {step: steps.weights[step] for step in (1, 2, 4)}
    np.testing.assert_allclose(vog.scores.column("vog"), expected(steps, order), rtol=1e-6)
    scored = vog.scored_dataset().to_pandas()
    assert {"sequence", "document", "may_be_cut", "vog"} <= set(scored)
    assert [len(ids) for ids in scored["input_ids"]] == [len(documents()[i]["input_ids"]) for i in order]


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_padding_free_training_is_scored_with_one_line_more(collect, tmp_path):
    """With transformers' collator; the training stays as it is, and scores are those of each row alone."""
    flat = {"collator": DataCollatorWithFlattening(), "num_train_epochs": 1}
    trainer, steps = trainer_of(documents(), tmp_path / "run", Trainer, **flat)
    vog = VoGCallback(collect=collect, snapshots=[3, 11], log=False)
    trainer.add_callback(vog)
    trainer.train()
    plain, unobserved = trainer_of(documents(), tmp_path / "plain", Trainer, **flat)
    plain.train()
    assert_close(steps.weights, unobserved.weights, rtol=0, atol=0)
    steps.weights = {step: steps.weights[step] for step in (3, 11)}
    np.testing.assert_allclose(vog.scores.column("vog"), expected(steps), rtol=1e-6)


def test_observed_passes_of_flattened_batches_are_refused(tmp_path):
    """A pass over several rows in one sequence has no loss of each row; replay is named."""
    trainer, steps = trainer_of(documents(), tmp_path, Trainer, collator=DataCollatorWithFlattening())
    trainer.add_callback(VoGCallback(collect="training", log=False))
    with pytest.raises(ConfigError, match=r"needs one example per row, .* 1 examples of 2 rows; .*collect='replay'$"):
        trainer.train()
    assert not steps.weights


TRL = {
    "packed": {"packing": True, "max_length": 16},
    "split": {"packing": True, "packing_strategy": "bfd_split", "max_length": 12},
    "wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 12},
    "padding-free": {"padding_free": True, "max_length": None},
    "filled up": {"padding_free": True, "max_length": None, "pad_to_multiple_of": 8},
}


@pytest.mark.slow  # TRL is loaded
@pytest.mark.parametrize("name", TRL)
def test_trls_sft_trainer_has_scores_of_its_documents(name, tmp_path):
    """From its packed or padding-free dataset, with its collator; rows of the user's own have the same scores."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    defaults = {"report_to": "none", "use_cpu": True, "bf16": False, "num_train_epochs": 2, "disable_tqdm": True}
    args = trl.SFTConfig(str(tmp_path), **defaults, per_device_train_batch_size=4, save_strategy="no", **TRL[name])
    steps, rows = WeightsByStep(), Dataset.from_list(documents()).add_column("name", [f"row {i}" for i in range(53)])
    words = tokenizer()
    words.add_special_tokens({"eos_token": "w2"})
    trainer = trl.SFTTrainer(
        llama().model.double(), args, train_dataset=rows, processing_class=words, callbacks=[steps]
    )
    scored = trainer.train_dataset
    if args.packing and name != "wrapped":
        scored = unpack_documents(scored)
        assert len(scored) == sum(map(len, trainer.train_dataset["seq_lengths"]))
    scored = scored.filter(lambda row: any(label != -100 for label in row["labels"][1:]))
    vog = VoGCallback(scored, snapshots=[1, 2, 4], log=False)
    trainer.add_callback(vog)
    own = VoGCallback(rows, snapshots=[1, 2, 4], log=False, output_dir=tmp_path / "own")
    trainer.add_callback(own)
    trainer.train()
    alone = [{"input_ids": torch.tensor(ids)} for ids in scored["input_ids"]]
    states = [steps.weights[k] for k in (1, 2, 4)]
    gradients = reference_gradients(
        language_model(), states, alone, "logit", scored["labels"][:], task="causal_language_model"
    )
    np.testing.assert_allclose(vog.scores.column("vog"), reference_vog(gradients), rtol=1e-6)
    if name == "wrapped":  # sequences cut anywhere, none of which is one of the rows
        return
    by_tokens = dict(zip(map(tuple, scored["input_ids"]), vog.scores.column("vog"), strict=True))
    of_rows = own.scored_dataset()
    of_tokens = zip(map(tuple, of_rows["input_ids"]), of_rows["vog"], strict=True)
    same = [(by_tokens[tokens], score) for tokens, score in of_tokens if tokens in by_tokens]
    assert of_rows["name"][:] == rows["name"][:]
    assert len(same) == (53 if name != "split" else sum(len(row["input_ids"]) <= 12 for row in documents()))
    np.testing.assert_allclose(*np.transpose(same), rtol=1e-6)
