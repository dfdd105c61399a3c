import pickle
import random
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import models
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image
from torch import nn
from torch.testing import assert_close
from transformers import default_data_collator

from vog_hf.config import VoGConfig
from vog_hf.data.batch_reader import BatchReader
from vog_hf.errors import DataError, LabelError, ModelError, NonFiniteError
from vog_hf.gradients.model_mode import preserved_rng
from vog_hf.scoring.scorer import VoGScorer

N = 53
VECTORS = [row["features"] for row in models._float_rows("features", (5,), seed=7, n=N)]
LABELS = [(i * i + i // 3) % models.CLASSES for i in range(N)]
SIZE = 8


def states_of(model, n=3):
    """Named snapshots of a model."""
    return [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, n))]


def score(dataset, *, model=None, states=None, batch_size=7, collate_fn=None, num_workers=0, **options):
    """Scores of a dataset in blocks of one batch; what is left over is the configuration's."""
    model = model or models.mlp().model
    scorer = VoGScorer(
        model, config=VoGConfig(**options), batch_size=batch_size, memory_budget=1, num_workers=num_workers
    )
    return scorer.score(dataset, states or states_of(model), collate_fn=collate_fn)


def mappings(labels=None, vectors=None, name="label"):
    """Rows as a list of mappings."""
    return [{"features": x, name: y} for x, y in zip(vectors or VECTORS, labels or LABELS, strict=True)]


def table(labels=None, name="label", feature=None):
    """Rows as a dataset with typed columns."""
    columns = {"features": [x.tolist() for x in VECTORS], name: labels or LABELS}
    kinds = {"features": List(Value("float32")), name: feature or Value("int64")}
    return Dataset.from_dict(columns, features=Features(kinds))


def assert_scored(dataset, **options):
    """The accepted neighbor: as many finite scores as rows."""
    scores = score(dataset, **options)
    assert len(scores) == len(dataset)
    assert np.isfinite(scores.column("vog")).all()
    return scores


EXPECTED = []


def expected_vog():
    """VoG of the rows, computed once."""
    if not EXPECTED:
        EXPECTED.append(score(mappings()).column("vog"))
    return EXPECTED[0]


# --- what is read ---------------------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return VECTORS[i], LABELS[i]


@pytest.mark.parametrize(
    "dataset",
    [
        Pairs(),
        list(zip(VECTORS, LABELS, strict=True)),
        torch.utils.data.TensorDataset(torch.stack(VECTORS), torch.tensor(LABELS)),
        torch.utils.data.Subset(Pairs(), range(N)),
        mappings(name="labels"),
        table(),
        table().with_format("torch"),
        table().with_format("numpy"),
        table().with_transform(
            lambda rows: {"features": [torch.tensor(x) for x in rows["features"]], "label": rows["label"]}
        ),
        table(name="class"),
    ],
    ids=[
        "torch",
        "pairs",
        "tensors",
        "subset",
        "labels",
        "Dataset",
        "torch format",
        "numpy format",
        "transform",
        "label_column",
    ],
)
def test_every_map_style_data_set_gives_the_same_scores(dataset):
    """Pairs, mappings, tensors, Dataset in any format, labels under any of Trainer's names or your own column."""
    named = isinstance(dataset, Dataset) and "class" in dataset.column_names
    scores = score(dataset, label_column="class" if named else None)
    np.testing.assert_allclose(scores.column("vog"), expected_vog(), rtol=1e-6)
    np.testing.assert_array_equal(scores.column("label"), LABELS)


def test_a_collator_of_ones_own_gets_whole_rows():
    """Every column of the row, also those that forward does not take, as the row's transform left them."""
    seen = []

    def collate(rows):
        seen.append(set(rows[0]))
        return {
            "features": torch.stack([row["features"] / row["unit"] for row in rows]),
            "labels": [r["y"] for r in rows],
        }

    rows = [
        {"features": 4 * x, "unit": 4.0, "y": y, "id": f"{i}"}
        for i, (x, y) in enumerate(zip(VECTORS, LABELS, strict=True))
    ]
    np.testing.assert_allclose(score(rows, collate_fn=collate).column("vog"), expected_vog(), rtol=1e-6)
    assert seen[0] == {"features", "unit", "y", "id"}


def test_trainers_collator_gets_only_what_forward_and_labels_need():
    """As under remove_unused_columns: the columns left are those of forward and the label names."""
    seen = []

    def collate(rows):
        seen.append(set(rows[0]))
        return default_data_collator(rows)

    dataset = table().add_column("id", [f"row-{i}" for i in range(N)])
    reader = BatchReader(dataset, models.mlp().model, collate_fn=collate, only_model_columns=True)
    (batch,) = reader.read([range(3)])
    assert seen == [{"features", "label"}]
    assert batch.labels.tolist() == LABELS[:3]


def test_labels_are_not_among_the_inputs():
    """A model that is given labels computes a loss and writes config.problem_type: they are kept apart."""
    case = models.bert()
    rows = [{**row, "labels": y, "label_ids": y} for row, y in zip(case.rows, case.labels, strict=True)]
    reader = BatchReader(rows, case.model, collate_fn=models.collate)
    (batch,) = reader.read([range(5)])
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.labels.tolist() == case.labels
    assert batch.nbytes == sum(value.nbytes for value in (*batch.inputs.values(), batch.labels))
    score(rows, model=case.model, collate_fn=models.collate)
    assert case.model.config.problem_type is None


def test_a_label_column_goes_before_the_usual_names():
    """With two columns of labels the one that was asked for is used."""
    noisy = [(y + 1) % 3 for y in LABELS]
    dataset = table().add_column("clean", LABELS).remove_columns("label").add_column("label", noisy)
    np.testing.assert_array_equal(score(dataset, label_column="clean").column("vog"), expected_vog())
    np.testing.assert_array_equal(score(dataset).column("label"), noisy)


def test_reading_draws_nothing_from_the_global_streams():
    """Neither in the process nor with workers, so that a training that continues is not disturbed."""
    reader = BatchReader(mappings(), models.mlp().model)
    for workers in (0, 2):
        reader = BatchReader(mappings(), models.mlp().model, num_workers=workers)
        torch_state, python_state = torch.get_rng_state(), random.getstate()
        batches = list(reader.read([range(10), range(10, N)]))
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert random.getstate() == python_state
        assert [batch.rows for batch in batches] == [range(10), range(10, N)]


def test_random_states_come_back_also_after_an_error():
    """preserved_rng gives back python's, numpy's and torch's streams."""
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    def draw():
        random.random()
        np.random.rand()
        torch.rand(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), preserved_rng():
        draw()
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])


# --- transforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand, lambda: float(torch.rand(()))], ids=["python", "numpy", "torch"]
)
def test_a_random_transform_is_refused(draw):
    """VoG would measure the crop; the message says how to pass an evaluation transform. Its fixed twin is accepted."""

    def view(shift):
        return table().with_transform(
            lambda rows: {"features": [torch.tensor(x) + shift() for x in rows["features"]], "label": rows["label"]}
        )

    with pytest.raises(
        DataError, match=r"'features' of rows 0-6 differs between two readings.*with_transform\(eval_tr"
    ):
        score(view(draw))
    assert_scored(view(lambda: 0.25))


def test_a_random_collator_is_refused():
    """Masking at random (language-model collators) is the same mistake."""

    def collate(rows, share=0.5):
        batch = default_data_collator(rows)
        batch["features"] = batch["features"] * (torch.rand(batch["features"].shape) > share)
        return batch

    with pytest.raises(DataError, match="differs between two readings"):
        score(mappings(), collate_fn=collate)
    assert_scored(mappings(), collate_fn=lambda rows: collate(rows, share=-1.0))


# --- labels ---------------------------------------------------------------------------------------------------------


def test_data_without_labels_is_refused_unless_the_prediction_is_asked_for():
    """The message names what was looked for and both ways out."""
    rows = [{"features": x} for x in VECTORS]
    with pytest.raises(DataError, match=r"no label was found.*label_ids.*label_column=.*label='predicted'"):
        score(rows)
    scores = assert_scored(rows, label="predicted")
    assert set(scores.column("label")) == {-1}


def test_a_label_column_that_is_not_there_is_refused():
    """By name, with the columns there are."""
    with pytest.raises(
        DataError, match=r"label_column 'fine_label' is neither a column of the rows \(\['features', 'la"
    ):
        score(table(), label_column="fine_label")
    with pytest.raises(DataError, match="label_column 'fine_label' is neither"):
        score(mappings(), label_column="fine_label")
    assert_scored(table(name="fine_label"), label_column="fine_label")


@pytest.mark.parametrize("form", [table, mappings], ids=["Dataset", "list"])
@pytest.mark.parametrize("wrong", [3, 255, -2, -99])
def test_a_label_outside_the_models_classes_is_refused_by_its_row(form, wrong):
    """Also far beyond the first batch; the highest class and -100 (no label) are accepted."""
    with pytest.raises(
        LabelError, match=rf"row 47: label {wrong} is outside the model's classes 0\.\.2.*num_labels"
    ) as caught:
        score(form([wrong if i == 47 else y for i, y in enumerate(LABELS)]))
    assert caught.value.position == 47
    for accepted in (2, -100):
        assert_scored(form([accepted if i == 47 else y for i, y in enumerate(LABELS)]))


def test_labels_of_a_data_set_are_checked_before_the_work():
    """Where they can be read without decoding, a wrong one in the last row stops the dry run."""
    model = models.mlp().model
    calls = []
    model.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(LabelError, match="row 52"):
        score(table([*LABELS[:-1], 7]), model=model)
    assert len(calls) == 1


@pytest.mark.parametrize("form", [table, mappings], ids=["Dataset", "list"])
def test_labels_that_are_text_are_refused(form):
    """The message says how to encode them; the encoded column is accepted."""
    names = [["cat", "dog", "frog"][y] for y in LABELS]
    dataset = table(names, feature=Value("string")) if form is table else mappings(names)
    with pytest.raises(DataError, match=r"label column 'label' holds text \('cat'\).*class_encode_column\('label'\)"):
        score(dataset)
    np.testing.assert_array_equal(
        assert_scored(table(names, feature=Value("string")).class_encode_column("label")).column("label"), LABELS
    )


@pytest.mark.parametrize("view", [None, "torch", "numpy"])
@pytest.mark.parametrize("name", ["label", "kind"])
def test_null_labels_mean_no_label_in_every_format(view, name):
    """The formats torch and numpy turn a column with nulls into floats; the classes are understood all the same."""
    labels = [None if i % 4 == 1 else y for i, y in enumerate(LABELS)]
    dataset = table(labels, name=name, feature=ClassLabel(names=["a", "b", "c"])).with_format(view)
    scores = assert_scored(dataset, label_column=name)
    np.testing.assert_array_equal(scores.column("label"), [-1 if y is None else y for y in labels])
    np.testing.assert_allclose(
        scores.column("vog"), score(mappings([-1 if y is None else y for y in labels])).column("vog"), rtol=1e-6
    )


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(5, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, features):
        return self.out(self.hidden(features).tanh())


@pytest.mark.parametrize("missing_at", [0, 41])
@pytest.mark.parametrize("form", [table, mappings], ids=["Dataset", "list"])
def test_a_regression_cannot_do_without_a_number(form, missing_at):
    """A missing number is not taken for -1: the row is named; numbers of any size are accepted."""
    numbers = [y + i / 7 - 5 for i, y in enumerate(LABELS)]
    missing = [None if i == missing_at else y for i, y in enumerate(numbers)]
    options = {"feature": Value("float32")} if form is table else {}
    with pytest.raises(LabelError, match=rf"row {missing_at}: regression labels must be finite, got nan"):
        score(form(missing, **options), model=Line())
    scores = assert_scored(form(numbers, **options), model=Line())
    np.testing.assert_allclose(scores.column("label"), numbers, rtol=1e-6)


# --- datasets that cannot be scored ---------------------------------------------------------------------------------


def test_an_empty_data_set_is_refused_and_two_rows_are_enough():
    """No row, no score; two rows, or one, are a dataset."""
    with pytest.raises(DataError, match="the dataset is empty"):
        score([])
    with pytest.raises(DataError, match="the dataset is empty"):
        score(table().select([]))
    assert_scored(table().select(range(2)))
    assert score(table().select(range(1))).column("vog_class_normalized").tolist() == [0]


def test_rows_that_can_be_read_once_only_are_refused():
    """A generator has no rows by number and no second reading; the list of its rows and a stream are accepted."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(mappings())

    with pytest.raises(DataError, match="a generator has none; pass a map-style dataset"):
        score(row for row in mappings())
    for dataset in (mappings(), Stream(), table().to_iterable_dataset()):
        assert len(score(dataset)) == N


def test_a_dict_of_splits_is_refused_and_a_split_accepted():
    """A scorer scores one dataset; the message lists the splits."""
    splits = DatasetDict(train=table(), test=table().select(range(9)))
    with pytest.raises(DataError, match=r"got a mapping of \['test', 'train'\]; pass one of its splits"):
        score(splits)
    assert_scored(splits["test"])


def test_a_class_with_one_row_has_the_normalized_score_0():
    """Its deviation is 0 by definition, never NaN."""
    labels = [2 if i == 10 else y % 2 for i, y in enumerate(LABELS)]
    scores = assert_scored(mappings(labels))
    assert scores.column("vog_class_normalized")[10] == 0
    assert (scores.column("vog_class_normalized") != 0).sum() == N - 1


# --- values that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [3, 47])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_input_that_is_not_finite_is_refused_by_its_row(row, value):
    """In the first batch and beyond; very large numbers are accepted."""

    def vectors(value):
        broken = [x.clone() for x in VECTORS]
        broken[row][2] = value
        return broken

    with pytest.raises(NonFiniteError, match=rf"input 'features' of row {row} holds NaN or infinity"):
        score(mappings(vectors=vectors(value)))
    assert_scored(mappings(vectors=vectors(1e30)))


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.full((5,), 0.1))
        self.out = nn.Linear(5, 3)

    def forward(self, features):
        return self.out((features + self.shift).abs().sqrt())


def test_a_gradient_that_is_not_finite_is_refused_with_row_and_snapshot():
    """One row has, in one snapshot, no gradient: both are named; next to that point it is accepted."""
    model = Root()
    states = states_of(model)
    states[1][1]["shift"][2] = -VECTORS[45][2]
    with pytest.raises(NonFiniteError, match=r"gradient of logit is not finite at row 45, snapshot 'epoch-1' \(1 rows"):
        score(mappings(), model=model, states=states)
    states[1][1]["shift"][2] += 0.01
    assert_scored(mappings(), model=model, states=states)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_snapshot_of_a_training_that_diverged_is_refused_by_its_name(value):
    """An infinite weight: the snapshot, the first row and the target are named; a large one is accepted."""
    model = models.mlp().model
    states = states_of(model)
    states[2][1]["out.weight"][0, 0] = value
    with pytest.raises(NonFiniteError, match=r"gradient of loss is not finite at row 0, snapshot 'epoch-2' \(7 rows"):
        score(mappings(), model=model, states=states, target="loss")
    states[2][1]["out.weight"][0, 0] = 1e6
    assert_scored(mappings(), model=model, states=states, target="loss")


def test_a_model_that_has_diverged_is_refused_before_training_and_does_not_matter_to_its_snapshots():
    """The dry run of a model that will be trained names it as it is now; a replay never scores those weights."""
    model = models.mlp().model
    states = states_of(model)
    expected = score(mappings(), model=model, states=states).column("vog")
    with torch.no_grad():
        model.out.weight[:] = float("nan")
    scorer = VoGScorer(model)
    with pytest.raises(NonFiniteError, match="row 0, snapshot 'the model as it is now'"):
        scorer.plan(scorer.reader(mappings()))
    np.testing.assert_array_equal(score(mappings(), model=model, states=states).column("vog"), expected)


# --- collators and inputs -------------------------------------------------------------------------------------------


def test_a_collator_that_drops_the_inputs_is_refused():
    """What forward takes and what the batch has are both listed; renaming the key is the way out."""

    def collate(rows, name="x"):
        return {
            name: torch.stack([row["features"] for row in rows]),
            "labels": torch.tensor([r["label"] for r in rows]),
        }

    with pytest.raises(ModelError, match=r"none of forward's parameters \['features'\] is a tensor of the batch.*\[\]"):
        score(mappings(), collate_fn=collate)
    assert_scored(mappings(), collate_fn=lambda rows: collate(rows, name="features"))


def test_rows_without_any_column_of_the_model_are_refused():
    """A dataset whose transform was forgotten: its columns are listed."""
    rows = [{"picture": x, "class": y} for x, y in zip(VECTORS, LABELS, strict=True)]
    with pytest.raises(DataError, match=r"none of the row's columns \['class', 'picture'\].*with_transform"):
        score(rows)
    assert_scored([{"features": row["picture"], "label": row["class"]} for row in rows])


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: torch.cat([x, x])], ids=["fewer", "more"])
def test_a_collator_that_changes_the_number_of_rows_is_refused(change):
    """One example per row, or no score can be placed."""

    def collate(rows, change=change):
        batch = default_data_collator(rows)
        return {name: change(value) for name, value in batch.items()}

    with pytest.raises(DataError, match=r"the collator made \d+ examples of 1 rows; VoG needs one example per row"):
        score(mappings(), collate_fn=collate)
    assert_scored(mappings(), collate_fn=lambda rows: collate(rows, change=lambda value: value))


def test_a_collator_that_loses_a_label_is_refused():
    """As many labels as rows."""

    def collate(rows, stop=-1):
        batch = default_data_collator(rows)
        return {**batch, "labels": batch["labels"][:stop]}

    with pytest.raises(DataError, match="0 labels came for 1 rows"):
        score(mappings(), collate_fn=collate)
    assert_scored(mappings(), collate_fn=lambda rows: collate(rows, stop=None))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, ids):
        return self.out(self.embedding(ids).mean(1).tanh())


class NamedTokens(Tokens):
    def get_input_embeddings(self):
        return self.embedding


def test_whole_numbers_without_a_known_embedding_are_refused():
    """Ids have no gradient: a plain module must say which embedding is differentiated; then it is accepted."""
    rows = [{"ids": torch.tensor([1 + i % 20, 3, 5 + i % 7]), "label": y} for i, y in enumerate(LABELS)]
    with pytest.raises(ModelError, match=r"'ids' is torch\.int64, which has no gradient.*get_input_embeddings\(\)"):
        score(rows, model=Tokens())
    assert_scored(rows, model=NamedTokens())


@dataclass
class Pictures:
    """A dataset of drawn pictures, each of a size and a mode."""

    sizes: list[int]
    modes: list[str]
    convert: bool
    resize: bool = False

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        pixels = np.random.default_rng(i).integers(0, 256, (self.sizes[i], self.sizes[i], 4), dtype=np.uint8)
        image = Image.fromarray(pixels, "RGBA").convert(self.modes[i])
        image = image.convert("RGB") if self.convert else image
        image = image.resize((SIZE, SIZE)) if self.resize else image
        array = np.atleast_3d(np.asarray(image, dtype=np.float32) / 255)
        return {"image": torch.from_numpy(array).permute(2, 0, 1), "label": i % 3}


RGB, LIKE = ["RGB"] * 6, [SIZE] * 6


def test_pictures_of_different_sizes_are_refused_and_resized_ones_accepted():
    """The message names the keys and says to resize."""
    model = models.conv_net().model
    sizes = [SIZE, SIZE, SIZE + 1, SIZE, SIZE, SIZE]
    with pytest.raises(
        DataError, match=r"collating 6 rows with keys \['image', 'label'\] failed.*resize images to one size"
    ):
        score(Pictures(sizes, RGB, convert=True), model=model)
    assert_scored(Pictures(sizes, RGB, convert=True, resize=True), model=model)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_a_picture_of_another_mode_is_refused_and_a_converted_one_accepted(mode):
    """One gray or transparent picture among RGB ones: the message names the modes; convert("RGB") is the way out."""
    model = models.conv_net().model
    modes = [mode if i == 4 else "RGB" for i in range(6)]
    with pytest.raises(DataError, match=r"convert them to one mode \(RGB\).*\(rows 0-5\)"):
        score(Pictures(LIKE, modes, convert=False), model=model)
    assert_scored(Pictures(LIKE, modes, convert=True), model=model)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_whole_data_set_of_another_mode_is_refused_by_the_models_forward(mode):
    """All gray: the rows collate, and the model says what it cannot take; the shapes are given."""
    model = models.conv_net().model
    channels = {"L": 1, "RGBA": 4}[mode]
    with pytest.raises(ModelError, match=rf"forward failed on rows 0-5 .*\(6, {channels}, 8, 8\).*same channels"):
        score(Pictures(LIKE, [mode] * 6, convert=False), model=model)
    assert_scored(Pictures(LIKE, [mode] * 6, convert=True), model=model)


def test_an_error_in_a_worker_is_told_like_one_in_the_process():
    """With num_workers the class, the rows and the advice of a failed collation are the same."""
    model = models.conv_net().model
    broken = Pictures([SIZE] * 5 + [SIZE + 1], RGB, convert=True)
    with pytest.raises(DataError, match=r"(?s)resize images to one size.*\(rows 0-5\)"):
        score(broken, model=model, num_workers=2)
    assert_scored(Pictures(LIKE, RGB, convert=True), model=model, num_workers=2)


def test_a_batch_is_the_same_in_company_and_alone():
    """Rows come in the order asked for, each with its own label, whatever the batches."""
    reader = BatchReader(mappings(), models.mlp().model)
    (whole,) = reader.read([range(N)])
    parts = list(reader.read([range(1, N, 2), range(0, N, 2), range(5, 6)]))
    for part in parts:
        assert_close(part.inputs["features"], whole.inputs["features"][list(part.rows)], rtol=0, atol=0)
        assert part.labels.tolist() == [LABELS[row] for row in part.rows]


class Unpicklable(nn.Module):
    """A model that no worker can be sent."""

    def __init__(self):
        super().__init__()
        self.head, self.act = nn.Linear(3, 2), lambda x: x

    def forward(self, x, scale):
        return self.act(self.head(x)) * scale


def test_what_a_worker_is_sent_holds_rows_and_collator_but_not_the_model():
    """Workers that are spawned make the same batches; pickling never meets the model."""
    rows = [{"x": [1.0, 2.0, float(k)], "scale": 2.0, "label": k % 2, "name": "n"} for k in range(5)]
    reader = BatchReader(rows, Unpicklable())
    sent = pickle.loads(pickle.dumps(reader._collator))  # noqa: S301 (what multiprocessing does)
    batch, *rest = sent.collate_rows(rows[1:3])
    inputs, labels, _ = reader._collator.split(batch, *rest)
    (expected,) = reader.read([range(1, 3)])
    assert_close((inputs, labels), (expected.inputs, expected.labels), rtol=0, atol=0)
    assert set(inputs) == {"x", "scale"}


@pytest.mark.slow
def test_workers_that_are_spawned_read_the_same_batches(tmp_path):
    """With the start method of macOS and of Python 3.14, for a model that does not pickle."""
    program = textwrap.dedent("""
        import sys
        import torch
        from torch import nn
        from vog_hf.data.batch_reader import BatchReader

        class Unpicklable(nn.Module):
            def __init__(self):
                super().__init__()
                self.act = lambda x: x
            def forward(self, x):
                return self.act(x)

        if __name__ == "__main__":
            torch.multiprocessing.set_start_method(sys.argv[1])
            rows = [{"x": [float(k)], "label": 0} for k in range(4)]
            read = BatchReader(rows, Unpicklable(), num_workers=1).read([range(0, 2), range(2, 4)])
            print([batch.inputs["x"].tolist() for batch in read])
    """)
    path = tmp_path / "program.py"
    path.write_text(program)
    run = subprocess.run([sys.executable, str(path), "forkserver"], capture_output=True, text=True, check=False)
    assert run.stdout.split("\n")[0] == "[[[0.0], [1.0]], [[2.0], [3.0]]]", run.stderr


@pytest.mark.parametrize("first", [True, False])
def test_an_image_file_that_is_cut_off_is_named(tmp_path, first):
    """The row and the file are in the message, whether the row is among the first or in a later batch."""
    from datasets import Dataset, Features, Image
    from PIL import Image as Picture

    files = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, file in enumerate(files):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(file)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    images = Dataset.from_dict({"image": files}, features=Features({"image": Image()}))
    rows = images.with_transform(
        lambda batch: {"x": [np.asarray(image.convert("L")) / 255 for image in batch["image"]]}
    )
    reader = BatchReader(rows, nn.Linear(2, 2), collate_fn=lambda rows: {"input": torch.zeros(len(rows), 2)})
    with pytest.raises(DataError, match=r"row 2 cannot be read \(.*2\.png\): .*restore its file"):
        reader.check_deterministic([range(4)]) if first else list(reader.read([range(2), range(2, 4)]))
