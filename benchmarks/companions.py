"""(h) Scoring with all companions and heat maps against VoG alone, with a model without recognizable logits."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measuring import Figure, Options, Target, compared, in_turns, timed
from torch import Tensor, nn
from ways import score
from workloads import BATCH, Workload, perturbed_states, small_resnet, stored

from vog_hf import VoGConfig

SNAPSHOTS = 5


class Renamed(nn.Module):
    """A model whose output is a dictionary with its logits under another name."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Logits ``[batch, classes]``."""
        return {self.name: self.model(pixel_values=pixel_values).logits}


def output_of_label(outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> Tensor:
    """The target ``"logit"`` for a model with logits that the scorer does not recognize."""
    return outputs["outputs"].gather(1, batch["labels"][:, None]).squeeze(1)


def measure(options: Options) -> list[Figure]:
    """Compare the default configuration with the minimal one."""
    workload = small_resnet(options.rows(2_000)).to(options.device)
    whole = Workload(workload.name, Renamed(workload.model, "logits"), workload.rows)
    alone = Workload(workload.name, Renamed(workload.model, "outputs"), workload.rows)
    least = VoGConfig(target=output_of_label, heat_maps=False)
    with TemporaryDirectory() as folder:
        snapshots = stored(perturbed_states(whole.model, SNAPSHOTS), Path(folder))
        score(whole.head(BATCH), snapshots)  # warm-up
        score(alone.head(BATCH), snapshots, config=least)
        sides = {
            "all": partial(timed, partial(score, whole, snapshots)),
            "VoG alone": partial(timed, partial(score, alone, snapshots, config=least)),
        }
        seconds = in_turns(sides, options.pairs)
    what = f"{workload}, {SNAPSHOTS} snapshots"
    return [compared("companions", what, seconds, ("all", "VoG alone"), target=Target(at_most=1.10))]
