"""One of two processes (its rank is given) scores alone, in vain; then both of them score."""

import sys

import torch
from accelerate import PartialState
from leaving import leave_together

from vog_hf import VoGScorer
from vog_hf.errors import ProcessError


def main():
    """Score on one process, then on both."""
    processes = PartialState(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    rows = [(torch.rand(3), i % 2) for i in range(5)]
    states = [(f"s{k}", {name: torch.rand_like(p) for name, p in model.named_parameters()}) for k in range(3)]
    if processes.process_index == int(sys.argv[1]):
        try:
            VoGScorer(model, process_timeout=0.5, progress=False).score(rows, states)
        except ProcessError as error:
            print(f"process {processes.process_index}: {error}", flush=True)
    torch.distributed.barrier()
    scores = VoGScorer(model, process_timeout=60, progress=False).score(rows, states)
    print(f"process {processes.process_index}: {len(scores)} rows", flush=True)
    leave_together()


if __name__ == "__main__":
    main()
