"""Rows that cannot be scored: skipped with on_error="skip", named in the error otherwise."""

from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from vog_hf import VoGConfig, VoGScorer
from vog_hf.data.bad_rows import BadRows
from vog_hf.errors import ConfigError, DataError, NonFiniteError, OutputFolderError

N_ROWS = 53
BAD = {3: {"ids": [1, 99]}, 17: {"ids": [1] * 9}, 20: {"ids": []}, 29: {"label": 7}, 52: {"ids": [7, 7]}}


class Tokens(nn.Module):
    """A classifier of at most 6 tokens of 11; rows that begin with 9, 9 have an infinite gradient."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.tokens, self.positions, self.classes = nn.Embedding(11, 5), nn.Embedding(6, 5), nn.Linear(5, 3)

    def get_input_embeddings(self):
        return self.tokens

    def forward(self, input_ids, attention_mask):
        hidden = torch.tanh(self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))).square()
        counts = attention_mask.unsqueeze(-1).float()
        logits = self.classes((hidden * counts).sum(1) / counts.sum(1))
        extreme = (input_ids[:, :2] == 9).all(1) & (input_ids.shape[1] > 1)
        return {"logits": logits * torch.where(extreme, torch.inf, 1.0)[:, None]}


def collate(rows):
    """Rows padded to the longest; tokens 7, 7 are refused."""
    if any(row["ids"] == [7, 7] for row in rows):
        raise RuntimeError("tokens that no collator takes")
    longest = max(len(row["ids"]) for row in rows)
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row["ids"])], mask[i, : len(row["ids"])] = torch.tensor(row["ids"]), 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["label"] for row in rows])}


def good_rows():
    """Rows of 2 to 5 tokens below 7."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 6, N_ROWS)
    return [{"ids": rng.integers(1, 7, n).tolist(), "label": int(rng.integers(3))} for n in lengths]


def with_changes(changes):
    """The good rows with some of them changed."""
    return [row | changes.get(i, {}) for i, row in enumerate(good_rows())]


class Stream(torch.utils.data.IterableDataset):
    """Rows of a list, one after another."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Numbered(torch.utils.data.Dataset):
    """Rows of a list by number, of which some cannot be read."""

    def __init__(self, rows, unreadable=()):
        self.rows, self.unreadable = rows, unreadable

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        if row in self.unreadable:
            raise RuntimeError("cannot read /home/someone/private/x.png")
        return self.rows[row]


class Plain(Tokens):
    """The same, with its output in another form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, input_ids, attention_mask):
        return self.form(super().forward(input_ids, attention_mask)["logits"])


def score(dataset, *, on_error="skip", batch_size=8, snapshots=None, model=Tokens, **options):
    """Scores of a dataset from three snapshots."""
    torch.manual_seed(0)
    model = model()
    states = [(f"s{k}", {n: torch.randn_like(p) for n, p in model.state_dict().items()}) for k in range(3)]
    config = VoGConfig(target=("logit", "loss"))
    scorer = VoGScorer(model, config=config, batch_size=batch_size, progress=False, on_error=on_error)
    return scorer.score(dataset, snapshots or states, collate_fn=collate, **options)


@pytest.mark.parametrize("kind", [Dataset.from_list, Numbered, Stream])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_other_rows_have_the_scores_that_they_have_without_the_skipped_ones(kind, batch_size, caplog):
    """Rows that fail to collate, in the model, or for a label or an empty text are NaN; all others as without them."""
    scores = score(kind(with_changes(BAD)), batch_size=batch_size)
    alone = score(Dataset.from_list([row for i, row in enumerate(good_rows()) if i not in BAD]))
    assert np.flatnonzero(np.isnan(scores.column("vog"))).tolist() == list(BAD)
    kept = [i for i in range(N_ROWS) if i not in BAD]
    for name in alone.column_names:
        np.testing.assert_allclose(scores.column(name)[kept], alone.column(name), rtol=2e-3, atol=1e-5, err_msg=name)
    bad = list(BAD)
    assert scores.column("prediction")[bad].tolist() == [-1] * 5
    for name in ("vog", "csg", "loss"):
        assert np.isnan(scores.trajectory(name)[bad]).all()
        assert np.flatnonzero(np.isnan(scores.column(name))).tolist() == bad
    assert not scores.heat_map(17).any()
    skipped = scores.manifest["skipped"]
    assert skipped["count"] == 5
    assert [entry["row"] for entry in skipped["rows"]] == bad
    assert skipped["rows"][0]["reason"].startswith("IndexError: index out of range")
    assert "5 of 53 rows cannot be scored and are skipped: row 3: IndexError" in caplog.text


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: logits,
        lambda logits: (logits, logits.sum()),
        lambda logits: SequenceClassifierOutput(logits=logits),
    ],
    ids=["tensor", "tuple", "output"],
)
def test_rows_are_skipped_whatever_the_model_returns(form):
    """A tensor (timm, plain modules) or a tuple has no truth value that matters; the scores are those of a dict."""
    scores = score(with_changes(BAD), model=partial(Plain, form))
    assert np.flatnonzero(np.isnan(scores.column("vog"))).tolist() == list(BAD)
    np.testing.assert_array_equal(scores.column("vog"), score(with_changes(BAD)).column("vog"))


@pytest.mark.parametrize("bad", [range(N_ROWS), range(1, N_ROWS)])
def test_no_single_row_is_blamed_for_what_most_rows_have(bad):
    """The error names the rows of the batch, not its first one."""
    with pytest.raises(DataError, match=r"rows 0, 1, 2 and 5 others cannot be read, and most of them fail alone, too:"):
        score(Numbered(good_rows(), unreadable=bad))


@pytest.mark.parametrize("kind", [Dataset.from_list, Numbered, Stream])
@pytest.mark.parametrize("row", [3, 17, 20, 29, 52])
def test_an_error_names_the_row(kind, row):
    """Without skipping, the error names a bad row of the third batch or later, whatever kind of rows it is in."""
    late = 30 + row % 20
    with pytest.raises(DataError, match=rf"\brow {late}\b"):
        score(kind(with_changes({late: BAD[row]})), on_error="raise")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_row_that_cannot_be_read_is_named_or_skipped(workers):
    """Any error of a dataset is about its row, and the manifest does not publish folders of this machine."""
    rows = Numbered(good_rows(), unreadable={45})
    with pytest.raises(DataError, match=r"row 45 cannot be read: RuntimeError: .*pass on_error='skip'"):
        score(rows, on_error="raise")
    assert score(rows).manifest["skipped"]["rows"] == [{"row": 45, "reason": "RuntimeError: cannot read x.png"}]


def test_a_stream_that_breaks_is_not_skipped():
    """A stream ends at the first row that raises: the error names the row, and no later row is lost in silence."""

    def rows():
        yield from good_rows()[:40]
        raise OSError("the connection is gone")

    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"row 40 of the stream cannot be read: OSError: the connection is gone"):
            score(IterableDataset.from_generator(rows), on_error=on_error)


def test_gradients_that_are_not_finite_are_skipped_unless_the_weights_diverged():
    """One row with an infinite gradient is skipped; a snapshot of NaN stays an error."""
    scores = score(Dataset.from_list(with_changes({33: {"ids": [9, 9, 3]}})))
    assert scores.manifest["skipped"] == {
        "count": 1,
        "rows": [{"row": 33, "reason": "its gradient is not finite at snapshot 's0'"}],
    }
    state = Tokens().state_dict()
    nan = {name: torch.full_like(value, torch.nan) for name, value in state.items()}
    with pytest.raises(NonFiniteError, match="snapshot 'b'"):
        score(Dataset.from_list(good_rows()), snapshots=[("a", state), ("b", nan)])


def test_an_error_of_every_row_stays_an_error():
    """A dataset of which all rows of the first batch, or more than half of all, fail is refused."""
    with pytest.raises(Exception, match=r"forward failed on rows 0-7"):
        score(Dataset.from_list([{"ids": [1, 99], "label": 0}] * 20))
    with pytest.raises(DataError, match=r"30 of 46 rows cannot be scored, more than half"):
        score(Dataset.from_list(good_rows()[:16] + [{"ids": [1, 99], "label": 0}] * 30))
    with pytest.raises(ConfigError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        VoGScorer(Tokens(), on_error="ignore")


@pytest.mark.parametrize("kind", [Dataset.from_list, Numbered, Stream])
def test_finished_scores_with_skipped_rows_are_only_for_runs_that_skip(kind, tmp_path):
    """A second call returns the same scores; one that does not skip is refused instead of getting NaN."""
    rows = with_changes(BAD)
    first = score(kind(rows), output_dir=tmp_path / "scores")
    again = score(kind(rows), output_dir=tmp_path / "scores")
    np.testing.assert_array_equal(again.column("vog"), first.column("vog"))
    with pytest.raises(OutputFolderError, match="leave out 5 rows that could not be scored; pass on_error='skip'"):
        score(kind(rows), output_dir=tmp_path / "scores", on_error="raise")


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_arrow_format_is_refused(is_stream):
    """A format that gives tables instead of rows is refused with the way out."""
    dataset = Dataset.from_list(good_rows())
    dataset = (dataset.to_iterable_dataset() if is_stream else dataset).with_format("arrow")
    with pytest.raises(DataError, match=r"this dataset's format gives tables .*with_format\(None\)"):
        score(dataset, on_error="raise")


@pytest.mark.parametrize(("bad", "found"), [([5], [5]), ([0, 6], [0, 6]), (range(8), [])])
def test_bad_rows_are_found_by_halves(bad, found):
    """Some bad rows are found with few attempts; where all fail, none is to blame."""
    attempts = []

    def attempt(rows):
        attempts.append(rows)
        if set(rows) & set(bad):
            raise ValueError("bad")

    rows = BadRows(attempt, "skip")
    assert rows.good(range(8)) == [row for row in range(8) if row not in found]
    assert list(rows.skipped) == found
    assert len(attempts) < 16


def test_the_manifest_lists_a_bounded_number_of_rows():
    """Of many skipped rows the manifest has the count, and lists the first hundred."""
    changes = {i: {"ids": []} for i in range(200, 330)}
    rows = [good_rows()[i % N_ROWS] | changes.get(i, {}) for i in range(400)]
    skipped = score(Dataset.from_list(rows), batch_size=64).manifest["skipped"]
    assert (skipped["count"], len(skipped["rows"])) == (130, 100)


def test_a_split_is_named(tmp_path):
    """Of a DatasetDict, the error names the split with rows that cannot be scored."""
    from transformers import Trainer, TrainingArguments

    from vog_hf import VoGCallback

    splits = DatasetDict(
        train=Dataset.from_list(good_rows()), test=Dataset.from_list([{"ids": row["ids"]} for row in good_rows()])
    )
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False)
    callback = VoGCallback(splits, collate_fn=collate)
    trainer = Trainer(Tokens(), args, train_dataset=splits["train"], data_collator=collate, callbacks=[callback])
    with pytest.raises(DataError, match=r"split 'test': .*'label'"):
        trainer.train()
