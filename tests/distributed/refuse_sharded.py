"""Program: what sharded models cannot do is refused on every process, and what is next to it is done."""

import tempfile
from functools import partial
from pathlib import Path

import models
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from leaving import leave_together
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing import assert_close
from transformers import TrainerControl, TrainerState, TrainingArguments

import vog_hf.snapshots.unsharded_copy
from vog_hf.errors import DataError, MemoryBudgetError, ModelError, ProcessError, SnapshotError
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import SnapshotWriter, temporary_weights
from vog_hf.snapshots.unsharded_copy import copy_weights, unsharded_copy
from vog_hf.trainer.callback import VoGCallback


def sharded(model: nn.Module) -> nn.Module:
    """In place."""
    return fully_shard(model, mesh=init_device_mesh("cpu", (2,)))


def shared_folder() -> Path:
    """One temporary folder for all processes."""
    made = [tempfile.mkdtemp(prefix="vog-test-")]
    broadcast_object_list(made)
    return Path(made[0])


def replicas_compute_what_the_model_computes() -> None:
    """With statistics, with buffers that are never stored, in half precision; and again after the weights moved."""
    for make in (models.resnet, models.llama, models.vit, models.bert):
        case = make()
        model = sharded(case.model if make is not models.bert else case.model.bfloat16())
        twin = unsharded_copy(model)
        assert {p.dtype for p in twin.parameters()} == {p.dtype for p in model.parameters()}
        assert twin.config is not model.config
        batch = case.batch(labels=False)
        assert_close(twin(**batch).logits, model(**batch).logits)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        assert not torch.equal(twin(**batch).logits, model(**batch).logits)
        copy_weights(model, twin)
        assert_close(twin(**batch).logits, model(**batch).logits)


def with_other_head(model: nn.Module) -> nn.Module:
    """The last layer is another module than the config gives."""
    model.classifier = nn.Sequential(nn.Linear(8, models.CLASSES))
    return model


def with_other_activation(model: nn.Module) -> nn.Module:
    """No tensor differs."""
    model.get_submodule("transformer.h.0.mlp").act = nn.Tanh()
    return model


def with_more_classes(model: nn.Module) -> nn.Module:
    """No module's class differs."""
    model.classifier = nn.Linear(8, 7)
    return model


def models_that_cannot_be_made_anew_are_refused() -> None:
    """Plain modules, adapters, and models that were changed after they were made."""
    changes = [
        (lambda: models.mlp().model, "MLP is sharded, and only a transformers model"),
        (lambda: models.lora_bert().model, "is sharded, and only a transformers model"),
        (lambda: with_other_head(models.vit().model), "config gives Linear at 'classifier', it has Sequential"),
        (lambda: with_other_activation(models.gpt2().model), r"at 'transformer\.h\.0\.mlp\.act', it has Tanh"),
        (lambda: with_more_classes(models.vit().model), r"'classifier\.bias' the shape \(3,\), and it has \(7,\)"),
    ]
    for make, message in changes:
        with pytest.raises(ModelError, match=message) as caught:
            unsharded_copy(sharded(make()))
        assert "SnapshotWriter(folder, model).take(model, step)" in str(caught.value)


def no_room_on_one_process_is_known_to_all(rank: int) -> None:
    """The one without room says how much it needs; nobody begins to copy."""
    model = sharded(models.vit().model)
    needed = 2 * sum(tensor.nbytes for tensor in model.state_dict().values())
    free = vog_hf.snapshots.unsharded_copy.free_memory
    try:
        vog_hf.snapshots.unsharded_copy.free_memory = lambda device: needed - 1 if rank == 1 else free(device)
        with pytest.raises(
            ProcessError if rank == 0 else MemoryBudgetError, match=r"needs the whole model.* KiB are free"
        ):
            unsharded_copy(model)
        vog_hf.snapshots.unsharded_copy.free_memory = lambda device: needed
        unsharded_copy(model)
    finally:
        vog_hf.snapshots.unsharded_copy.free_memory = free


class Rows:
    """The rows of a case; one of them cannot be read on process 1, if it breaks."""

    def __init__(self, case: models.Case, *, breaks: bool) -> None:
        self.rows = [{**row, "labels": y} for row, y in zip(case.rows, case.labels, strict=True)]
        self.breaks = breaks and torch.distributed.get_rank() == 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        if self.breaks and i == 3:
            raise OSError("row 3 cannot be decoded")
        return self.rows[i]


def a_row_that_breaks_before_training_is_known_to_all(rank: int) -> None:
    """The one says which row, the other on which process; with rows that can be read the training begins."""
    case, folder = models.vit(), shared_folder()
    case.model.vit.embeddings.requires_grad_(False)  # what is frozen is gathered for its digest
    model = sharded(case.model)
    args = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    for breaks in (True, False):
        vog = VoGCallback(Rows(case, breaks=breaks), collate_fn=models.collate)
        begin = partial(vog.on_train_begin, args, TrainerState(max_steps=10), TrainerControl(), model=model)
        if not breaks:
            begin()
        elif rank == 1:
            with pytest.raises(DataError, match=r"^row 3 cannot be read: OSError: row 3 cannot be decoded; "):
                begin()
        else:
            with pytest.raises(ProcessError, match="failed on process 1 of 2: row 3 cannot be read: OSError: "):
                begin()


def sharded_models_are_not_scored() -> None:
    """A part of a weight is not a weight; its unsharded copy is scored."""
    case = models.vit()
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    model = sharded(case.model)
    folder = shared_folder()
    writer = SnapshotWriter(folder, model)
    for step in (1, 2):
        writer.take(model, step)
    torch.distributed.barrier()
    with pytest.raises(ModelError, match="FSDPViTForImageClassification is sharded"):
        VoGScorer(model, progress=False).score(rows, folder, collate_fn=models.collate)
    with pytest.raises(ModelError, match="is sharded"), temporary_weights(model, {}, cast_up=False):
        pass
    scores = VoGScorer(unsharded_copy(model), progress=False).score(rows, folder, collate_fn=models.collate)
    assert len(scores) == len(rows)


def thawing_is_refused_everywhere() -> None:
    """Before anything is gathered; with store='all' it does not matter."""
    for store in ("trainable", "all"):
        model = models.vit().model
        model.classifier.requires_grad_(False)
        sharded(model)
        writer = SnapshotWriter(shared_folder(), model, store=store)
        model.classifier.requires_grad_(True)
        if store == "all":
            writer.take(model, 1)
        else:
            with pytest.raises(SnapshotError, match=r"'classifier\.\w+' was frozen .* store='all'"):
                writer.take(model, 1)


def main() -> None:
    """Each refusal."""
    torch.set_num_threads(1)
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    replicas_compute_what_the_model_computes()
    models_that_cannot_be_made_anew_are_refused()
    no_room_on_one_process_is_known_to_all(accelerator.process_index)
    a_row_that_breaks_before_training_is_known_to_all(accelerator.process_index)
    sharded_models_are_not_scored()
    thawing_is_refused_everywhere()


if __name__ == "__main__":
    main()
    leave_together()
