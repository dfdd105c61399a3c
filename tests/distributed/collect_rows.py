"""Program: trainings that are observed by `collect="training"` on one or several processes, and what a loop finds."""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from collected import Noting, case_of, expected, expected_vog, noted_training
from leaving import leave_together
from zero_on_gloo import configure_state, trainer_options

from vog_hf import VoGCallback

GLOBAL_BATCH = 6
EVEN, UNEVEN = 18, 23  # rows that fill all batches, and that do not


class Sharded(Noting):
    """A model that torch's ``fully_shard`` has sharded in place, before the optimizer is made of its parameters."""

    @staticmethod
    def sharded(model):
        """The model, sharded over all processes."""
        return shard(model)

    def __init__(self, model, **options):
        super().__init__(model=self.sharded(model), **options)

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = lambda model, **_: model

    def training_step(self, model, inputs, *args, **kwargs):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        self.states = getattr(self, "states", {}) | {self.state.global_step: whole}
        self.noted = getattr(self, "noted", [])
        return super().training_step(model, inputs, *args, **kwargs)


class Wrapped(Sharded):
    """A model under FSDP 1, layer by layer, as Trainer's ``fsdp="full_shard"`` has it on accelerators."""

    @staticmethod
    def sharded(model):
        """The model, wrapped on all processes."""
        return wrap(model)


class Zero(Noting):
    """A model in float32 under DeepSpeed ZeRO, which may shard its parameters."""

    def __init__(self, model, **options):
        AcceleratorState._reset_state()  # Accelerate takes one configuration of DeepSpeed
        super().__init__(model=model.float(), **options)

    def training_step(self, model, inputs, *args, **kwargs):
        import deepspeed

        parameters, is_sharded = list(self.model.parameters()), self.args.deepspeed["zero_optimization"]["stage"] == 3
        assert any(parameter.numel() == 0 for parameter in parameters) == is_sharded
        with deepspeed.zero.GatheredParameters(parameters, enabled=is_sharded):
            whole = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.states = getattr(self, "states", {}) | {self.state.global_step: whole}
        self.noted = getattr(self, "noted", [])
        return super().training_step(model, inputs, *args, **kwargs)


class MeanLoss(Noting):
    """Has the mean of its process's rows as loss, which data parallelism averages to that of all."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        return torch.nn.functional.cross_entropy(model(**inputs).logits, labels)


def shard(model):
    """The model, sharded layer by layer over all processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in [m for m in model.modules() if type(m).__name__ in ("BertLayer", "ViTLayer", "LlamaDecoderLayer")]:
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def wrap(model):
    """The model under FSDP 1, wrapped layer by layer over all processes."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    options = {"device_id": torch.device("cpu"), "use_orig_params": True}
    (layers,) = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for i in range(len(layers)):
        layers[i] = FullyShardedDataParallel(layers[i], **options)
    return FullyShardedDataParallel(model, **options)


TRAININGS = {
    "even": ("bert", EVEN, {"trainer_class": MeanLoss}),
    "uneven": ("vit", UNEVEN, {}),
    "accumulated": ("vit", UNEVEN, {"gradient_accumulation_steps": 2}),
    "dispatched": ("vit", UNEVEN, {"accelerator_config": {"dispatch_batches": True, "split_batches": False}}),
    "sharded": ("bert", EVEN, {"trainer_class": Sharded, "optim": "adamw_torch", "max_grad_norm": 0.0}),
    "FSDP 1": ("bert", EVEN, {"trainer_class": Wrapped, "optim": "adamw_torch", "max_grad_norm": 0.0}),
    "language model": ("llama", UNEVEN, {}),
}
ZERO = {  # each needs DeepSpeed, and a launch
    f"ZeRO-{stage} {case}": (case, n_rows, {"trainer_class": Zero, **trainer_options(stage)})
    for stage in (2, 3)
    for case, n_rows in (("bert", EVEN), ("vit", UNEVEN), ("lora_bert", EVEN), ("llama", UNEVEN))
}


def merged(parts):
    """What all processes found: of two visits of a row in an epoch the first one."""
    whole = {name: np.full_like(values, np.nan) for name, values in parts[0].items()}
    for part in parts:
        is_first = ~(whole["step"] <= part["step"])  # also where nothing was found yet
        is_first &= ~np.isnan(part["step"])
        for name, values in part.items():
            whole[name][is_first] = values[is_first]
    return whole


def main(folder: Path, names: list[str]) -> None:
    """Leave the scores in a folder for each training, and next to them what the loop finds."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    for name in names:
        case_name, n_rows, options = (TRAININGS | ZERO)[name]
        case, vog = case_of(case_name, n_rows), VoGCallback(collect="training", log=False)
        callbacks = [vog]
        if name in ZERO and case_name == "bert":
            callbacks.append(VoGCallback(log=False, output_dir=folder / f"{name} replay"))
        trainer = noted_training(
            folder / name, case, callbacks, per_device_train_batch_size=GLOBAL_BATCH // world, **options
        )
        assert trainer.accelerator.num_processes == world
        first, last = (trainer.states[step] for step in (0, max(trainer.states)))
        assert any(not torch.equal(first[key], last[key]) for key in first), f"{name} has not trained"
        everything = expected(trainer, case)
        found = {name: values for name, values in everything.items() if isinstance(values, np.ndarray)}
        parts = gather_object([found])
        whole = merged(parts)
        gradients = {
            key: gradient
            for part, of_part in zip(parts, gather_object([everything["gradients"]]), strict=True)
            for key, gradient in of_part.items()
            if part["step"][key] == whole["step"][key]
        }
        whole["vog_loss"] = expected_vog(gradients, n_rows)
        scores = vog.scores
        if trainer.is_world_process_zero():
            np.savez(folder / f"{name}.npz", **whole)
        print(name, scores, flush=True)


if __name__ == "__main__":
    from accelerate import PartialState

    if sys.argv[2] in ZERO:
        configure_state()
    else:
        PartialState(cpu=True)
    main(Path(sys.argv[1]), sys.argv[2:])
    leave_together()
