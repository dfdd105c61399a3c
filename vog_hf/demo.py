"""The demos of `vog-hf demo` and the stand-ins of the documentation's examples; see `vog_hf.cli.demos`."""

from vog_hf.cli.demos.digits import (
    decile_table,
    load_digits_dataset,
    print_findings,
    run_demo,
    small_resnet,
    to_pixels,
)
from vog_hf.cli.demos.offline import offline_wandb
from vog_hf.cli.demos.planted import PlantedTask, fault_table, run_planted
from vog_hf.cli.demos.planted_tasks import PLANTED_TASKS

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
