"""What the dry run finds on the first rows: what raises before the long work, and what is said to a person."""

import functools
import logging
import random
import re

import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.testing import assert_close
from trainers import tokenizer

from vog_hf.config import VoGConfig
from vog_hf.data import SeededPerRow
from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.scoring.scorer import VoGScorer

N = 53
LABELS = [(i * i + i // 3) % models.CLASSES for i in range(N)]
WIDTHS = models._width()


def states_of(model, n=3):
    """Named snapshots of a model."""
    return [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, n))]


def labeled(rows, labels=None):
    """Rows with labels."""
    return [{**row, "labels": label} for row, label in zip(rows, labels or LABELS, strict=False)]


def planned(model, rows, *, collate_fn=models.collate, batch_size=12, **config):
    """The scorer after its dry run, and the reader."""
    scorer = VoGScorer(model, config=VoGConfig(**config), batch_size=batch_size)
    reader = scorer.reader(rows, collate_fn=collate_fn)
    scorer.plan(reader)
    return scorer, reader


@pytest.fixture
def said(caplog):
    """What the dry run of a model and rows says."""

    def run(model, rows, **options):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="vog_hf"):
            planned(model, rows, **options)
        return [record.getMessage() for record in caplog.records]

    return run


def vog_of(model, rows, batch_size, collate_fn=models.collate):
    """Scores for batches of a size."""
    return VoGScorer(model, batch_size=batch_size).score(rows, states_of(model), collate_fn=collate_fn).column("vog")


# --- rows that do not depend on their batch -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in models.CASES if name != "multi_label_bert"])
@pytest.mark.parametrize("target", ["logit", "loss"])
def test_models_that_treat_each_row_by_itself_are_scored_without_a_word(name, target, said):
    """Padded or not, on any input, by any target: a row alone has the gradient that it has in its batch."""
    case = models.CASES[name]()
    assert said(case.model, labeled(case.rows, case.labels), target=target) == []


@pytest.mark.parametrize("config", [{"label": "predicted"}, {"dtype": "model"}, {"reduce_channels": False}])
def test_no_choice_is_taken_for_a_dependence_on_the_batch(config, said):
    """The class that the model says, low precision and single channels do not differ between a row and its batch."""
    for case in (models.conv_net(), models.bert()):
        case.model.bfloat16()
        assert said(case.model, labeled(case.rows, case.labels), **config) == []


def test_rounding_in_low_precision_is_not_taken_for_it(said):
    """In bfloat16, whose last digit is 0.8 %, a padded row of a deep model differs by about 1 %."""
    from transformers import BertForSequenceClassification

    config = models.bert_config(hidden_size=64, num_hidden_layers=6, intermediate_size=256, max_position_embeddings=64)
    rows = labeled(models.token_rows(2, lengths=tuple(range(5, 53, 3))))
    for seed in (1, 2):
        model = models._made(functools.partial(BertForSequenceClassification, config), seed, noise=0.0).bfloat16()
        assert said(model, rows, dtype="model", batch_size=16) == []


class Masked(nn.Module):
    """A classifier of vectors that leaves out half of each, at random where no ``noise`` is given."""

    def __init__(self, draw):
        super().__init__()
        self.out, self.draw = nn.Linear(8, 3), draw

    def forward(self, features, noise=None):
        noise = self.draw(features.shape) if noise is None else noise
        return self.out((features * (noise > 0)).tanh())


@pytest.mark.parametrize(
    "draw",
    [
        torch.randn,
        lambda shape: torch.from_numpy(np.random.standard_normal(shape)),
        lambda shape: torch.tensor([random.uniform(-1, 1) for _ in range(shape.numel())]).reshape(shape),
    ],
)
@pytest.mark.parametrize("n_rows", [1, 7])
def test_a_random_mask_in_forward_is_reported_with_a_remedy_that_works(draw, n_rows, said):
    """Whatever stream it draws from; a collator with each row's draw fixed makes scores that hold in every batch."""
    model = models._made(functools.partial(Masked, draw), 0)
    rows = labeled(models._float_rows("features", (8,), seed=0, n=n_rows))
    (line,) = said(model, rows)
    assert "draws random numbers in forward in evaluation mode" in line
    assert "noise is a parameter of forward" in line
    assert "collate_fn=SeededPerRow(collator)" in line

    def with_noise(rows):
        batch = models.collate(rows)
        return {**batch, "noise": torch.randn(batch["features"].shape)}

    seeded = SeededPerRow(with_noise)
    assert said(model, rows, collate_fn=seeded) == []
    assert_close(vog_of(model, rows, 2, seeded), vog_of(model, rows, 5, seeded))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["logit", "squares"])
def test_a_masked_autoencoder_is_not_reported_since_its_rows_have_noise(target, said):
    """ViTMAE would draw its mask in forward; each row is given one of its own, for any target."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    decoder = {f"decoder_{name}": size for name, size in small.items()}
    config = ViTMAEConfig(**small, **decoder, image_size=16, patch_size=4)
    model = models._made(lambda: ViTMAEForPreTraining(config), 0, noise=0.05)
    rows = models._float_rows("pixel_values", (3, 16, 16), seed=0, n=5)
    assert said(model, rows, target=squares if target == "squares" else target) == []


def squares(outputs, batch):
    """The mean square of what a model reconstructs, per row."""
    return outputs.logits.square().mean((1, 2))


def levit():
    """The transformers model whose attention biases are cached in evaluation mode."""
    from transformers import LevitConfig, LevitForImageClassificationWithTeacher

    config = LevitConfig(image_size=32, num_labels=models.CLASSES)
    return models._made(lambda: LevitForImageClassificationWithTeacher(config), 0, noise=0.05)


def test_an_operation_that_is_wrong_in_batches_of_one_is_not_taken_for_it(said):
    """A row alone is two copies of it, because torch's BatchNorm2d can have a wrong gradient for one."""
    rows = labeled(models._float_rows("pixel_values", (3, 32, 32), seed=0, n=3))
    assert said(levit(), rows) == []


class Bag(nn.Module):
    """Mean of token embeddings, without id 0 where ``leaves_out``; forward knows no mask."""

    def __init__(self, *, leaves_out=True):
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, 4)
        self.out = nn.Linear(4, 3)
        self.leaves_out = leaves_out

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids):
        counts = (input_ids > 0).unsqueeze(-1).float() if self.leaves_out else torch.ones(*input_ids.shape, 1)
        return self.out(((self.embedding(input_ids) * counts).sum(1) / counts.sum(1)).tanh())


def bag(**options):
    """The module with the same weights each time."""
    return models._made(functools.partial(Bag, **options), 0)


def texts(n=12, *, mask):
    """Rows of 3 to 9 tokens, with or without a mask."""
    rows = labeled(models.token_rows(1, lengths=tuple(3 + 5 * i % 7 for i in range(n))))
    return rows if mask else [{name: row[name] for name in ("input_ids", "labels")} for row in rows]


def test_padding_counts_where_nothing_says_what_is_padding(said):
    """No mask in the batch: both shapes of a row are named, and both remedies, each of which is then silent."""
    (line,) = said(bag(), texts(mask=False))
    assert "row 0 has 'input_ids' (3,) alone and (9,) in its batch, and the batch has no attention_mask that" in line
    assert "Let the collator return attention_mask (forward need not take it), or pad every row to one fixed" in line
    assert said(bag(), texts(mask=True)) == []
    fixed = [{**row, "input_ids": nn.functional.pad(row["input_ids"], (0, 9))[:9]} for row in texts(mask=False)]
    assert said(bag(), fixed) == []


def test_a_mask_that_forward_does_not_take_is_used_and_not_fed():
    """Scores are those of each row by itself, whatever the batch; without the mask they are not."""
    model = bag().double()
    alone = vog_of(model, texts(mask=True), 1)
    np.testing.assert_allclose(vog_of(model, texts(mask=True), 12), alone, rtol=1e-9)
    ratio = vog_of(model, texts(mask=False), 12) / alone
    lengths = np.array([len(row["input_ids"]) for row in texts(mask=True)])
    np.testing.assert_allclose(ratio, lengths / 9, rtol=1e-9)


def test_a_mask_in_fixed_rows_is_used_without_a_collator():
    """Rows that a tokenizer has padded already: the default collator keeps their mask."""
    model = bag().double()
    rows = [
        {name: nn.functional.pad(value, (0, 9))[:9] if name != "labels" else value for name, value in row.items()}
        for row in texts(mask=True)
    ]
    np.testing.assert_allclose(vog_of(model, rows, 5, None), vog_of(model, texts(mask=True), 1), rtol=1e-9)


def test_a_mask_of_another_shape_is_named(said):
    """A mask that fits neither rows nor elements says nothing about padding."""

    def collate(rows):
        batch = models.collate(rows)
        return {**batch, "attention_mask": batch["attention_mask"][:, None, None]}

    (line,) = said(bag(), texts(mask=True), collate_fn=collate)
    assert "no attention_mask of a fitting shape (it has (12, 1, 1, 9)) that says what is padding" in line


def test_padding_of_floating_inputs_counts_without_a_mask_too(said):
    """Waveforms of varying length from a feature extractor that makes no mask; with one, nothing is said."""
    case = models.wav2vec2()
    rows = [{"input_values": row["input_values"]} for row in case.rows]
    (line,) = said(case.model, labeled(rows))
    assert "row 0 has 'input_values' (40,) alone and (53,) in its batch" in line
    assert said(case.model, labeled(case.rows)) == []


def test_a_model_that_does_not_leave_padding_out_is_named(said):
    """The mask is there, but the model's mean is over the padding as well."""
    (line,) = said(bag(leaves_out=False), texts(mask=True))
    assert re.search(r"the gradient of row 0 changes by \d\d\.\d % when it is padded to the length of its batch", line)
    assert "padding='max_length'" in line


class BatchNorm(nn.Module):
    """Normalizes pictures with or without statistics of its own."""

    def __init__(self, *, own_statistics):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.normal = nn.BatchNorm2d(4, track_running_stats=own_statistics)
        self.out = nn.Linear(4, 3)

    def forward(self, image):
        return self.out(self.normal(self.first(image)).tanh().mean((2, 3)))


class WordsFirst(nn.Module):
    """Takes the first axis for the words of a text, or the second."""

    def __init__(self, *, batch_first):
        super().__init__()
        self.layer = nn.GRU(5, 4, batch_first=batch_first)
        self.out = nn.Linear(4, 3)

    def forward(self, words):
        return self.out(self.layer(words)[0].mean(1))


@pytest.mark.parametrize(
    ("kind", "wrong", "right", "rows"),
    [
        (BatchNorm, {"own_statistics": False}, {"own_statistics": True}, ("image", (3, 8, 8))),
        (WordsFirst, {"batch_first": False}, {"batch_first": True}, ("words", (12, 5))),
    ],
)
def test_a_model_that_mixes_rows_is_named(kind, wrong, right, rows, said):
    """Statistics of the batch, or the wrong axis for the rows: without padding the batch itself is to blame."""
    rows = labeled(models._float_rows(*rows, seed=0, n=12))
    (line,) = said(models._made(functools.partial(kind, **wrong), 0), rows)
    assert "the gradient of row 0 changes by" in line
    assert "with the rows that share its batch: in evaluation mode the model takes statistics over the batch" in line
    assert said(models._made(functools.partial(kind, **right), 0), rows) == []


def test_each_thing_is_said_once(caplog):
    """The callback makes a dry run before training and the scorer one before scoring: a person reads one warning."""
    scorer, reader = planned(bag(), texts(mask=False))
    assert len(caplog.records) == 1
    scorer.plan(reader)
    assert len(caplog.records) == 1


def test_a_row_that_cannot_be_alone_is_said(said):
    """A forward that fails on a short row by itself, or a collator that wants different rows, does not stop it."""

    class Long(Bag):
        def forward(self, input_ids):
            if input_ids.shape[1] < 5:
                raise RuntimeError("kernel size can't be greater than the actual input size")
            return super().forward(input_ids)

    (line,) = said(models._made(Long, 0), texts(mask=True))
    assert "row 0 goes through the model in its batch, with 'input_ids' (9,), but not alone, with (3,) (Runt" in line

    def collate(rows):
        if all(torch.equal(row["input_ids"], rows[0]["input_ids"]) for row in rows):
            raise ValueError("contrasts")
        return models.collate(rows)

    (line,) = said(bag(), texts(mask=False), collate_fn=collate)
    assert "whether scores depend on the batch is not known, because a row alone cannot be read: collating 1" in line


# --- how much is read and computed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "n_rows"), [(1, 40), (8, 40), (8, 5), (40, 40)])
def test_no_forward_pass_has_more_rows_than_a_batch(batch_size, n_rows):
    """Rows of the transform check are read, not computed: batch_size is what the device can hold."""
    model = models.mlp().model
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(len(kwargs["features"])), with_kwargs=True)
    rows = labeled(models._float_rows("features", (5,), seed=0, n=n_rows))
    planned(model, rows, batch_size=batch_size)
    assert seen[0] == min(batch_size, n_rows)
    assert max(seen) <= batch_size


def test_a_random_transform_behind_the_first_batch_is_found():
    """Thirty-two rows are read twice, however small the batches are; one behind them is not."""

    def rows(noisy_at):
        columns = {"features": [[float(i)] * 5 for i in range(N)], "labels": LABELS}
        return Dataset.from_dict(columns).with_transform(
            lambda rows: {
                "features": [torch.tensor(x) + (np.random.rand() if x[0] == noisy_at else 0) for x in rows["features"]],
                "labels": rows["labels"],
            }
        )

    with pytest.raises(DataError, match="'features' of rows 28-31 differs between two readings"):
        planned(models.mlp().model, rows(31), batch_size=4)
    planned(models.mlp().model, rows(32), batch_size=4)


def test_rows_of_different_size_can_be_scored_one_at_a_time():
    """Pictures that do not stack are refused in batches and accepted one by one."""
    model = models.conv_net().model
    rows = [{"image": torch.rand(3, 8 + i % 3, 8), "labels": i % 3} for i in range(6)]
    with pytest.raises(DataError, match=r"collating 2 rows .*resize images to one size.*\(rows 0-1\)"):
        vog_of(model, rows, 2, None)
    assert (vog_of(model, rows, 1, None) > 0).all()


# --- transforms and labels ------------------------------------------------------------------------------------------


def words(n=N):
    """Texts of varying length as a dataset of strings."""
    rows = models.token_rows(1, lengths=tuple(3 + 5 * i % 7 for i in range(n)))
    return Dataset.from_dict(
        {"text": [" ".join(f"w{token}" for token in row["input_ids"]) for row in rows], "label": LABELS[:n]}
    )


def test_a_transform_that_pads_its_rows_together_is_read_as_the_loader_reads_it():
    """`with_transform(tokenizer(..., padding=True))` pads what is read at once; the scores are those of a collator."""
    tokenize = tokenizer()

    def padded(rows):
        found = tokenize(rows["text"], padding=True, return_tensors="pt")
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"], "labels": rows["label"]}

    case = models.bert()
    case.model.double()
    expected = vog_of(case.model, labeled(models.token_rows(1, lengths=tuple(3 + 5 * i % 7 for i in range(N)))), 7)
    np.testing.assert_allclose(vog_of(case.model, words().with_transform(padded), 7, None), expected, rtol=1e-9)


def encoded(rows):
    """A collator that makes class numbers of names."""
    return {
        "features": torch.tensor([row["features"] for row in rows]),
        "labels": torch.tensor([("cat", "dog", "frog").index(row["label"]) for row in rows]),
    }


def named_rows():
    """Rows whose labels are names."""
    features = [row["features"].tolist() for row in models._float_rows("features", (5,), seed=7, n=N)]
    return Dataset.from_dict({"features": features, "label": [("cat", "dog", "frog")[y] for y in LABELS]})


def test_names_that_the_collator_encodes_are_labels():
    """Text is refused where no number comes of it: the collator's numbers are what the model was trained on."""
    model = models.mlp().model
    scores = VoGScorer(model, batch_size=7).score(named_rows(), states_of(model), collate_fn=encoded)
    assert scores.column("label").tolist() == LABELS

    def without(rows):
        return {"features": encoded(rows)["features"]}

    for collate in (None, without, lambda rows: {**without(rows), "labels": [row["label"] for row in rows]}):
        with pytest.raises(DataError, match=r"label column 'label' holds text \('(cat|dog|frog)'\), expected class n"):
            planned(model, named_rows(), collate_fn=collate)


def test_a_text_column_that_was_asked_for_is_not_replaced_by_other_labels():
    """`label_column` names the labels: numbers under another name are not them, those under the same name are."""
    model = models.mlp().model
    rows = named_rows().rename_column("label", "kind").add_column("label", [0] * N)

    def collate(rows, name="labels"):
        return {"features": torch.tensor([row["features"] for row in rows]), name: torch.tensor([1 for _ in rows])}

    with pytest.raises(DataError, match=r"label column 'kind' holds text \('cat'\)"):
        planned(model, rows, collate_fn=collate, label_column="kind")
    planned(model, rows, collate_fn=functools.partial(collate, name="kind"), label_column="kind")


@pytest.mark.parametrize("row", [3, 40])
def test_a_label_that_the_transform_mends_is_not_refused(row):
    """The column says 255, the row -100 (no label): what the model sees counts; unmended, the row is named."""
    columns = {
        "features": [row["features"].tolist() for row in models._float_rows("features", (5,), seed=7, n=N)],
        "label": [255 if i in (row, 44) else y for i, y in enumerate(LABELS)],
    }

    def rows(fixed):
        return Dataset.from_dict(columns).with_transform(
            lambda rows: {
                "features": [torch.tensor(x) for x in rows["features"]],
                "label": [-100 if y == 255 and x[0] in fixed else y for x, y in zip(*rows.values(), strict=True)],
            }
        )

    first, second = (columns["features"][i][0] for i in (row, 44))
    model = models.mlp().model
    scores = VoGScorer(model, batch_size=7).score(rows({first, second}), states_of(model))
    assert scores.column("label").tolist() == [-1 if i in (row, 44) else y for i, y in enumerate(LABELS)]
    with pytest.raises(LabelError, match="row 44: label 255 is outside"):
        vog_of(model, rows({first}), 7, None)


def token_data(labels):
    """Rows of token ids with lists of labels, in a table."""
    return Dataset.from_dict(
        {
            "input_ids": [[4 + (i + j) % 20 for j in range(6)] for i in range(len(labels))],
            "attention_mask": [[1] * 6 for _ in labels],
            "labels": labels,
        }
    )


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("gpt2", [-100] * 6, "a row has no label token"),
        ("gpt2", [5, -100, -100, -100, -100, -100], "a row has no label token"),
        ("gpt2", [5, 6, 7, 8, 9, 99], "label token 99 is outside the vocabulary of 29"),
        ("token_bert", [-100, -100, -100, -100, -100, 3], "label token 3 is outside the vocabulary of 3"),
    ],
)
def test_lists_of_labels_are_checked_before_the_work(name, labels, message):
    """A row far behind the first batch, also of a shuffled dataset, by its number; the right list is accepted."""
    case = models.CASES[name]()
    calls = []
    case.model.register_forward_pre_hook(lambda *args: calls.append(1))
    right = [-100, 1, 2, 0, 1, 2]
    for order in (range(N), list(reversed(range(N)))):
        rows = token_data([labels if i == 45 else right for i in order]).select(order)
        with pytest.raises(LabelError, match=f"row 45: {message}"):
            planned(case.model, rows, collate_fn=None)
    assert len(calls) == 2
    planned(case.model, token_data([right] * N), collate_fn=None)


def test_lists_of_labels_that_a_transform_replaces_are_not_checked():
    """Lists that the first batch does not show, and a list that its own row does not, are not the model's labels."""
    case = models.gpt2()
    stored = token_data([[-100] * 6 if i == 45 else [-100, 1, 2, 0, 1, 2] for i in range(N)])

    def fixed(rows, at=-100):
        return {**rows, "labels": [[1] * 6 if max(y) == at else y for y in rows["labels"]]}

    planned(case.model, stored.with_transform(fixed), collate_fn=None)
    planned(case.model, stored.with_transform(functools.partial(fixed, at=2)), collate_fn=None)


# --- rows and models that cannot be scored --------------------------------------------------------------------------


def test_a_row_without_tokens_is_named_by_its_number():
    """In the first batch before the work, behind it in its block; one token is enough."""
    case = models.bert()

    def rows(at, n_tokens):
        lengths = tuple(n_tokens if i == at else 3 + i % 5 for i in range(N))
        return labeled(models.token_rows(2, lengths=lengths))

    with pytest.raises(DataError, match="row 4 has no element that counts: its attention_mask is false everywhere"):
        planned(case.model, rows(4, 0), batch_size=7)
    planned(case.model, rows(45, 0), batch_size=7)
    with pytest.raises(DataError, match="row 45 has no element that counts"):
        vog_of(case.model, rows(45, 0), 7)
    assert (vog_of(case.model, rows(45, 1), 7) > 0).all()


def test_a_model_that_pads_its_tokens_itself_is_refused_before_the_work():
    """Its embeddings are longer than its mask; padded by the collator to what the model wants, it is accepted."""
    from transformers import LongformerConfig, LongformerForSequenceClassification

    config = LongformerConfig(
        **WIDTHS, attention_window=8, vocab_size=models.VOCABULARY, max_position_embeddings=64, pad_token_id=0
    )
    model = models._made(lambda: LongformerForSequenceClassification(config), 0)
    rows = labeled(models.token_rows(0, lengths=(3, 6, 5)), [0, 1, 1])
    with pytest.raises(ModelError, match=r"gave \(3, 8, 8\) for 'input_ids' \(3, 6\)"):
        planned(model, rows)

    def collate(rows):
        batch = models.collate(rows)
        missing = -batch["input_ids"].shape[1] % 8
        return {name: nn.functional.pad(v, (0, missing)) if v.dim() == 2 else v for name, v in batch.items()}

    planned(model, rows, collate_fn=collate)
    np.testing.assert_allclose(vog_of(model, rows, 3, collate), vog_of(model, rows, 1, collate), rtol=1e-4)


# --- multi-label rows without a label -------------------------------------------------------------------------------


def test_multi_label_rows_without_a_positive_label_are_counted(said):
    """Their VoG is exactly 0: said once, of all rows where the column can be read, else of the first batch."""
    case = models.multi_label_bert()
    labels = [[0.0, 0.0, 0.0] if i % 10 == 3 else [1.0, 0.0, 1.0] for i in range(N)]
    table = Dataset.from_dict(
        {"input_ids": [[5, 6, 7]] * N, "attention_mask": [[1] * 3] * N, "labels": labels}
    ).with_format("torch")
    (line,) = said(case.model, table, collate_fn=None)
    assert line.startswith("VoG: 5 of 53 rows have no positive label: their logit is a sum over none")
    (line,) = said(case.model, table, collate_fn=None, target=("probability", "loss", "logit"))
    assert "their probability and logit is a sum over none" in line
    (line,) = said(case.model, list(table), collate_fn=None)
    assert line.startswith("VoG: 1 of the first 12 rows have no positive label")
    assert said(case.model, table, collate_fn=None, target="loss") == []
    assert said(case.model, table.select([i for i in range(N) if i % 10 != 3]), collate_fn=None) == []
    assert np.flatnonzero(vog_of(case.model, list(table), 12, None) == 0).tolist() == [3, 13, 23, 33, 43]
