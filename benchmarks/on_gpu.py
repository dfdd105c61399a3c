"""On a GPU: ResNet-50 and ViT-B/16 at 224 x 224, rows per second and the share of the bare loop, in tf32 and bf16."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from measuring import Figure, Options, in_turns, timed
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from ways import bare_loop, batches_in_memory, score
from workloads import Workload, images, perturbed_states, stored

from vog_hf import VoGConfig

SIDE, CLASSES, BATCH, SNAPSHOTS, ROWS = 224, 1_000, 128, 3, 2_048
MODELS = {
    "ResNet-50": lambda: ResNetForImageClassification(ResNetConfig(num_labels=CLASSES)),  # the default is ResNet-50
    "ViT-B/16": lambda: ViTForImageClassification(ViTConfig(num_labels=CLASSES)),  # and here ViT-B/16
}


def measure(options: Options) -> list[Figure]:
    """Measure both models in both precisions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    rows = images(options.rows(ROWS), SIDE, classes=CLASSES)
    return [
        figure
        for name, make in MODELS.items()
        for precision, dtype in (("tf32", torch.float32), ("bf16", torch.bfloat16))
        for figure in compare(Workload(f"{name} {precision}", make().to(options.device, dtype), rows), options)
    ]


def compare(workload: Workload, options: Options) -> list[Figure]:
    """Rows per second and snapshot of one model, and the bare loop's time as a share of the scorer's."""
    states = perturbed_states(workload.model, SNAPSHOTS)
    with TemporaryDirectory() as folder:
        snapshots = stored(states, Path(folder))

        def sides(part: Workload) -> dict[str, Callable[[], float]]:
            config = VoGConfig(dtype="model")
            batches = batches_in_memory(part, BATCH)
            ways = {
                "scorer": partial(score, part, snapshots, batch_size=BATCH, config=config),
                "bare loop": partial(bare_loop, part.model, batches, states, folded="ResNet" in part.name),
            }
            return {name: partial(timed, way) for name, way in ways.items()}

        in_turns(sides(workload.head(BATCH)), 1)  # warm-up
        seconds = in_turns(sides(workload), options.pairs)
    passes = len(workload.rows) * SNAPSHOTS
    rates = [passes / taken for taken in seconds["scorer"]]
    shares = [loop / ours for loop, ours in zip(seconds["bare loop"], seconds["scorer"], strict=True)]
    return [
        Figure("gpu", str(workload), rates, unit="rows/s", seconds=seconds),
        Figure("gpu", f"{workload}: bare loop / scorer", shares, seconds=seconds),
    ]
