"""The demos of `vog-hf demo`, on data made on the spot. May import every folder but `cli`.

`digits` is the default one. `planted` trains a model of a planted task (`planted_tasks`), whose faults are known, and
prints which columns find them; `names`, `shapes`, `boxes` and `questions` make data, faults and model of one each.
`offline` keeps a tracked run on this machine.
"""

from vog_hf.demo.digits import (
    decile_table,
    load_digits_dataset,
    print_findings,
    run_demo,
    small_resnet,
    to_pixels,
)
from vog_hf.demo.offline import offline_wandb
from vog_hf.demo.planted import PlantedTask, fault_table, run_planted
from vog_hf.demo.planted_tasks import PLANTED_TASKS

__all__ = [
    "PLANTED_TASKS",
    "PlantedTask",
    "decile_table",
    "fault_table",
    "load_digits_dataset",
    "offline_wandb",
    "print_findings",
    "run_demo",
    "run_planted",
    "small_resnet",
    "to_pixels",
]
