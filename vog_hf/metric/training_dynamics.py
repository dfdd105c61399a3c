"""The cheap companions of VoG: the logits of each example over the snapshots.

`training_dynamics` is the readable definition over all snapshots at once; `TrainingDynamics` streams the same values
one snapshot at a time, in memory that does not grow with the number of snapshots.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vog_hf.errors import ConfigError
from vog_hf.metric.vocabulary import PREDICTION_PROBABILITY


def training_dynamics(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Companions of single-label classification over ``logits [snapshots, examples, classes]``.

    Args:
        logits: Before the softmax, snapshots in the order of training.
        labels: ``[examples]``, the class of each example.

    Returns:
        ``[examples]`` each; the last word says what higher values mean:

        - ``loss``: cross-entropy, mean over snapshots; nats, >= 0; harder.
        - ``confidence``: probability of the label, mean over snapshots; 0..1; easier. Swayamdipta et al. 2020,
          Dataset Cartography (arXiv 2009.10795), section 2.
        - ``variability``: its population standard deviation over snapshots; 0..0.5; more ambiguous. Same source.
        - ``correctness``: share of the snapshots that predict the label; 0..1; easier. Same source.
        - ``forgetting``: number of correct predictions followed by a wrong one at the next snapshot; 0..snapshots
          // 2; harder. Toneva et al. 2019 (arXiv 1812.05159), Definition 1. An example that no snapshot predicts
          correctly gets the number of snapshots, above every learned example (the source calls it infinite).
        - ``margin``: logit of the label minus the largest other logit, mean over snapshots (area under the margin);
          easier. Pleiss et al. 2020 (arXiv 2001.10528), equation 2.
        - ``el2n``: Euclidean norm of softmax minus one-hot label, mean over snapshots; 0..sqrt(2); harder. Paul et
          al. 2021 (arXiv 2107.07075), Definition 2.2, who average over runs early in training instead.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # right at the first snapshot, wrong at the second
        >>> dynamics = training_dynamics(logits, torch.tensor([0]))
        >>> {name: round(dynamics[name].item(), 2) for name in ("confidence", "forgetting", "margin")}
        {'confidence': 0.57, 'forgetting': 1, 'margin': 0.5}
    """
    observations = [classification_observation(snapshot, labels) for snapshot in logits]
    over_time = {name: torch.stack([values[name] for values in observations]) for name in observations[0]}
    correct = over_time["correct"].bool()
    forgotten = (correct[:-1] & ~correct[1:]).sum(0)
    return {
        "loss": over_time["loss"].mean(0),
        "confidence": over_time["confidence"].mean(0),
        "variability": over_time["confidence"].std(0, correction=0),
        "correctness": correct.to(logits.dtype).mean(0),
        "forgetting": torch.where(correct.any(0), forgotten, len(logits)),
        "margin": over_time["margin"].mean(0),
        "el2n": over_time["el2n"].mean(0),
    }


def classification_observation(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss, confidence and the like of one snapshot's ``logits [examples, classes]``; ``[examples]`` each."""
    log_probability = F.log_softmax(logits, dim=-1)
    probability = log_probability.exp()
    index = labels.unsqueeze(-1)
    label_log_probability = log_probability.gather(-1, index).squeeze(-1)
    label_logit = logits.gather(-1, index).squeeze(-1)
    other_logit = logits.scatter(-1, index, float("-inf")).amax(-1)
    error = probability.scatter_add(-1, index, torch.full_like(index, -1, dtype=probability.dtype))
    prediction = logits.argmax(-1)
    return {
        "loss": -label_log_probability,
        "confidence": label_log_probability.exp(),
        "correct": (prediction == labels).to(logits.dtype),
        "margin": label_logit - other_logit,
        "el2n": error.norm(dim=-1),
        "prediction": prediction,
        PREDICTION_PROBABILITY: probability.amax(-1),
    }


class TrainingDynamics:
    """The columns of `training_dynamics`, streamed: one `update` per snapshot, in the order of training.

    An observation may lack quantities that its task does not define (a regression has a loss but no confidence); the
    columns that need them are then missing too. ``correct`` may be a share (the label tokens of a language model): then
    there is a correctness but no forgetting.
    """

    _SUMMED = ("loss", "correct", "margin", "el2n", "logp", "reward", "iou")
    _STREAMED = ("confidence_mean", "confidence_sum_sq_dev", "was_correct", "forgotten", "learned")

    def __init__(self) -> None:
        self.n_snapshots = 0
        self._sum: dict[str, Tensor] = {}
        self._confidence_mean: Tensor | None = None
        self._confidence_sum_sq_dev: Tensor | None = None
        self._was_correct: Tensor | None = None
        self._forgotten: Tensor | None = None
        self._learned: Tensor | None = None
        self.last: dict[str, Tensor] = {}

    def update(self, observation: Mapping[str, Tensor]) -> None:
        """Add one snapshot's observation (see `classification_observation`), ``[examples]`` each."""
        of_last_alone = {PREDICTION_PROBABILITY}  # earlier versions did not observe it: resumed moments lack it
        if self.n_snapshots and set(observation) - of_last_alone != set(self.last) - of_last_alone:
            raise ConfigError(
                f"observations must keep their quantities: first {sorted(self.last)}, now {sorted(observation)}"
            )
        self.n_snapshots += 1
        for name in self._SUMMED:
            if name in observation:
                self._sum[name] = self._sum[name] + observation[name] if name in self._sum else observation[name]
        if "confidence" in observation:
            self._update_confidence(observation["confidence"])
        if "correct" in observation and "prediction" in observation:
            self._update_forgetting(observation["correct"] > 0)
        self.last = dict(observation)

    def state(self) -> dict[str, Tensor]:
        """The state for `from_state`, without the number of snapshots."""
        state = {f"sum.{name}": values for name, values in self._sum.items()}
        state |= {f"last.{name}": values for name, values in self.last.items()}
        for name in self._STREAMED:
            if (values := getattr(self, f"_{name}")) is not None:
                state[name] = values
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], n_snapshots: int) -> "TrainingDynamics":
        """The object with this `state` after ``n_snapshots``."""
        dynamics = cls()
        dynamics.n_snapshots = n_snapshots
        dynamics._sum = {name[4:]: values for name, values in state.items() if name.startswith("sum.")}
        dynamics.last = {name[5:]: values for name, values in state.items() if name.startswith("last.")}
        for name in cls._STREAMED:
            setattr(dynamics, f"_{name}", state.get(name))
        return dynamics

    def columns(self) -> dict[str, Tensor]:
        """The current companions, ``[examples]`` each; ``prediction`` and its probability are the last snapshot's."""
        columns = {name: total / self.n_snapshots for name, total in self._sum.items()}
        if "correct" in columns:
            columns["correctness"] = columns.pop("correct")
        if self._confidence_mean is not None and self._confidence_sum_sq_dev is not None:
            columns["confidence"] = self._confidence_mean
            columns["variability"] = (self._confidence_sum_sq_dev / self.n_snapshots).sqrt()
        if self._forgotten is not None and self._learned is not None:
            columns["forgetting"] = torch.where(self._learned, self._forgotten, self.n_snapshots)
        columns |= {name: self.last[name] for name in ("prediction", PREDICTION_PROBABILITY) if name in self.last}
        return columns

    def _update_confidence(self, confidence: Tensor) -> None:
        if self._confidence_mean is None or self._confidence_sum_sq_dev is None:
            self._confidence_mean, self._confidence_sum_sq_dev = confidence, torch.zeros_like(confidence)
            return
        n = self.n_snapshots
        deviation = confidence - self._confidence_mean
        self._confidence_mean = self._confidence_mean + deviation / n
        self._confidence_sum_sq_dev = self._confidence_sum_sq_dev + deviation.square() * ((n - 1) / n)

    def _update_forgetting(self, correct: Tensor) -> None:
        if self._was_correct is None or self._forgotten is None or self._learned is None:
            self._forgotten, self._learned = torch.zeros_like(correct, dtype=torch.int64), correct
        else:
            self._forgotten = self._forgotten + (self._was_correct & ~correct)
            self._learned = self._learned | correct
        self._was_correct = correct
