"""Program: train models that are sharded in several ways, store snapshots, and score on a replica on every process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from leaving import leave_together
from scorings import label_of
from torch import nn
from zero_on_gloo import use_deepspeed

from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import SnapshotWriter, is_sharded, model_tensors
from vog_hf.snapshots.unsharded_copy import unsharded_copy

STEPS = 3
BATCH = 8


@dataclass(frozen=True)
class Training:
    """A model of which a part is frozen, and the rows it learns."""

    make: Callable[[], models.Case]
    frozen: str
    dtype: torch.dtype = torch.float64

    def model(self) -> nn.Module:
        """The same weights each time."""
        model = self.make().model.to(self.dtype).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(self.frozen))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # processes draw their own numbers
        return model

    def rows(self) -> list[dict[str, Any]]:
        """With labels, as a list."""
        if self.make is models.vit:
            rows = models._float_rows("pixel_values", (3, 8, 8), seed=3, n=BATCH)
        else:
            rows = models.token_rows(3, lengths=(5,) * BATCH)
        return [{**row, "labels": row.get("input_ids", label_of(i))} for i, row in enumerate(rows)]

    def blocks(self, model: nn.Module) -> list[tuple[nn.ModuleList, int]]:
        """Where the layers stand that are sharded one by one: in the model's one list, whatever its name."""
        (layers,) = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        return [(layers, i) for i in range(len(layers))]

    def batch(self, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """A process's part of the one batch."""
        batch = models.collate(self.rows()[rank::world])
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in batch.items()}

    def score(self, model: nn.Module, snapshots: Path, **options: Any) -> Any:
        """The scores of all rows."""
        scorer = VoGScorer(model, batch_size=3, progress=False)
        return scorer.score(self.rows(), snapshots, collate_fn=models.collate, **options)


TRAININGS = {
    "vit": Training(models.vit, "vit.embeddings"),
    "gpt2": Training(models.gpt2, "transformer.wpe"),  # head and embedding are one tensor
}


def training_of(name: str, way: str) -> Training:
    """In float64, except under ZeRO-3, which refuses it."""
    return replace(TRAININGS[name], dtype=torch.float32) if way == "zero3" else TRAININGS[name]


def whole(training: Training) -> nn.Module:
    """Not sharded."""
    return training.model()


def fsdp2(training: Training) -> nn.Module:
    """Sharded in place by torch's ``fully_shard``, layer by layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = training.model()
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layers, i in training.blocks(model):
        fully_shard(layers[i], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def checkpointed_fsdp2(training: Training) -> nn.Module:
    """With activation checkpointing under it, whose wrappers show in the names of modules."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = training.model()
    for layers, i in training.blocks(model):
        layers[i] = checkpoint_wrapper(layers[i])
    fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    return model


def fsdp1(training: Training, *, use_orig_params: bool = True) -> nn.Module:
    """Wrapped by ``FullyShardedDataParallel``, layer by layer."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = training.model()
    if not use_orig_params:  # all parameters of a wrapper are one then, and it trains or does not
        model.requires_grad_(True)
    options = {"device_id": torch.device("cpu"), "use_orig_params": use_orig_params}
    for layers, i in training.blocks(model):
        layers[i] = FullyShardedDataParallel(layers[i], **options)
    return FullyShardedDataParallel(model, **options)


def fsdp1_flat(training: Training) -> nn.Module:
    """As `fsdp1`, with one flat parameter per wrapper; nothing is frozen."""
    return fsdp1(training, use_orig_params=False)


def zero3(training: Training) -> nn.Module:
    """A DeepSpeed engine, ZeRO stage 3."""
    import deepspeed

    model = training.model()
    config = {
        "train_micro_batch_size_per_gpu": BATCH // 2,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    return deepspeed.initialize(
        model=model, model_parameters=trainable, optimizer=torch.optim.SGD(trainable, lr=0.5), config=config
    )[0]


def train(training: Training, model: nn.Module, after_step: Callable[[int], object] = lambda step: None) -> None:
    """A few steps of plain gradient descent; each process has its part of the batch."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    batch = training.batch(torch.distributed.get_rank() if world > 1 else 0, world)
    engine = model if hasattr(model, "backward") else None
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for step in range(1, STEPS + 1):
        loss = model(**batch).loss
        if engine is None:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            engine.backward(loss)
            engine.step()
        after_step(step)


def part_of(parameter: Any) -> torch.Tensor:
    """What this process holds of a parameter; under ZeRO-3 without padding, whose values are left to chance."""
    part = getattr(parameter, "ds_tensor", None)
    if part is None:
        return parameter
    start = torch.distributed.get_rank() * part.numel()
    return part[: max(0, parameter.ds_numel - start)]


def local_state(model: nn.Module) -> list[torch.Tensor]:
    """Copies of what this process holds."""
    held = [part_of(p) for p in model.parameters()]
    return [getattr(t, "_local_tensor", t).detach().clone() for t in held] + [b.clone() for b in model.buffers()]


def torchs_own_state(model: nn.Module) -> dict[str, torch.Tensor] | None:
    """What torch's checkpointing gathers, on the main process; None where it does not know this sharding."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if hasattr(model, "backward"):
        return None
    gathered = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: value.clone() for name, value in gathered.items()}


def run(training: Training, shard: Callable[[Training], nn.Module], folder: Path) -> None:
    """Train with and without snapshots, compare, and score on a replica."""
    rank = torch.distributed.get_rank()
    plain = shard(training)
    train(training, plain)
    model = shard(training)
    assert is_sharded(model)
    writer = SnapshotWriter(folder / "snapshots", model)

    def snapshot(step: int) -> None:
        taken = writer.take(model, step)
        assert (taken is not None) == (rank == 0)
        expected = torchs_own_state(model)
        if expected and taken is not None:
            torch.save(expected, folder / f"state-{step}.pt")

    train(training, model, snapshot)
    torch.testing.assert_close(local_state(model), local_state(plain), rtol=0, atol=0)

    random_state, before = torch.get_rng_state(), local_state(model)
    twin = unsharded_copy(model)
    assert not is_sharded(twin)
    assert not any(module.training for module in twin.modules())
    torch.testing.assert_close(local_state(model), before, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), random_state, rtol=0, atol=0)
    scores = training.score(twin, folder / "snapshots", output_dir=folder / "scores")
    assert scores.manifest["n_processes"] == torch.distributed.get_world_size()
    digests = gather_object([{name: value.double().sum().item() for name, value in model_tensors(twin).items()}])
    assert all(digest == digests[0] for digest in digests)
    if rank == 0:
        torch.save(dict(model_tensors(twin)), folder / "replica.pt")


def replica_of_nested_parts() -> None:
    """Under a DeepSpeed config, transformers shards the parts that a model makes of itself; not those of a replica."""
    import deepspeed
    from transformers import CLIPConfig, CLIPForImageClassification
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    deepspeed_config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3}}
    held = HfDeepSpeedConfig(deepspeed_config)
    vision = {**models._width(), "image_size": 8, "patch_size": 4, "projection_dim": 8}
    text = {**models._width(), "vocab_size": models.VOCABULARY, "projection_dim": 8}
    model = CLIPForImageClassification._from_config(CLIPConfig(vision_config=vision, text_config=text)).eval()
    assert is_sharded(model)
    twin = unsharded_copy(model)
    engine = deepspeed.initialize(model=model, config=held.config)[0]
    engine.eval()
    images = torch.ones(2, 3, 8, 8)
    torch.testing.assert_close(twin(images).logits, engine(images).logits)


WAYS = {way.__name__: way for way in (fsdp2, checkpointed_fsdp2, fsdp1, fsdp1_flat, zero3)}


def main(folder: Path, ways: list[str]) -> None:
    """Each way of sharding with each model."""
    torch.set_num_threads(1)
    if "zero3" in ways:
        use_deepspeed().init_distributed(dist_backend="gloo")
        Accelerator()
        replica_of_nested_parts()
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    for way in ways:
        for name in TRAININGS:
            (folder / f"{way}-{name}").mkdir(exist_ok=True)
            run(training_of(name, way), WAYS[way], folder / f"{way}-{name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    leave_together()
