"""(d) Scoring stored snapshots (replay) against scoring while training (live), with rows decoded from JPEG."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import Figure, Options, compared, in_turns, timed
from simulated_imagenet import small_network
from ways import score, score_live
from workloads import BATCH, SIDE, Workload, jpeg_rows, perturbed_states, small_resnet, stored

SNAPSHOTS = 5


def measure(options: Options) -> list[Figure]:
    """Compare replay, which decodes a row once, with live, which decodes it once per snapshot."""
    resnet = small_resnet(1).model
    return [
        compare(Workload(f"small ResNet, JPEG {SIDE} x {SIDE}", resnet, jpeg_rows(options.rows(1_000), SIDE)), options),
        compare(
            Workload("three convolutions, JPEG 224 x 224", small_network(), jpeg_rows(options.rows(256), 224)), options
        ),
    ]


def compare(workload: Workload, options: Options) -> Figure:
    """The figure for one image size."""
    workload = workload.to(options.device)
    states = perturbed_states(workload.model, SNAPSHOTS)
    with TemporaryDirectory() as folder:
        snapshots = stored(states, Path(folder))

        def sides(part: Workload) -> dict[str, Callable[[], float]]:
            ways = {"replay": partial(score, part, snapshots), "live": partial(score_live, part, states)}
            return {name: partial(timed, way) for name, way in ways.items()}

        in_turns(sides(workload.head(BATCH)), 1)  # warm-up
        seconds = in_turns(sides(workload), options.pairs)
    return compared("live", f"{workload}, {SNAPSHOTS} snapshots", seconds, ("replay", "live"))
