"""Bad calls of the public names: an error of ours that names what came, next to neighbors that are accepted."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from vog_hf import (
    GradientMoments,
    VoGCallback,
    VoGConfig,
    VoGScorer,
    VoGScores,
    add_vog_columns,
    apply_review,
    class_normalize,
    input_gradients,
    log_scores,
    pull_scores,
    push_scored_dataset,
    vog,
    write_report,
)
from vog_hf.data.classes import as_classes
from vog_hf.data.label_noise import plant_label_noise
from vog_hf.data.loading import load_rows
from vog_hf.errors import VoGError
from vog_hf.evaluation import (
    auroc,
    class_table,
    detection_table,
    error_by_decile,
    hard_tail,
    merge_rankings,
    rank_agreement,
    rank_correlations,
    ranking_stability,
)
from vog_hf.metric.definition import percentile
from vog_hf.review import Filter, Journal, Queue, read_decisions
from vog_hf.snapshots import SnapshotWriter, from_hub

MODEL = nn.Linear(3, 2)
ROWS = [(torch.arange(3) + i / 7, i % 2) for i in range(4)]
DATA = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 0, 1]})
SCORES = VoGScores({"label": np.array([0, 1, 0, 1]), "vog": np.arange(4) / 8}, {})
CLASSES = VoGScores({"label": np.array([0, 1, 0, 1]), "vog_class_normalized": np.arange(4) / 8}, {})
RANKS, WRONG = np.arange(20.0), np.arange(20) % 2
LONG = "n" * 300


class Bare(nn.Module):
    """A model without a weight."""

    def forward(self, x):
        """Two logits."""
        return x[:, :2] ** 2


def states():
    """Three snapshots."""
    return [(f"s{k}", {name: p.detach() + k for name, p in MODEL.named_parameters()}) for k in range(3)]


def score(snapshots, **options):
    """Scores of four rows."""
    return VoGScorer(MODEL, progress=False).score(ROWS, snapshots, **options)


def moments():
    """Of three examples of two elements."""
    return GradientMoments(3, (2,))


# What is called, with the value that is wrong; what the message says of it.
BAD = {
    "batch size of text": (lambda t: VoGScorer(MODEL, batch_size="8"), "'8'"),
    "batch size of a fraction": (lambda t: VoGScorer(MODEL, batch_size=7.5), "7.5"),
    "batch size of true": (lambda t: VoGScorer(MODEL, batch_size=True), "True"),
    "memory budget with a unit": (lambda t: VoGScorer(MODEL, memory_budget="2 GB"), "'2 GB'"),
    "workers below zero": (lambda t: VoGScorer(MODEL, num_workers=-2), "-2"),
    "config as a dictionary": (lambda t: VoGScorer(MODEL, config={"label": "given"}), "'label': 'given'"),
    "accelerator as text": (lambda t: VoGScorer(MODEL, accelerator="cpu"), "'cpu'"),
    "model without weights": (lambda t: VoGScorer(Bare()), "Bare"),
    "traced model": (lambda t: VoGScorer(torch.jit.trace(MODEL, torch.ones(1, 3))), "scripted or traced"),
    "scripted part of a model": (lambda t: VoGScorer(nn.Sequential(torch.jit.script(MODEL))), "scripted"),
    "snapshots of a number": (lambda t: score(3), r"3 \(int\)"),
    "snapshots of nothing": (lambda t: score(None), "None"),
    "snapshots of numbers": (lambda t: score([("a", {"weight": 1, "bias": 2}), ("b", {"weight": 1, "bias": 2})]), "a"),
    "output_dir with a long name": (lambda t: score(states(), output_dir=t / LONG), "at most 240 bytes"),
    "output_dir of a number": (lambda t: score(states(), output_dir=7), r"7 \(int\)"),
    "collate_fn of text": (lambda t: score(states(), collate_fn="stack"), "'stack'"),
    "target of a number": (lambda t: VoGConfig(target=3), "3"),
    "dtype of torch": (lambda t: VoGConfig(dtype=torch.float16), "float16"),
    "JSON that is cut off": (lambda t: VoGConfig.from_json('{"label": '), "label"),
    "JSON of a list": (lambda t: VoGConfig.from_json("[4]"), r"\[4\]"),
    "vog of an array": (lambda t: vog(np.ones((2, 3))), "ndarray"),
    "vog of complex numbers": (lambda t: vog(torch.ones(2, 3, dtype=torch.cfloat)), "complex64"),
    "vog without channels": (lambda t: vog(torch.ones(2, 3), reduce_channels=True), r"\(2, 3\)"),
    "vog with a list as mask": (lambda t: vog(torch.ones(2, 3, 4), mask=[True]), r"\[True\]"),
    "class_normalize of texts": (lambda t: class_normalize(["a", "b"], [0, 1]), r"\['a', 'b'\]"),
    "class_normalize of a ragged list": (lambda t: class_normalize([[1.0], [1.0, 2.0]], [0, 1]), r"\[1.0, 2.0\]"),
    "percentile of complex numbers": (lambda t: percentile(torch.ones(2) * 1j), "complex64"),
    "moments of a fraction": (lambda t: GradientMoments(2.5, (2,)), "2.5"),
    "moments of a negative shape": (lambda t: GradientMoments(2, (-3,)), "-3"),
    "moments on no device": (lambda t: GradientMoments(2, (3,), device="toaster"), "'toaster'"),
    "moments of fractions as rows": (lambda t: moments().update([0.5, 1.5], torch.ones(2, 2)), "0.5"),
    "moments of a reversed slice": (lambda t: moments().update(slice(None, None, -1), torch.ones(3, 2)), "-1"),
    "moments of a list": (lambda t: moments().update([0], [[1.0, 2.0]]), r"\[\[1.0, 2.0\]\]"),
    "moments merged with scores": (lambda t: moments().merge(SCORES), "VoGScores"),
    "moments of another state": (lambda t: GradientMoments.from_state({"mean": 1}), "'mean': 1"),
    "gradients for a list of labels": (lambda t: input_gradients(MODEL, torch.ones(2, 3), labels=[0, 1]), r"\[0, 1\]"),
    "gradients of no target": (lambda t: input_gradients(MODEL, torch.ones(2, 3), target=None), "None"),
    "scores of texts": (lambda t: VoGScores({"vog": "abc"}, {}), "vog"),
    "scores of a list": (lambda t: VoGScores([1, 2], {}), r"\[1, 2\]"),
    "scores with hashes of other rows": (lambda t: VoGScores({"vog": np.ones(2)}, {}, row_hash=np.ones(3)), "3"),
    "row behind the last": (lambda t: SCORES.select([0, 4]), r"\[0, 4\]"),
    "row of text": (lambda t: SCORES.select(["a"]), r"\['a'\]"),
    "rows of truth values": (lambda t: SCORES.select([True, False, True, False]), "True"),
    "column by number": (lambda t: SCORES.column(1), "1"),
    "save onto a file": (lambda t: SCORES.save(t / "file"), "file is a file"),
    "save under a file": (lambda t: SCORES.save(t / "file" / "scores"), "scores"),
    "load a long name": (lambda t: VoGScores.load(LONG), "nnn"),
    "columns from a list": (lambda t: add_vog_columns(DATA, [SCORES]), "VoGScores"),
    "columns by number": (lambda t: add_vog_columns(DATA, SCORES, 3), "3"),
    "report of nothing": (lambda t: write_report(None, None, t / "r.html"), "None"),
    "report with half a card": (lambda t: write_report(SCORES, None, t / "r.html", top_k=2.5), "2.5"),
    "report with a list as title": (lambda t: write_report(SCORES, None, t / "r.html", title=["a"]), r"\['a'\]"),
    "log a fraction of rows": (lambda t: log_scores(SCORES, None, top_k=0.5), "0.5"),
    "log at a step of text": (lambda t: log_scores(SCORES, None, step="last"), "'last'"),
    "log a report that is not there": (
        lambda t: log_scores(SCORES, None, report=t / "none.html"),
        "none.html",
    ),
    "log a report of bytes": (lambda t: log_scores(SCORES, None, report=b"<html>"), "b'<html>'"),
    "log to a number": (lambda t: log_scores(SCORES, None, to=5), "5"),
    "push to a name with spaces": (lambda t: push_scored_dataset(DATA, "my data"), "'my data'"),
    "push to a number as revision": (lambda t: push_scored_dataset(DATA, "me/data", revision=4), "4"),
    "push with a number as token": (lambda t: push_scored_dataset(DATA, "me/data", token=4), "int"),
    "pull a name of three parts": (lambda t: pull_scores("a/b/c"), "'a/b/c'"),
    "pull a number as configuration": (lambda t: pull_scores("a/b", config_name=2), "2"),
    "revisions of no model": (lambda t: from_hub("", ["main"]), "''"),
    "revisions of nothing": (lambda t: from_hub("a/b", [None]), "None"),
    "snapshots in a number": (lambda t: SnapshotWriter(5, MODEL), r"5 \(int\)"),
    "snapshots of a text": (lambda t: SnapshotWriter(t, "model"), "str"),
    "snapshot at half a step": (lambda t: SnapshotWriter(t, MODEL).take(MODEL, 0.5), "0.5"),
    "filter of one percentile": (lambda t: Filter(percentile=(5,)), r"\(5,\)"),
    "filter of no percentile": (lambda t: Filter(percentile=None), "None"),
    "filter of class names": (lambda t: Filter(classes=("cat",)), "'cat'"),
    "filter by a number as text": (lambda t: Filter(search=7), "7"),
    "queue of texts that are numbers": (lambda t: Queue(SCORES, [1, 2, 3, 4]), "1"),
    "neighbors of half a row": (lambda t: Queue(SCORES).neighbors(1.5, Filter()), "1.5"),
    "journal in a number": (lambda t: Journal.open(9, SCORES), r"9 \(int\)"),
    "journal of nothing": (lambda t: read_decisions(None), "None"),
    "review by texts": (lambda t: apply_review(DATA, ["drop"]), "'drop'"),
    "review in a mode of a number": (lambda t: apply_review(DATA, [], mode=1), "1"),
    "deciles of half a bin": (lambda t: error_by_decile(RANKS, WRONG, bins=3.5), "3.5"),
    "deciles of texts": (lambda t: error_by_decile(["a"] * 20, WRONG), "'a'"),
    "area of complex numbers": (lambda t: auroc(RANKS * 1j, WRONG), "complex"),
    "agreement on a text of shares": (lambda t: rank_agreement(RANKS, RANKS, top=["half"]), "half"),
    "correlations of a list": (lambda t: rank_correlations([1, 2]), r"\[1, 2\]"),
    "rankings of nothing": (lambda t: merge_rankings({"a": RANKS, "b": None}), "b"),
    "detection of a text of rows": (lambda t: detection_table({"a": RANKS}, WRONG, ks=["ten"]), "'ten'"),
    "classes of nothing": (lambda t: class_table(None, RANKS), "label"),
    "tail with a few and a half": (lambda t: hard_tail({"vog": RANKS}, n_resamples=99.5), "99.5"),
    "stability of texts": (lambda t: ranking_stability([["a", "b"]]), "'b'"),
    "noise of text": (lambda t: plant_label_noise(DATA, "half"), "'half'"),
    "noise that is not a number": (lambda t: plant_label_noise(DATA, float("nan")), "nan"),
    "noise with a seed of text": (lambda t: plant_label_noise(DATA, 0.5, "a"), "'a'"),
    "rows of a number": (lambda t: load_rows(3), r"3 \(int\)"),
    "classes that are one": (lambda t: as_classes(DATA, "label", ["a", "a"]), r"\['a', 'a'\]"),
    "callback with a long folder": (lambda t: VoGCallback(output_dir=t / LONG), "at most 240 bytes"),
    "callback with a text of rows": (lambda t: VoGCallback(top_k="all"), "'all'"),
    "callback with a dictionary": (lambda t: VoGCallback(config={"label": "given"}), "given"),
    "callback with text as patience": (lambda t: VoGCallback(process_timeout="long"), "'long'"),
}

GOOD = {
    "numbers of numpy and torch": lambda t: VoGScorer(MODEL, batch_size=np.int64(8), memory_budget=torch.tensor(9)),
    "whole floats": lambda t: VoGScorer(MODEL, batch_size=8.0),
    "a folder as text": lambda t: SnapshotWriter(str(t / "s"), MODEL).take(MODEL, np.int64(3)),
    "output_dir as text": lambda t: score(states(), output_dir=str(t / "scores")),
    "other things next to the weights": lambda t: score([(n, s | {"config": 1}) for n, s in states()]),
    "gradients of a model without weights": lambda t: input_gradients(Bare(), torch.ones(2, 3)),
    "rows from the end": lambda t: SCORES.select(np.array([-1, 0])),
    "no rows": lambda t: SCORES.select([]),
    "a slice of examples": lambda t: moments().update(slice(0, 3, 2), torch.ones(2, 2)),
    "lists of scores": lambda t: class_normalize([1.0, 2.0], [0, 0]),
    "bins of numpy": lambda t: error_by_decile(list(RANKS), list(WRONG), bins=np.int32(4)),
    "truth as numbers": lambda t: auroc(RANKS, WRONG.astype(float)),
    "a filter of numpy's classes": lambda t: Queue(CLASSES).rows(Filter(classes=(np.int64(1),), percentile=[0, 50])),
    "all rows as noise": lambda t: plant_label_noise(DATA, 1),
    "no decisions": lambda t: apply_review(DATA, []),
    "a generator of decisions": lambda t: apply_review(DATA, iter([])),
    "JSON of a configuration": lambda t: VoGConfig.from_json(VoGConfig(target=["logit", "loss"]).to_json()),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file in it, and no Hub."""
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_call_is_an_error_that_names_what_came(place, name):
    """Wrong types, ranges and lengths are errors of ours, which show the value."""
    call, shown = BAD[name]
    with pytest.raises(VoGError, match=shown):
        call(place)


@pytest.mark.parametrize("name", GOOD)
def test_its_neighbor_is_accepted(place, name):
    """What is checked is not stricter than what works."""
    GOOD[name](place)
