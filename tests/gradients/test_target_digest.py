import importlib
import sys
from functools import partial

import models
import pytest

from vog_hf.config import VoGConfig, target_digest
from vog_hf.errors import OutputFolderError
from vog_hf.scoring.scorer import VoGScorer


def made(source):
    """A function from its source, as if a file had been edited and imported again."""
    namespace = {}
    exec(source, namespace)  # noqa: S102 (our own text)
    return namespace["target"]


def closing_over(value):
    """A function with a value in its closure."""
    return lambda outputs, batch: outputs.logits[:, 0] * value


def weighted(outputs, batch, weight=1.0):
    """The first logit, weighted."""
    return weight * outputs[:, 0]


class Weighted:
    """A callable object with state."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, outputs, batch):
        return self.weight * outputs[:, 0]


FIRST = "def target(outputs, batch):\n    return outputs[:, 0]"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (made(FIRST), made(FIRST.replace("0", "1"))),
        (made(FIRST), made(FIRST.replace("outputs[", "outputs.abs()["))),
        (made(FIRST), made(FIRST.replace("batch)", "batch=None)"))),
        (closing_over(1.0), closing_over(2.0)),
        (closing_over([1, {"a": 2}]), closing_over([1, {"a": 3}])),
        (partial(weighted, weight=1), partial(weighted, weight=2)),
        (partial(weighted), weighted),
        (lambda o, b: [-x for x in (1, 2)], lambda o, b: [-x for x in (1, 3)]),
        (Weighted(1), Weighted(2)),
    ],
)
def test_what_computes_something_else_has_another_digest(one, other):
    """Constants, calls, defaults, closures, bound arguments and inner functions are told apart."""
    assert target_digest(one) != target_digest(other)


@pytest.mark.parametrize("make", [lambda: made(FIRST), lambda: closing_over((1.0, "x")), Weighted])
def test_the_same_code_has_the_same_digest(make):
    """Made again, in another process or import, it is the same target."""
    assert target_digest(make()) == target_digest(make())


def test_a_function_of_a_module_is_not_told_by_its_name_alone(tmp_path, monkeypatch):
    """A file that is edited and imported again holds another target."""
    digests = []
    for source in (FIRST, FIRST, FIRST.replace("0", "1")):
        (tmp_path / "my_targets.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "my_targets", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        importlib.invalidate_caches()
        digests.append(target_digest(importlib.import_module("my_targets").target))
    assert digests[0] == digests[1] != digests[2]


def test_what_cannot_be_told_is_never_the_same(caplog):
    """A target that nothing can pickle is scored, and its scores are not taken up again; a line says so."""
    state = (x for x in ())
    target = lambda outputs, batch: (state, outputs[:, 0])[1]  # noqa: E731
    assert target_digest(target) != target_digest(target)
    assert "cannot be detected" in caplog.text


def test_an_edited_target_does_not_get_the_scores_of_the_old_one(tmp_path):
    """The folder of scores is refused; with the target as it was, its scores come back."""
    case = models.conv_net()
    rows = [{**row, "labels": y} for row, y in zip(case.rows, case.labels, strict=True)]
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 3))]

    def score(source):
        scorer = VoGScorer(case.model, config=VoGConfig(target=made(source)))
        return scorer.score(rows, states, collate_fn=models.collate, output_dir=tmp_path / "scores")

    first = score(FIRST)
    with pytest.raises(OutputFolderError, match="differs in targets"):
        score(FIRST.replace("0", "1"))
    assert score(FIRST).column("vog").tolist() == first.column("vog").tolist()
