"""Units of a row: the labeled tokens of a text have scores of their own, the same however rows are batched."""

import copy
import functools
import logging

import models
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from reference import reference_dynamics, reference_gradients, reference_logits
from trainers import WeightsByStep, arguments
from transformers import Trainer

from vog_hf import VoGCallback, VoGConfig, VoGScorer, VoGScores
from vog_hf.errors import ConfigError, LabelError, OutputFolderError
from vog_hf.metric.row_units import RowUnits
from vog_hf.runtime.files import read_json, write_json
from vog_hf.scores.storage import FILES, MANIFEST_NAME, write_manifest

N = 53
SNAPSHOTS = 3
TARGETS = ("logit", "loss")
BOTH = VoGConfig(target=TARGETS)


def tagger():
    """A token classifier in float64."""
    return models.token_bert().model.double()


@functools.cache
def tagged_rows(n=N):
    """Texts of 1 to 11 tokens; the label of some is -100, as that of special tokens and second parts of words."""
    rows = models.token_rows(7, lengths=tuple(1 + 7 * i % 11 for i in range(n)))
    for i, row in enumerate(rows):
        labels = [-100 if (i + j) % 3 == 1 else (i * j + j) % models.CLASSES for j in range(len(row["input_ids"]))]
        row["labels"] = torch.tensor(labels if set(labels) != {-100} else [i % models.CLASSES])
    return rows


@functools.cache
def states():
    """Weights of each snapshot."""
    return models.perturbed_states(tagger(), SNAPSHOTS)


def scored(batch_size, *, rows=None, model=None, **options):
    """Scores of every target; options of the scoring."""
    scorer_options = {name: options.pop(name) for name in ("memory_budget", "on_error") if name in options}
    config = options.pop("config", BOTH)
    scorer = VoGScorer(model or tagger(), config=config, batch_size=batch_size, progress=False, **scorer_options)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states())]
    return scorer.score(rows or tagged_rows(), named, collate_fn=models.collate, **options)


@functools.cache
def expected_units():
    """Every column of units by a loop: one row, one snapshot, autograd; then one token."""
    rows = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in tagged_rows()]
    labels = [row["labels"] for row in tagged_rows()]
    places = [[j for j in range(len(label)) if label[j] != -100] for label in labels]
    columns = {"position_token": [j for of_row in places for j in of_row]}
    columns["label_token"] = [int(label[j]) for label, of_row in zip(labels, places, strict=True) for j in of_row]
    for target, name in zip(TARGETS, ("vog_token", "vog_loss_token"), strict=True):
        gradients = reference_gradients(tagger(), states(), rows, target, labels, task="token_prediction")
        columns[name] = [
            np.sqrt(np.mean((of_row[:, j] - of_row[:, j].mean(0)) ** 2, axis=0)).mean()
            for of_row, at in zip(gradients, places, strict=True)
            for j in at
        ]
    logits = reference_logits(tagger(), states(), rows)
    of_units = [of_row[:, j] for of_row, at in zip(logits, places, strict=True) for j in at]
    dynamics = reference_dynamics(of_units, columns["label_token"])
    columns |= {f"{name}_token": values for name, values in dynamics.items()}
    columns["prediction_token"] = [int(of_unit[-1].argmax()) for of_unit in of_units]
    return [len(at) for at in places], {name: np.array(values) for name, values in columns.items()}


def assert_same_units(units, expected):
    """Every column, bit for bit."""
    assert_array_equal(units.sizes, expected.sizes)
    assert list(units.columns) == list(expected.columns)
    for name, values in expected.columns.items():
        assert_array_equal(units.columns[name], values, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 7, N])
def test_units_are_those_of_a_loop_over_rows_snapshots_and_tokens(batch_size):
    """VoG of every target, loss, confidence and the others per token, in batches of 1, 7 and all rows, padded."""
    scores = scored(batch_size)
    sizes, columns = expected_units()
    assert scores.manifest["task"] == "token_classification"
    assert scores.manifest["units"] == {"of": "tokens", "class_names": None, "columns": list(scores.units.columns)}
    assert_array_equal(scores.units.sizes, sizes)
    assert set(scores.units.columns) == set(columns)
    for name, values in columns.items():
        assert np.ptp(values) > 0
        assert_allclose(scores.units.column(name), values, rtol=1e-6, atol=1e-6 * np.abs(values).mean(), err_msg=name)


def test_units_fit_the_scores_of_their_rows():
    """A row's loss, confidence and correctness are the means of its units; its VoG is the mean of its heat map."""
    scores = scored(7)
    for name in ("loss", "confidence", "correctness"):
        means = [scores.units.of_row(f"{name}_token", row).mean() for row in range(N)]
        assert_allclose(scores.column(name), means, rtol=1e-9)
    for row in range(N):
        heat, places = scores.heat_map(row), scores.units.of_row("position_token", row)
        assert len(heat) == len(tagged_rows()[row]["input_ids"])
        assert_allclose(scores.units.of_row("vog_token", row), heat[places], rtol=2e-3)
        assert_allclose(scores.column("vog")[row], heat.mean(), rtol=2e-3)


def padded_left(rows):
    """Rows as a batch, padded on the left."""
    turned = models.collate([{name: value.flip(0) for name, value in row.items()} for row in rows])
    return {name: value.flip(1) for name, value in turned.items()}


def test_places_are_counted_without_padding():
    """On the left, too: where a token is in its row does not depend on the batch."""
    named = [(f"epoch-{k}", state) for k, state in enumerate(states())]
    scorer = VoGScorer(tagger(), batch_size=7, progress=False)
    units = scorer.score(tagged_rows(), named, collate_fn=padded_left).units
    for name in ("position_token", "label_token"):
        assert_array_equal(units.column(name), expected_units()[1][name])


def test_a_row_without_a_labeled_token_is_named_or_skipped():
    """It has no target: the error names it, and on_error="skip" leaves it without units."""
    rows = [dict(row) for row in tagged_rows()]
    rows[20]["labels"] = torch.full_like(rows[20]["labels"], -100)
    with pytest.raises(LabelError, match=r"row 20: a row has no label token \(all are -100\)"):
        scored(7, rows=rows)
    scores, expected = scored(7, rows=rows, on_error="skip"), scored(7)
    assert np.isnan(scores.column("vog")[20])
    assert scores.units.sizes[20] == 0
    assert (scores.units.sizes > 0).sum() == N - 1
    others = [row for row in range(N) if row != 20]
    for name in scores.units.columns:
        values, wanted = scores.units.select(others).column(name), expected.units.select(others).column(name)
        assert_allclose(values, wanted, rtol=1e-6, atol=1e-9)


def test_units_do_not_depend_on_blocks_interruption_and_the_folder(tmp_path):
    """Blocks of a few rows, a run that continues after some of them, and scores saved and loaded: the same bits."""
    expected = scored(7)
    assert_same_units(scored(7, memory_budget=1, output_dir=tmp_path / "whole").units, expected.units)

    def stop(folder):
        if len(list((folder / "blocks").glob("*.safetensors"))) > 2:
            raise KeyboardInterrupt

    class Stopping(list):
        def __getitem__(self, row):
            if row == 30:
                stop(tmp_path / "resumed")
            return super().__getitem__(row)

    with pytest.raises(KeyboardInterrupt):
        scored(7, rows=Stopping(tagged_rows()), memory_budget=1, output_dir=tmp_path / "resumed")
    scores = scored(7, memory_budget=1, output_dir=tmp_path / "resumed")
    assert_same_units(scores.units, expected.units)
    assert not list((tmp_path / "resumed").glob(".units*"))
    assert_same_units(VoGScores.load(tmp_path / "resumed").units, expected.units)
    scores.select([5, 2, 5]).save(tmp_path / "some")
    assert_same_units(VoGScores.load(tmp_path / "some").units, expected.units.select([5, 2, 5]))
    assert_array_equal(
        VoGScores.load(tmp_path / "some").units.of_row("loss_token", 1), expected.units.of_row("loss_token", 2)
    )


def without_units(path):
    """A folder of scores as an earlier version wrote it."""
    (path / "units.parquet").unlink()
    manifest = read_json(path / MANIFEST_NAME)
    write_manifest(path, {name: value for name, value in manifest.items() if name not in (FILES, "units")})


def test_scores_of_an_earlier_version_load_without_units(tmp_path):
    """All else is there; and scores without heat maps have units."""
    scores = scored(7, output_dir=tmp_path / "scores", config=VoGConfig(heat_maps=False))
    assert_array_equal(scores.units.sizes, expected_units()[0])
    without_units(tmp_path / "scores")
    old = VoGScores.load(tmp_path / "scores")
    assert old.units is None
    assert_array_equal(old.column("vog"), scores.column("vog"))


def test_a_damaged_file_of_units_is_named(tmp_path):
    """Another content by its checksum, another number of rows when it is read."""
    scored(7, output_dir=tmp_path / "scores").select([0, 1]).save(tmp_path / "two")
    path = tmp_path / "scores" / "units.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OutputFolderError, match=r"units\.parquet is damaged"):
        VoGScores.load(tmp_path / "scores")
    (tmp_path / "two" / "units.parquet").replace(path)
    manifest = read_json(tmp_path / "scores" / MANIFEST_NAME)
    manifest["files"].pop("units.parquet")
    write_json(tmp_path / "scores" / MANIFEST_NAME, manifest)
    with pytest.raises(OutputFolderError, match="has the units of 2 rows, and the scores have 53 rows"):
        _ = VoGScores.load(tmp_path / "scores").units


def start_live(model, planned=SNAPSHOTS):
    """A live scoring of the rows."""
    scorer = VoGScorer(model, config=BOTH, batch_size=7, progress=False)
    reader = scorer.reader(tagged_rows(), collate_fn=models.collate)
    return scorer.live(reader, scorer.plan(reader), planned)


def test_live_equals_replay_and_continues_from_a_checkpoint(tmp_path):
    """Units of moments that are kept while a model trains are those of a replay, bit for bit, also when resumed."""
    expected, model = scored(7), copy.deepcopy(tagger())
    live = start_live(model)
    for k, state in enumerate(states()):
        if k == 2:
            live.save(tmp_path / "live")
            live = start_live(model)
            live.restore(tmp_path / "live")
        model.load_state_dict(state)
        live.update(f"epoch-{k}")
        if k:
            assert live.ranking().units is None
    assert_same_units(live.finish().units, expected.units)


def test_blocks_of_an_earlier_version_leave_units_out(tmp_path, monkeypatch, caplog):
    """A folder that an earlier version began is finished without units, and a line of the log says so."""
    folder = tmp_path / "scores"

    class Stopping(list):
        def __getitem__(self, row):
            if row == 30 and len(list((folder / "blocks").glob("*.safetensors"))) > 2:
                raise KeyboardInterrupt
            return super().__getitem__(row)

    monkeypatch.setattr("vog_hf.scoring.block_folder.stored_units", lambda *_: {})
    with pytest.raises(KeyboardInterrupt):
        scored(7, rows=Stopping(tagged_rows()), memory_budget=1, output_dir=folder)
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        scores = scored(7, memory_budget=1, output_dir=folder)
    assert "the scores of units left out, because an earlier version" in caplog.text
    assert scores.units is None
    assert "units" not in scores.manifest
    assert not list(folder.glob("*units*"))
    assert_allclose(scores.column("vog"), scored(7).column("vog"), rtol=1e-12)


def test_other_tasks_have_no_units_and_say_so():
    """Text classification has none; a token classifier can be scored without, by the name of another task."""
    case = models.bert()
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    named = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 2))]
    scores = VoGScorer(case.model, progress=False).score(rows, named, collate_fn=models.collate)
    assert scores.units is None
    assert "units" not in scores.manifest
    assert scored(7, config=VoGConfig(task="token_prediction")).units is None
    with pytest.raises(ConfigError, match=r"there is no column 'margin' of units; these have label_token, "):
        scored(7).units.column("margin")


def test_units_are_cut_out_and_ranked_by_row():
    """Selections, rows without units, the most extreme unit of each row, and a table with one line per unit."""
    units = RowUnits(np.array([2, 0, 3]), {"loss_token": np.array([1.0, 4.0, 2.0, np.nan, 3.0])})
    assert units.select([2, 1, 0, -1]).column("loss_token")[[0, 2, 3, 4]].tolist() == [2.0, 3.0, 1.0, 4.0]
    assert units.select([2, 1, 0]).sizes.tolist() == [3, 0, 2]
    assert units.without([0]).sizes.tolist() == [0, 0, 3]
    assert_array_equal(units.without([0]).column("loss_token"), [2.0, np.nan, 3.0])
    assert_array_equal(units.extreme("loss_token"), [4.0, np.nan, 3.0])
    assert_array_equal(units.extreme("loss_token", highest=False), [1.0, np.nan, 2.0])
    assert (units.unit, units.named("vog_loss")) == ("token", "vog_loss_token")
    table = units.to_pandas()
    assert table[["row", "unit"]].to_numpy().tolist() == [[0, 0], [0, 1], [2, 0], [2, 1], [2, 2]]
    assert list(table) == ["row", "unit", "loss_token"]


@pytest.mark.parametrize("collect", ["replay", "live"])
def test_a_training_of_a_tagger_gives_units(collect, tmp_path):
    """With one line added to Trainer, as the loop over its weights has them."""
    rows, steps, model = tagged_rows()[:6], WeightsByStep(), models.token_bert().model
    args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=3, learning_rate=1e-2)
    vog = VoGCallback(collect=collect, snapshots=[2, 4], batch_size=4, log=False)
    Trainer(model, args, train_dataset=rows, data_collator=models.collate, callbacks=[vog, steps]).train()
    inputs = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    labels = [row["labels"] for row in rows]
    logits = reference_logits(models.token_bert().model, [steps.weights[2], steps.weights[4]], inputs)
    of_units = [z[:, j] for z, label in zip(logits, labels, strict=True) for j in range(len(label)) if label[j] != -100]
    given = torch.cat(labels)
    expected = reference_dynamics(of_units, given[given != -100].tolist())
    assert_allclose(vog.scores.units.column("loss_token"), expected["loss"], rtol=1e-4)
    assert_allclose(vog.scores.units.column("confidence_token"), expected["confidence"], rtol=1e-4)
