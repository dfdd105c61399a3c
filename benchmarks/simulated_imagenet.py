"""Score the first blocks of a dataset as large as ImageNet, and extrapolate to all of it.

1,281,167 rows of 224 x 224 pixels are generated on the fly. A small network is scored on them until a few blocks are
finished, and their cost (time, memory, disk) is extrapolated to all rows. The network is small so that blocks finish on
a laptop; the hours of a larger network follow from its rows per second (``--rows-per-second``).

    python benchmarks/simulated_imagenet.py --blocks 3
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vog_hf import VoGScorer

ROWS = 1_281_167  # of ImageNet's training set
SIDE = 224
CLASSES = 1000


class SimulatedImageNet(torch.utils.data.Dataset):
    """As many rows as ImageNet, each generated from its number."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, Tensor | int]:
        if not 0 <= row < ROWS:
            raise IndexError(row)
        pixels = np.random.default_rng(row).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
        return {"pixel_values": torch.from_numpy(pixels).float() / 255, "labels": row % CLASSES}


def small_network() -> nn.Module:
    """A network for 224 x 224 pixels that is fast on a CPU: three strided convolutions with BatchNorm."""
    torch.manual_seed(0)
    return Network()


class Network(nn.Module):
    """``forward(pixel_values) -> logits``."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 32)
        layers: list[nn.Module] = []
        for i, stride in enumerate((4, 2, 2)):
            layers += [
                nn.Conv2d(widths[i], widths[i + 1], 5, stride, padding=2),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits ``[batch, classes]``."""
        return self.head(self.features(pixel_values))


def snapshots(model: nn.Module, n: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """States of the network, perturbed as if by training."""
    generator = torch.Generator().manual_seed(1)
    for k in range(n):
        yield (
            f"epoch-{k}",
            {
                name: value + 0.1 * torch.randn(value.shape, generator=generator)
                if value.is_floating_point()
                else value
                for name, value in model.state_dict().items()
            },
        )


def score(folder: Path, options: argparse.Namespace) -> None:
    """Score until interrupted, then write the peak memory."""
    torch.set_num_threads(options.threads)
    model = small_network()
    scorer = VoGScorer(model, batch_size=options.batch_size, memory_budget=options.memory_budget)
    try:
        scorer.score(SimulatedImageNet(), snapshots(model, options.snapshots), output_dir=folder / "scores")
    except KeyboardInterrupt:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (folder / "peak.json").write_text(json.dumps(peak))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds, bytes and rows of one block, and the peak memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.time()
        process = multiprocessing.get_context("spawn").Process(target=score, args=(folder, options))
        process.start()
        blocks: list[Path] = []
        while process.is_alive() and len(blocks) < options.blocks:
            time.sleep(0.2)
            blocks = sorted((folder / "scores" / "blocks").glob("process-*.safetensors"))
        os.kill(process.pid or 0, signal.SIGINT)
        process.join()
        finished = [path.stat().st_mtime for path in blocks]
        plan = json.loads((folder / "scores" / "plan.json").read_text())["plan"]
        seconds = np.diff(finished) if len(finished) > 1 else [finished[0] - began]
        return {
            "rows per block": plan["block_rows"],
            "seconds per block": float(np.median(seconds)),
            "seconds to the first block": finished[0] - began,
            "bytes per row on disk": float(np.median([path.stat().st_size for path in blocks])) / plan["block_rows"],
            "peak memory": json.loads((folder / "peak.json").read_text()),
        }


def report(measured: dict[str, float], options: argparse.Namespace) -> None:
    """Print the measurements and their extrapolation to all rows."""
    passes = ROWS * options.snapshots
    rate = measured["rows per block"] * options.snapshots / measured["seconds per block"]
    print(
        f"blocks of {measured['rows per block']:,.0f} rows x {options.snapshots} snapshots, {options.threads} threads"
    )
    print(f"one block           {measured['seconds per block']:8.1f} s, {rate:,.0f} rows x snapshots per second")
    print(f"first block after   {measured['seconds to the first block']:8.1f} s (imports, rows, dry run, the block)")
    print(f"peak memory         {measured['peak memory'] / 2**30:8.2f} GiB")
    per_row = measured["bytes per row on disk"]
    print(f"disk                {per_row:8.0f} bytes per row, {per_row * ROWS / 2**30:.1f} GiB for {ROWS:,} rows")
    print(f"this network, all   {passes / rate / 3600:8.1f} h on 1 process, {passes / rate / 3600 / 8:.1f} h on 8")
    for other in options.rows_per_second:
        hours = passes / other / 3600
        print(f"at {other:5,.0f} rows/s     {hours:8.1f} h on 1 device, {hours / 8:.1f} h on 8")


def main() -> None:
    """Measure, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=3, help="number of blocks to finish")
    parser.add_argument("--snapshots", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--memory-budget", type=int, default=2**30, help="bytes for a block of rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rows-per-second",
        type=float,
        nargs="*",
        default=[500, 1000, 2000],
        help="rows per second for forward pass and input gradient of another network or device",
    )
    options = parser.parse_args()
    report(measure(options), options)


if __name__ == "__main__":
    main()
