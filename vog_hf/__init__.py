"""Variance of Gradients (VoG) for the Hugging Face ecosystem: which rows of a data set deserve a look.

The public names below are resolved on first use, so that ``import vog_hf`` loads neither torch nor transformers.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vog_hf.config import VoGConfig
    from vog_hf.errors import VoGError
    from vog_hf.gradients.input_gradients import input_gradients
    from vog_hf.hub import push_scored_dataset
    from vog_hf.metric.definition import class_normalize, vog
    from vog_hf.metric.moments import GradientMoments
    from vog_hf.scores.dataset_columns import add_vog_columns
    from vog_hf.scores.vog_scores import VoGScores
    from vog_hf.scoring.scorer import VoGScorer
    from vog_hf.tracking import log_scores
    from vog_hf.trainer.callback import VoGCallback

__all__ = [
    "GradientMoments",
    "VoGCallback",
    "VoGConfig",
    "VoGError",
    "VoGScorer",
    "VoGScores",
    "add_vog_columns",
    "class_normalize",
    "input_gradients",
    "log_scores",
    "push_scored_dataset",
    "vog",
]

_HOME = {
    "GradientMoments": "moments",
    "VoGCallback": "callback",
    "VoGConfig": "config",
    "VoGError": "errors",
    "VoGScorer": "scorer",
    "VoGScores": "scores",
    "add_vog_columns": "columns",
    "class_normalize": "metric",
    "input_gradients": "gradients",
    "log_scores": "tracking",
    "push_scored_dataset": "hub",
    "vog": "metric",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("vog-hf")
    if name in _HOME:
        return getattr(import_module(f"vog_hf.{_HOME[name]}"), name)
    msg = f"module 'vog_hf' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
