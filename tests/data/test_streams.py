import datasets
import models
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from live_cases import assert_identical

from vog_hf.config import VoGConfig
from vog_hf.data.streams import StreamRows
from vog_hf.errors import ConfigError, DataError, OutputFolderError
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.replay import Replay
from vog_hf.scoring.scorer import VoGScorer

N = 53
CASE = models.conv_net()
ROWS = [
    {"image": row["image"].tolist(), "labels": i % models.CLASSES, "name": f"row {i:02d} ü"}
    for i, row in enumerate(models._float_rows("image", (3, 8, 8), seed=7, n=N))
]
FEATURES = Features(
    {"image": datasets.Array3D((3, 8, 8), "float32"), "labels": Value("int64"), "name": Value("string")}
)
STATES = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(CASE.model, 4))]
BLOCK = 14  # rows


class Rows(torch.utils.data.IterableDataset):
    """A torch stream that counts what is read of it."""

    def __init__(self, rows=None, fails_at=None):
        self.rows, self.fails_at, self.read = ROWS if rows is None else rows, fails_at, 0

    def __iter__(self):
        for i, row in enumerate(self.rows):
            if i == self.fails_at:
                raise ConnectionError("the stream broke off")
            self.read += 1
            yield row


def hugging_face_stream(n_shards=3):
    """A streaming dataset of `datasets`, in several shards."""
    return Dataset.from_list(ROWS, features=FEATURES).to_iterable_dataset(num_shards=n_shards)


def collate(rows):
    """Images and labels as tensors; names stay out."""
    return {
        "image": torch.tensor(np.array([row["image"] for row in rows]), dtype=torch.float32),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def score(dataset, folder=None, **options):
    """Scores of a stream or dataset in blocks of 14 rows (image, label and moments), batches of 7."""
    plan = {"batch_size": 7, "memory_budget": BLOCK * (3 * 8 * 8 * 4 + 8 + 2 * 2 * 8 * 8 * 4), "progress": False}
    config = options.pop("config", None)
    scorer = VoGScorer(CASE.model, config=config, **{**plan, **options.pop("scorer", {})})
    return scorer.score(dataset, STATES, collate_fn=collate, output_dir=folder, **options)


@pytest.mark.parametrize("label", ["given", "predicted"])
@pytest.mark.parametrize("stream", [Rows, hugging_face_stream, lambda: hugging_face_stream(1)])
def test_a_stream_scores_what_its_rows_score(stream, label):
    """Columns, trajectories and maps are those of the same rows in a map-style dataset, bit by bit."""
    config = VoGConfig(target=("logit", "loss"), label=label)
    expected = score(ROWS, config=config)
    scores = score(stream(), config=config)
    assert len(scores) == N
    assert_identical(scores, expected)


@pytest.mark.parametrize("n_rows", [1, 2, 14, 28, 29])
def test_a_stream_may_end_anywhere(n_rows):
    """In the first block, at the end of a block, or one row behind it."""
    assert_identical(score(Rows(ROWS[:n_rows])), score(ROWS[:n_rows]))


def test_a_stream_is_read_once(tmp_path):
    """Next to the rows of the dry run, every row is read once, and a finished folder needs none but the first."""
    stream = Rows()
    score(stream, tmp_path / "scores")
    in_dry_run = stream.read - N
    assert in_dry_run <= 5 * 32
    stream.read = 0
    score(stream, tmp_path / "scores")
    assert stream.read <= in_dry_run


def test_the_shards_are_parquet_that_load_dataset_reads(tmp_path, monkeypatch):
    """The table comes in shards with row and id, and `VoGScores.load` reads them as one."""
    monkeypatch.setattr("vog_hf.scores.storage.SHARD_ROWS", 20)
    scores = score(Rows(), tmp_path / "scores", id_column="name")
    assert sorted(path.name for path in (tmp_path / "scores").glob("*.parquet")) == [
        f"scores-{shard:05d}-of-00003.parquet" for shard in range(3)
    ]
    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "scores" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["row"][:] == list(range(N))
    assert loaded["id"][:] == [row["name"] for row in ROWS]
    np.testing.assert_array_equal(np.array(loaded["vog"][:], dtype=np.float32), scores.column("vog"))
    again = VoGScores.load(tmp_path / "scores")
    assert_identical(again, scores)
    assert again.ids.tolist() == scores.ids.tolist() == [row["name"] for row in ROWS]
    assert again.to_pandas()["id"].tolist() == scores.ids.tolist()


def test_ids_may_be_numbers_and_are_saved_again(tmp_path):
    """Whatever names the rows comes back as it was; without id_column there are no ids."""
    rows = [{**row, "key": 10**12 + 3 * i} for i, row in enumerate(ROWS)]
    scores = score(Rows(rows), id_column="key")
    scores.save(tmp_path / "copy")
    assert VoGScores.load(tmp_path / "copy").ids.tolist() == [row["key"] for row in rows]
    assert score(Rows(rows)).ids is None


@pytest.mark.parametrize("stream", [Rows, hugging_face_stream])
def test_an_interrupted_stream_goes_on_after_its_last_block(stream, tmp_path, monkeypatch):
    """Finished blocks are not scored again, and the scores are bit-equal."""
    whole = score(stream(), tmp_path / "whole", id_column="name")
    with pytest.raises(ConnectionError, match="broke off"):
        score(Rows(fails_at=33), tmp_path / "scores", id_column="name")
    write, numbers = Replay.write, []
    monkeypatch.setattr(Replay, "write", lambda self, n, scored: (numbers.append(n), write(self, n, scored)))
    scores = score(stream(), tmp_path / "scores", id_column="name")
    assert numbers == [2, 3]
    assert_identical(scores, whole)
    assert scores.ids.tolist() == whole.ids.tolist()


def test_a_stream_in_another_order_is_not_mixed_in(tmp_path):
    """Rows that differ in the first batch, or in the last finished block, are refused; the same rows continue."""
    with pytest.raises(ConnectionError):
        score(Rows(fails_at=47), tmp_path / "scores")
    swapped = [*ROWS[:32], ROWS[33], ROWS[32], *ROWS[34:]]
    with pytest.raises(OutputFolderError, match=r"the rows are not those that the scores in .* were computed on"):
        score(Rows(swapped), tmp_path / "scores")
    with pytest.raises(OutputFolderError, match=r"the rows are not those that the scores in .* were computed on"):
        score(Rows(ROWS[:32]), tmp_path / "scores")
    with pytest.raises(OutputFolderError, match="differs in first batch"):
        score(Rows(ROWS[1:]), tmp_path / "scores")
    assert len(score(Rows(), tmp_path / "scores")) == N


@pytest.mark.parametrize("n_rows", [1, 40, N])
def test_the_scores_of_a_stream_are_not_taken_for_those_of_a_longer_or_shorter_one(n_rows, tmp_path):
    """A finished folder is taken up for a stream of as many rows, read to its end, and for no other."""
    first = score(Rows(ROWS[:n_rows]), tmp_path / "scores")
    assert_identical(score(Rows(ROWS[:n_rows]), tmp_path / "scores"), first)
    for other, change in ((n_rows - 1, "fewer"), (n_rows + 1, "more")):
        rows = [*ROWS, ROWS[0]][:other]
        if rows and len(rows) >= 32 <= n_rows:  # else the digest of the first 32 rows says so already
            with pytest.raises(OutputFolderError, match=f"the stream has {change} rows than the {n_rows} whose scores"):
                score(Rows(rows), tmp_path / "scores")
        elif rows:
            with pytest.raises(OutputFolderError, match="differs in first batch"):
                score(Rows(rows), tmp_path / "scores")


@pytest.mark.parametrize(("first", "second"), [("name", "uid"), ("name", None), (None, "name")])
def test_ids_of_two_columns_are_not_mixed(first, second, tmp_path):
    """Whether the folder is finished or was interrupted; the same column continues."""
    rows = [{**row, "uid": f"u{i}"} for i, row in enumerate(ROWS)]
    with pytest.raises(ConnectionError):
        score(Rows(rows, fails_at=33), tmp_path / "scores", id_column=first)
    with pytest.raises(OutputFolderError, match="differs in id_column"):
        score(Rows(rows), tmp_path / "scores", id_column=second)
    ids = score(Rows(rows), tmp_path / "scores", id_column=first).ids
    assert ids is None if first is None else ids.tolist() == [row[first] for row in rows]
    with pytest.raises(OutputFolderError, match="differs in id_column"):
        score(Rows(rows), tmp_path / "scores", id_column=second)


def test_no_more_rows_of_a_stream_are_held_than_a_batch(monkeypatch):
    """Whatever they hold next to what the model is fed: a block is of collated rows, not of raw ones."""
    held, hold = [], StreamRows.hold

    def spied(self, rows):
        found = hold(self, rows)
        held.append(len(self))
        return found

    monkeypatch.setattr(StreamRows, "hold", spied)
    assert len(score(Rows())) == N
    assert max(held) == 7


def test_a_random_transform_is_found_in_a_stream():
    """Two readings under different random states must agree; a transform without chance is accepted."""

    def noisy(row):
        return {"image": (np.array(row["image"]) + np.random.rand()).astype(np.float32)}

    def scaled(row):
        return {"image": (np.array(row["image"]) * 2).astype(np.float32)}

    with pytest.raises(DataError, match="differs between two readings"):
        score(hugging_face_stream().map(noisy))
    assert len(score(hugging_face_stream().map(scaled))) == N


def test_an_empty_stream_and_a_missing_id_are_refused():
    """Before any work: an empty stream, rows without the id column, ids for rows that have numbers."""
    with pytest.raises(DataError, match="the stream is empty"):
        score(Rows([]))
    with pytest.raises(DataError, match=r"id_column 'uid' is not a key of the stream's rows .*'name'"):
        score(Rows(), id_column="uid")
    with pytest.raises(ConfigError, match="id_column names the rows of a stream"):
        score(ROWS, id_column="name")


def test_a_generator_stream_of_datasets_is_scored():
    """IterableDataset.from_generator is iterated again for each pass."""
    stream = IterableDataset.from_generator(lambda: iter(ROWS), features=FEATURES)
    assert_identical(score(stream), score(ROWS))


# --- ids that change their kind -------------------------------------------------------------------------------------


def with_ids(ids):
    """The rows of a stream under other ids."""
    return [{**row, "key": value} for row, value in zip(ROWS, ids, strict=True)]


def changed_at(row, value, kind=int):
    """Ids of one kind but for that of a row."""
    return [value if i == row else kind(i) for i in range(N)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, int),
        (2.5, int),
        ("x", int),
        (7, str),
        (True, int),
        (2**63, int),
        ([1], int),
        (np.zeros(1, dtype=int), int),
        (b"x", str),
        ("\ud800", str),
    ],
    ids=ascii,
)
def test_an_id_of_another_kind_is_refused_before_its_block_and_named(value, kind, tmp_path, monkeypatch):
    """Ids are all texts or all whole numbers; the row that breaks this is named, and the blocks before it are kept."""
    written, write = [], Replay.write
    monkeypatch.setattr(
        Replay, "write", lambda self, number, block: (written.append(number), write(self, number, block))
    )
    with pytest.raises(DataError, match="of row 40; "):
        score(Rows(with_ids(changed_at(40, value, kind))), tmp_path / "scores", id_column="key")
    assert written == [0, 1]


@pytest.mark.parametrize("ids", [changed_at(0, None), changed_at(30, None), [b"x"] * N, [{"a": 1}] * N], ids=range(4))
def test_ids_that_are_none_are_refused_before_any_work(ids, tmp_path):
    """The first rows are looked at before there is a folder."""
    with pytest.raises(DataError, match="an id must be a text or a whole number of 64 bits, got"):
        score(Rows(with_ids(ids)), tmp_path / "scores", id_column="key")
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("fixed", [list(range(N)), [str(i) for i in range(N)]], ids=["as before", "all as texts"])
def test_a_run_whose_ids_were_fixed_continues(fixed, tmp_path):
    """After the data was fixed the same folder gives every row its new id, also where their kind is another now."""
    with pytest.raises(DataError, match="of one kind"):
        score(Rows(with_ids(changed_at(40, "x"))), tmp_path / "scores", id_column="key")
    assert len(list((tmp_path / "scores" / "blocks").glob("*.safetensors"))) == 2
    scores = score(Rows(with_ids(fixed)), tmp_path / "scores", id_column="key")
    assert scores.ids.tolist() == fixed
    assert np.array_equal(scores.column("vog"), score(ROWS).column("vog"))


def test_ids_of_numpy_and_torch_are_those_of_python():
    """A scalar is what it holds, whichever library made it."""
    kinds = [int, np.int64, np.uint8, torch.tensor, np.array]
    assert score(Rows(with_ids([kinds[i % 5](i) for i in range(N)])), id_column="key").ids.tolist() == list(range(N))
