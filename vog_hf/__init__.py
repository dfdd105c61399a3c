"""Variance of Gradients (VoG) for the Hugging Face ecosystem: find the rows of a dataset that deserve a look.

The public names below are resolved on first use, so ``import vog_hf`` loads neither torch nor transformers.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vog_hf.config import VoGConfig
    from vog_hf.errors import VoGError
    from vog_hf.gradients.input_gradients import input_gradients
    from vog_hf.hub.pull import pull_scores
    from vog_hf.hub.push import push_scored_dataset
    from vog_hf.metric.definition import class_normalize, vog
    from vog_hf.metric.moments import GradientMoments
    from vog_hf.report.write import write_report
    from vog_hf.review.apply import apply_review
    from vog_hf.scores.dataset_columns import add_vog_columns
    from vog_hf.scores.vog_scores import VoGScores
    from vog_hf.scoring.forward_only import companions
    from vog_hf.scoring.scorer import VoGScorer
    from vog_hf.tracking.log import log_scores
    from vog_hf.trainer.callback import VoGCallback

__all__ = [
    "GradientMoments",
    "VoGCallback",
    "VoGConfig",
    "VoGError",
    "VoGScorer",
    "VoGScores",
    "add_vog_columns",
    "apply_review",
    "class_normalize",
    "companions",
    "input_gradients",
    "log_scores",
    "pull_scores",
    "push_scored_dataset",
    "vog",
    "write_report",
]

_HOME = {
    "GradientMoments": "metric.moments",
    "VoGCallback": "trainer.callback",
    "VoGConfig": "config",
    "VoGError": "errors",
    "VoGScorer": "scoring.scorer",
    "VoGScores": "scores.vog_scores",
    "add_vog_columns": "scores.dataset_columns",
    "apply_review": "review.apply",
    "class_normalize": "metric.definition",
    "companions": "scoring.forward_only",
    "input_gradients": "gradients.input_gradients",
    "log_scores": "tracking.log",
    "pull_scores": "hub.pull",
    "push_scored_dataset": "hub.push",
    "vog": "metric.definition",
    "write_report": "report.write",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("vog-hf")
    if name in _HOME:
        return getattr(import_module(f"vog_hf.{_HOME[name]}"), name)
    raise AttributeError(f"module 'vog_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
