"""Program: models of images and text, together and apart, and of pairs of texts, on a given number of processes."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from leaving import leave_together
from models import perturbed_states
from sentence_cases import TRIPLET, Encoder, collate, texts
from unlabeled_cases import captioned, clip, with_loss
from vlm_cases import VLM_CASES

from vog_hf import VoGScorer


def main(folder: Path, n_processes: int) -> None:
    """Score each kind into a folder of its name."""
    torch.set_num_threads(1)
    accelerator = Accelerator()
    assert accelerator.num_processes == n_processes
    case = VLM_CASES["qwen2-vl"]
    pairs = [{name: row[name] for name in TRIPLET} for row in texts(TRIPLET)]
    for name, model, rows, collate_fn in (
        ("images", case.model(), case.rows(), case.collate_fn),
        ("texts", Encoder(), pairs, collate),
        ("sides", clip(), captioned(), with_loss),
    ):
        scorer = VoGScorer(model.double(), batch_size=4, progress=False)
        snapshots = [(f"epoch-{k}", state) for k, state in enumerate(perturbed_states(model, 2))]
        scores = scorer.score(rows, snapshots, collate_fn=collate_fn, output_dir=folder / name)
        assert scores.manifest["n_processes"] == n_processes


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave_together()
