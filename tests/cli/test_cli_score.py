"""`vog-hf score`: scores from the checkpoints of a run, and accepted and refused inputs."""

import dataclasses
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import models
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import trainers
from accelerate import Accelerator
from cli_runs import MODULE, SCRIPT, launch, run, train_on_images, train_on_texts
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets, load_from_disk
from hub_server import ACCEPTED, HubServer
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
    set_seed,
)

from vog_hf import input_gradients, vog
from vog_hf.cli.models import find_snapshots, read_architecture
from vog_hf.cli.preparing import load_processor
from vog_hf.cli.score import memory
from vog_hf.cli.scoring import ScoreRequest, require_free_names
from vog_hf.cli.token_limits import n_positions
from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, ModelError
from vog_hf.scores.dataset_columns import score_columns
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer

TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 100,
}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A training on digits."""
    return train_on_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A training on texts."""
    return train_on_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def score(capfd, tmp_path):
    """Run `vog-hf score` with a temporary output folder; returns its scores or its error."""

    def scored(*arguments, output=None):
        folder = output or tmp_path / "scores"
        done = run(capfd, "score", *arguments, "--output", folder)
        assert "Traceback" not in done.stderr
        if done.code:
            assert done.stdout == ""
            assert done.code == 1
            assert done.stderr.startswith("Error: ")
            return done.stderr
        return VoGScores.load(folder)

    return scored


def assert_same_scores(got, wanted):
    """Raise unless every column agrees to 1e-6, relative to its largest value."""
    assert got.column_names == wanted.column_names
    for name in wanted.column_names:
        values = wanted.column(name).astype(float)
        scale = max(np.abs(values).max(), 1e-30)
        np.testing.assert_allclose(got.column(name), values, rtol=1e-6, atol=1e-6 * scale, err_msg=name)
    assert wanted.column("vog").min() > 0


TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *MODULE[1:]]
ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


# --- the callback's scores --------------------------------------------------------------------------------------------


def test_checkpoints_of_images_give_the_scores_of_the_callback(score, images):
    """Scores from checkpoint-* folders agree with the callback's to 1e-6."""
    got = score(images.folder, "--dataset", images.data)
    assert_same_scores(got, images.scores)
    assert [entry["name"] for entry in got.manifest["snapshots"]] == ["checkpoint-4", "checkpoint-8", "checkpoint-12"]


def test_checkpoints_of_texts_give_the_scores_of_the_callback(score, texts):
    """A csv file with class names as labels gives the callback's scores, with other padding than the Trainer's."""
    got = score(texts.folder, "--dataset", texts.data, "--batch-size", "7")
    assert_same_scores(got, texts.scores)
    assert got.manifest["class_names"] == ["bad", "fair", "good"]
    transform = got.manifest["transform"]
    assert (transform["input_columns"], transform["label_column"], transform["max_length"]) == (["text"], "label", 16)


@pytest.mark.slow
@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["script", "module"])
def test_scoring_in_a_process_of_its_own(tmp_path, images, command):
    """--json prints one document; scores and scored dataset equal the callback's."""
    saved = ["--save-dataset", tmp_path / "d"]
    done = launch(command, "score", images.folder, "-d", images.data, "-o", tmp_path / "s", *saved, "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert done.values["n_rows"] == 64
    assert done.values["hard_tail"]["tail"] in ("high", "low", "both", "unclear")
    assert_same_scores(VoGScores.load(tmp_path / "s"), images.scores)
    scored = load_from_disk(str(tmp_path / "d"))
    np.testing.assert_allclose(scored["vog"][:], images.scores.column("vog"), rtol=1e-6)
    assert isinstance(scored.features["image"], Image)
    assert isinstance(scored.features["label"], ClassLabel)


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path, images):
    """`torchrun -m vog_hf score` on two processes gives one JSON document and the callback's scores."""
    given = [images.folder, "-d", images.data, "-o", tmp_path / "s", "--save-dataset", tmp_path / "d.parquet"]
    done = launch(TWO_PROCESSES, "score", *given, "--json", **ON_CPU)
    assert done.code == 0, done.stderr
    assert done.values["n_rows"] == 64
    scores = VoGScores.load(tmp_path / "s")
    assert scores.manifest["n_processes"] == 2
    assert_same_scores(scores, images.scores)
    assert Dataset.from_parquet(str(tmp_path / "d.parquet"), cache_dir=str(tmp_path)).num_rows == 64


@pytest.mark.slow
def test_two_processes_end_together_where_something_is_wrong(tmp_path, images):
    """Every process reports an error in one line, and none waits for the other."""
    given = [images.folder, "-d", images.data, "--label-column", "digit"]
    done = launch(TWO_PROCESSES, "score", *given, cwd=tmp_path, **ON_CPU)
    assert done.code != 0
    assert "Error on process 0: the dataset has no column 'digit'" in done.stderr
    assert not (tmp_path / "vog-scores").exists()


@pytest.mark.slow
def test_accelerate_launch_runs_the_module(tmp_path, images):
    """`accelerate launch -m vog_hf score ...` works."""
    command = [
        str(Path(sys.executable).with_name("accelerate")),
        "launch",
        "--cpu",
        "--num_processes",
        "1",
        "-m",
        "vog_hf",
    ]
    done = launch(command, "score", images.folder, "-d", images.data, "-o", tmp_path / "s", "--json")
    assert done.code == 0, done.stderr
    assert done.values["n_snapshots"] == 3
    assert_same_scores(VoGScores.load(tmp_path / "s"), images.scores)


@pytest.mark.parametrize("missing", ["", *(pytest.param(text, marks=pytest.mark.slow) for text in (None, "  "))])
def test_a_row_without_a_text_is_named_or_skipped(score, texts, tmp_path, missing):
    """The error names the row and the option that skips it; with the option, it alone has no score."""
    rows = Dataset.from_csv(str(texts.data), cache_dir=str(tmp_path)).to_list()
    rows[33]["text"] = missing
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    error = score(texts.folder, "--dataset", tmp_path / "rows.parquet")
    assert re.search(r"row 33 has (no value|an empty text) in column 'text'", error)
    assert "pass --on-error 'skip'" in error
    got = score(texts.folder, "--dataset", tmp_path / "rows.parquet", "--on-error", "skip").column("vog")
    kept = [row for row in range(40) if row != 33]
    assert np.isnan(got[33])
    np.testing.assert_allclose(got[kept], texts.scores.column("vog")[kept], rtol=1e-4)


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_snapshots_are_put_in_the_order_of_their_steps(tmp_path):
    """Checkpoints are sorted by step, expanded by the shell or by us; others stay in the given order."""
    for step in (200, 1000, 90):
        (tmp_path / f"checkpoint-{step}").mkdir()
    wanted = [str(tmp_path / f"checkpoint-{step}") for step in (90, 200, 1000)]
    assert find_snapshots([str(tmp_path / "checkpoint-*")]) == wanted
    assert find_snapshots(sorted(wanted)) == wanted
    (tmp_path / "last").mkdir()
    assert find_snapshots([str(tmp_path / "last"), wanted[1]]) == [str(tmp_path / "last"), wanted[1]]
    assert find_snapshots([str(tmp_path)]) == str(tmp_path)


def test_numbers_in_other_names_are_numbers(tmp_path, monkeypatch, caplog):
    """A pattern sorts round-2 before round-10, also below the home folder; another given order causes a warning."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for number in (1, 2, 10):
        (tmp_path / f"round-{number}").mkdir()
    wanted = [str(tmp_path / f"round-{number}") for number in (1, 2, 10)]
    assert find_snapshots(["~/round-*"]) == wanted
    assert find_snapshots(wanted) == wanted
    assert not caplog.messages
    assert find_snapshots(sorted(wanted)) == sorted(wanted)
    assert "differs from the order of their numbers" in caplog.text


def test_snapshots_are_named_as_folders_files_patterns_or_a_callbacks_folder(score, tmp_path, images):
    """Snapshots can be folders, files, patterns or the folder of a callback, with the same scores."""
    wanted = images.scores.column("vog")
    folders = sorted(images.folder.glob("checkpoint-*"))
    for step, folder in enumerate(sorted(folders, key=lambda path: int(path.name.split("-")[1]))):
        shutil.copy(folder / "model.safetensors", tmp_path / f"{step}.safetensors")
    for number, given in enumerate(
        [folders, [images.folder / "checkpoint-*"], sorted(tmp_path.glob("*.safetensors")), [images.folder / "_vog"]]
    ):
        got = score(folders[0], *given, "-d", images.data, output=tmp_path / f"out-{number}")
        np.testing.assert_allclose(got.column("vog"), wanted, rtol=1e-6)


def test_folders_that_accelerate_saved_are_snapshots(score, tmp_path, images):
    """A run with its model, and weights in epoch_<n> as `Accelerator.save_state` leaves them, is scored as it is."""
    folders = sorted(images.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(folders[-1], tmp_path / "run")
    for epoch, folder in enumerate(folders):
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(ResNetForImageClassification.from_pretrained(folder))
        accelerator.save_state(str(tmp_path / "run" / f"epoch_{epoch}"))
        accelerator.free_memory()
    got = score(tmp_path / "run", "-d", images.data)
    np.testing.assert_allclose(got.column("vog"), images.scores.column("vog"), rtol=1e-6)
    assert [entry["name"] for entry in got.manifest["snapshots"]] == ["epoch_0", "epoch_1", "epoch_2"]


@pytest.mark.slow
def test_snapshots_of_the_hub(tmp_path, images):
    """Model, processor, snapshots and dataset are read from private Hub repositories with one token."""
    with HubServer() as hub:
        model = hub.repository("someone/model", private=True)
        for epoch, step in enumerate((4, 8, 12)):
            folder = images.folder / f"checkpoint-{step}"
            names = ("config.json", "model.safetensors", "preprocessor_config.json")
            model.commit({name: (folder / name).read_bytes() for name in names}, name=f"epoch-{epoch}")
        load_from_disk(str(images.data)).to_parquet(tmp_path / "digits.parquet")
        data = hub.repository("someone/digits", kind="datasets", private=True)
        data.commit({"data/train-00000-of-00001.parquet": (tmp_path / "digits.parquet").read_bytes()})
        revisions = [argument for epoch in range(3) for argument in ("--snapshot-revision", f"epoch-{epoch}")]
        done = launch(
            SCRIPT, "score", "someone/model", *revisions, "-d", "someone/digits", "-o", tmp_path / "scores", "--json",
            "--token", ACCEPTED, **hub.environment(tmp_path / "home"),
        )  # fmt: skip
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    scores = VoGScores.load(tmp_path / "scores")
    assert_same_scores(scores, images.scores)
    assert scores.manifest["model"]["revision"] == "epoch-2", "the model that was loaded"
    assert scores.manifest["data"]["source"] == {
        "name": "someone/digits", "config": None, "split": None, "revision": None
    }  # fmt: skip


def test_the_model_is_of_the_revision_that_was_loaded():
    """The model's revision is the given one, else that of the last snapshot, else the main branch."""
    given = {field.name: None for field in dataclasses.fields(ScoreRequest)}
    for revision, snapshots, loaded in ((None, [], None), (None, ["a", "b"], "b"), ("c", ["a", "b"], "c")):
        wanted = ScoreRequest(**{**given, "revision": revision, "snapshot_revisions": snapshots})
        assert wanted.model_revision == loaded


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_images_is_scored_by_its_classes(score, tmp_path, images):
    """A folder of images with a folder per class gives the callback's scores."""
    rows = load_from_disk(str(images.data))
    order = []
    for label in range(10):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
        for number in np.flatnonzero(np.asarray(rows["label"]) == label):
            rows[int(number)]["image"].save(tmp_path / "pictures" / str(label) / f"{number:03d}.png")
            order.append(number)
    got = score(images.folder, "-d", tmp_path / "pictures", "--save-dataset", tmp_path / "scored.parquet")
    np.testing.assert_allclose(got.column("vog"), images.scores.column("vog")[order], rtol=1e-6)
    (tmp_path / "pictures").rename(tmp_path / "gone")
    saved = Dataset.from_parquet(str(tmp_path / "scored.parquet"), cache_dir=str(tmp_path))
    assert [row["image"].tobytes() for row in saved] == [rows[int(number)]["image"].tobytes() for number in order]
    np.testing.assert_allclose(saved["vog"][:], got.column("vog"), rtol=1e-6)


@pytest.mark.slow
def test_a_folder_of_images_that_lacks_a_class_is_matched_by_name(score, tmp_path, images):
    """Classes with other numbers as names, in another order and one of them missing, get the callback's scores."""
    shutil.copytree(images.folder, tmp_path / "run")
    for path in (tmp_path / "run").rglob("config.json"):
        names = {number: str(9 - number) for number in range(10)}
        own = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
        path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    rows, order = load_from_disk(str(images.data)), []
    for label in (9, 8, 7, 6, 5, 4, 2, 1, 0):
        (tmp_path / "pictures" / str(9 - label)).mkdir(parents=True)
        for number in np.flatnonzero(np.asarray(rows["label"]) == label):
            rows[int(number)]["image"].save(tmp_path / "pictures" / str(9 - label) / f"{number:03d}.png")
            order.append(number)
    got = score(tmp_path / "run", "-d", tmp_path / "pictures")
    np.testing.assert_allclose(got.column("vog"), images.scores.column("vog")[order], rtol=1e-6)


def test_a_split_and_columns_of_other_names(score, tmp_path, images):
    """A split of a saved DatasetDict with unusual columns is scored by options and keeps its class names."""
    rows = load_from_disk(str(images.data)).rename_columns({"image": "picture", "label": "digit"})
    rows = concatenate_datasets([rows, rows.select_columns("picture").rename_column("picture", "preview")], axis=1)
    DatasetDict({"train": rows.select([0]), "held": rows}).save_to_disk(str(tmp_path / "dict"))
    given = [images.folder, "-d", tmp_path / "dict"]
    assert "several columns of image (picture, preview)" in score(*given, "--split", "held")
    got = score(*given, "--split", "held", "--input-column", "picture")
    np.testing.assert_allclose(got.column("vog"), images.scores.column("vog"), rtol=1e-6)
    np.testing.assert_array_equal(got.column("label"), images.scores.column("label"))
    assert got.manifest["class_names"] == list("0123456789")
    assert got.manifest["config"]["label_column"] == "digit"
    assert "Unknown split \"test\". Should be one of ['train', 'held']; check --config and --split" in score(
        *given, "--split", "test"
    )


def test_rows_without_labels_use_the_prediction(score, tmp_path, images):
    """Rows without labels need --label predicted; --split accepts the slices of `load_dataset`."""
    load_from_disk(str(images.data)).select_columns(["image"]).to_parquet(tmp_path / "rows.parquet")
    given = [images.folder, "-d", tmp_path / "rows.parquet", "--split", "train[:20]"]
    assert "the dataset has no label (columns image); name it with --label-column, or use" in score(*given)
    got = score(*given, "--label", "predicted")
    assert len(got) == 20
    assert (got.column("label") == -1).all()


@pytest.mark.parametrize("name", ["label", "grade"])
@pytest.mark.parametrize("labels", [[2, None, 0], ["good", None, "bad"]], ids=["numbers", "names"])
def test_a_row_without_its_label_uses_the_prediction(score, tmp_path, texts, name, labels):
    """Labels may be missing, numbers or class names, in a column of any name."""
    Dataset.from_dict({"text": ["w4 w5", "w6", "w7 w8 w9"], name: labels}).to_parquet(tmp_path / "rows.parquet")
    got = score(texts.folder, "-d", tmp_path / "rows.parquet", "--input-column", "text", "--label-column", name)
    assert got.column("label").tolist() == [2, -1, 0]
    assert (got.column("vog") > 0).all()


def test_booleans_are_classes_by_name(score, tmp_path, texts):
    """True and false are the model's classes of these names, whatever their numbers; a missing one has no label."""
    shutil.copytree(texts.folder, tmp_path / "run")
    for path in (tmp_path / "run").rglob("config.json"):
        own = {"id2label": {0: "true", 1: "false", 2: "maybe"}, "label2id": {"true": 0, "false": 1, "maybe": 2}}
        path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    rows = Dataset.from_dict({"text": ["w4 w5", "w6", "w7 w8 w9", "w4"], "spam": [True, None, False, True]})
    rows.to_parquet(tmp_path / "rows.parquet")
    got = score(tmp_path / "run", "-d", tmp_path / "rows.parquet", "--label-column", "spam")
    assert got.column("label").tolist() == [0, -1, 1, 0]
    assert got.manifest["class_names"] == ["true", "false", "maybe"]
    said = score(texts.folder, "-d", tmp_path / "rows.parquet", "--label-column", "spam", output=tmp_path / "more")
    assert "label column 'spam' holds True, which is not a class of the model (bad, fair, good)" in said


def test_pairs_of_texts(score, tmp_path, texts):
    """Two text columns become one input, and the manifest records them."""
    rows = Dataset.from_dict({"a": ["w4 w5", "w6"], "b": ["w7", "w8 w9"], "label": [0, 1]})
    rows.to_json(tmp_path / "pairs.jsonl")
    given = [texts.folder, "-d", tmp_path / "pairs.jsonl"]
    assert "several columns of text (a, b); name one of a, b with --input-column" in score(*given)
    got = score(*given, "--input-column", "a", "--input-column", "b", "--max-length", "5")
    assert got.manifest["transform"]["input_columns"] == ["a", "b"]
    assert len(got.heat_map(1)) == 3


def test_sounds_go_through_the_feature_extractor(score, tmp_path):
    """Waveforms of different lengths, padded with a mask, get the same scores as the model's own inputs."""
    case = models.wav2vec2()
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=False, return_attention_mask=True)
    for step, state in enumerate(models.perturbed_states(case.model, 2), 1):
        case.model.save_pretrained(tmp_path / f"checkpoint-{step}")
        save_file(state, tmp_path / f"checkpoint-{step}" / "model.safetensors", metadata={"format": "pt"})
    extractor.save_pretrained(tmp_path / "checkpoint-2")
    waves = [row["input_values"].tolist() for row in case.rows]
    Dataset.from_dict({"wave": waves, "label": case.labels}).save_to_disk(str(tmp_path / "waves"))
    assert "no column of audio; name one of wave with --input-column" in score(tmp_path, "-d", tmp_path / "waves")
    got = score(tmp_path, "-d", tmp_path / "waves", "--input-column", "wave")
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    states = models.perturbed_states(case.model, 2)
    wanted = VoGScorer(case.model).score(rows, zip("ab", states, strict=True), collate_fn=models.collate)
    np.testing.assert_allclose(got.column("vog"), wanted.column("vog"), rtol=1e-5)


def test_checkpoints_in_names_that_memory_does_not_have_are_scored(score, tmp_path, images):
    """Checkpoints of a ViT, which transformers saves under other names, are scored as from_pretrained loads them."""
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=10
    )
    for step in (5, 20, 100):
        set_seed(step)
        ViTForImageClassification(config).save_pretrained(tmp_path / f"checkpoint-{step}")
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path / "checkpoint-100")
    got = score(tmp_path, "-d", images.data)
    assert not isinstance(got, str), got
    rows = load_from_disk(str(images.data))
    pixels = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")["pixel_values"]
    batch = {"pixel_values": pixels, "labels": torch.tensor(rows["label"][:])}
    loaded = [ViTForImageClassification.from_pretrained(tmp_path / f"checkpoint-{step}") for step in (5, 20, 100)]
    gradients = torch.stack([input_gradients(model, batch) for model in loaded])
    np.testing.assert_allclose(got.column("vog"), vog(gradients, reduce_channels=True), rtol=1e-4)


# --- what is computed and kept ----------------------------------------------------------------------------------------


def test_options_reach_the_scores(score, images):
    """The options for targets, label, precision and heat maps reach the manifest and the columns."""
    options = ["--target", "loss", "--target", "logit", "--label", "predicted", "--dtype", "model", "--no-heat-maps"]
    got = score(
        images.folder, "-d", images.data, *options, "--batch-size", "9", "--memory-budget", "1MB", "--workers", "1"
    )
    config = got.manifest["config"]
    assert (config["target"], config["label"], config["dtype"]) == (["loss", "logit"], "predicted", "model")
    assert "vog_logit_percentile" in got.column_names
    assert not got.has_heat_maps
    assert got.manifest["batch_size"] == 9


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("4GiB", 2**32), ("4g", 2**32), ("1.5 MB", 3 * 2**19), ("2kb", 2048)]
)
def test_sizes_are_read_as_people_write_them(text, size):
    """Sizes of memory use powers of 1,024."""
    assert memory(text) == size


def test_a_finished_folder_is_returned_and_another_scoring_refused(capfd, score, tmp_path, images):
    """A second call reads the scores, other options leave the folder unchanged, and `report` finds the dataset."""
    first = score(images.folder, "-d", images.data)
    written = (tmp_path / "scores" / "manifest.json").stat().st_mtime_ns
    second = score(images.folder, "-d", images.data)
    assert (tmp_path / "scores" / "manifest.json").stat().st_mtime_ns == written
    assert second.manifest == first.manifest
    assert "holds scores from a different run (it differs in config)" in score(
        images.folder, "-d", images.data, "--target", "loss"
    )
    assert "choose another --output, or delete the folder" in score(
        images.folder, "-d", images.data, "--target", "loss"
    )
    assert json.loads((tmp_path / "scores" / "source.json").read_text())["name"] == str(images.data)
    done = run(capfd, "report", tmp_path / "scores", "-o", tmp_path / "report.html")
    assert done.code == 0, done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search("ViTImageProcessor(Fast)? of image", page)
    assert str(images.data) not in page


def test_the_scored_data_set_replaces_nothing(score, tmp_path, images):
    """An existing output and a dataset with the same columns are refused before the work."""
    (tmp_path / "scored.parquet").write_text("mine")
    said = score(images.folder, "-d", images.data, "--save-dataset", tmp_path / "scored.parquet")
    assert "already exists; choose another path" in said
    assert (tmp_path / "scored.parquet").read_text() == "mine"
    said = score(images.folder, "-d", images.data, "--save-dataset", tmp_path / "scored.jsonl")
    assert f"--save-dataset takes a *.parquet file or a folder, got {tmp_path}/scored.jsonl; choose {tmp_path}" in said
    stored = {"bytes": None, "path": str(images.folder / "checkpoint-4" / "config.json")}
    theirs = Dataset.from_list([{"image": stored, "label": 0}])
    theirs = theirs.cast_column("image", Image()).with_format("arrow")
    pq.write_table(theirs[:], tmp_path / "theirs.parquet")
    said = score(images.folder, "-d", tmp_path / "theirs.parquet", "--save-dataset", tmp_path / "copy.parquet")
    assert "would be copied into copy.parquet; drop such rows or the column, or save the scores alone" in said
    assert not (tmp_path / "scores").exists()
    got = score(images.folder, "-d", images.data, "--save-dataset", tmp_path / "new.parquet", "--columns", "all")
    scored = Dataset.from_parquet(str(tmp_path / "new.parquet"), cache_dir=str(tmp_path / "cache"))
    assert set(scored.column_names) == {"image", "learning_pattern", *got.column_names}
    said = score(
        images.folder, "-d", tmp_path / "new.parquet", "--save-dataset", tmp_path / "more", output=tmp_path / "other"
    )
    assert "the dataset has ['vog', 'vog_class_normalized', 'vog_percentile'] already; pass --prefix" in said
    assert not (tmp_path / "other").exists()
    again = ["-d", tmp_path / "new.parquet", "--save-dataset", tmp_path / "again.parquet", "--prefix", "run2_"]
    score(images.folder, *again, output=tmp_path / "other")
    scored = Dataset.from_parquet(str(tmp_path / "again.parquet"), cache_dir=str(tmp_path / "cache2"))
    assert score_columns(scored, "run2_")["vog"] == "run2_vog"
    np.testing.assert_array_equal(np.float32(scored["run2_vog"][:]), np.float32(scored["vog"][:]))


def test_a_column_csg_is_refused_only_where_the_loss_is_differentiated():
    """Without the target loss no score has this name, and the column of the user may stay."""
    given = Dataset.from_dict({"csg": [1.0]})
    require_free_names(given, VoGConfig(), "all", "")
    require_free_names(given, VoGConfig(target="loss"), "core", "")
    with pytest.raises(ConfigError, match=r"the dataset has \['csg'\] already"):
        require_free_names(given, VoGConfig(target="loss"), "all", "")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["NOWHERE", "-d", "DATA"], "NOWHERE is not a folder with snapshots; pass folders"),
        (["EMPTY", "-d", "DATA"], "holds no model (no config.json, nor a checkpoint-<step> with one)"),
        (["MODEL", "-d", "DATA"], "holds no snapshots"),
        (["MODEL", "EMPTY/step-*", "-d", "DATA"], "there is no snapshot at"),
        (["MODEL", "MODEL", "-d", "DATA"], "holds no snapshots"),
        (["DANGLING", "-d", "DATA"], "checkpoint-999 holds no config.json; restore it, or remove it from"),
        (["RUN", "-d", "EMPTY"], "cannot be loaded"),
        (["RUN", "-d", "HEADER"], "cannot be loaded: it has no rows"),
        (["RUN", "-d", "DATA", "--split", "x"], "Unknown split \"x\". Should be one of ['train']"),
        (["RUN", "-d", "DATA", "--label-column", "digit"], "has no column 'digit'; it has image, label"),
        (["RUN", "-d", "DATA", "--input-column", "label"], "holds values of type int, expected images"),
        (["RUN", "-d", "DATA", "--input-column", "image", "--input-column", "label"], "takes one column, got"),
        (["RUN", "-d", "DATA", "--max-length", "9"], "--max-length applies to text, and this model takes image"),
        (["RUN", "-d", "DATA", "--processor", "EMPTY"], "has no image processor; pass the folder or Hub id"),
        (["RUN", "-d", "TEXTS"], "no column of image; name one of text with --input-column"),
        (["TEXT_RUN", "-d", "MISNAMED"], "holds 'ugly', which is not a class of the model (bad, fair, good)"),
        (["PICKLED", "RUN", "-d", "DATA"], "cannot be loaded (as safetensors)"),
        (["MODEL", "TARS/*", "-d", "DATA"], "state_dict): ((p.name, torch.load(p, weights_only=True)) for p in paths)"),
        (["PLAIN", "RUN", "-d", "TEXTS"], "is a BertModel; use VoGScorer(model), from Python"),
        (["ADAPTER", "-d", "TEXTS"], "is a PEFT adapter"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, tmp_path, images, texts, arguments, said):  # noqa: PLR0917 (fixtures)
    """Each mistake is one line with problem, value and fix; nothing is written."""
    paths = {
        "RUN": images.folder,
        "TEXT_RUN": texts.folder,
        "DATA": images.data,
        "TEXTS": texts.data,
        "MODEL": tmp_path / "model",
        "NOWHERE": "NOWHERE",
        **{name: tmp_path / name.lower() for name in ("EMPTY", "PICKLED", "PLAIN", "ADAPTER", "TARS")},
        "MISNAMED": tmp_path / "misnamed.csv",
        "HEADER": tmp_path / "header.csv",
        "DANGLING": tmp_path / "dangling",
    }
    for name in ("EMPTY", "PICKLED", "ADAPTER", "TARS"):
        paths[name].mkdir()
    for epoch in (1, 2):
        torch.save({"state_dict": {}}, paths["TARS"] / f"checkpoint-{epoch}.pth.tar")
    shutil.copytree(images.folder / "checkpoint-12", paths["MODEL"])
    shutil.copytree(paths["MODEL"], paths["DANGLING"] / "checkpoint-12")
    (paths["DANGLING"] / "checkpoint-999").symlink_to(tmp_path / "unmounted")
    paths["HEADER"].write_text("text,label\n")
    shutil.copy(paths["MODEL"] / "config.json", paths["PICKLED"])
    (paths["PICKLED"] / "pytorch_model.bin").write_bytes(b"pickle")
    (paths["ADAPTER"] / "adapter_config.json").write_text("{}")
    BertModel(BertConfig(**TINY)).save_pretrained(paths["PLAIN"])
    Dataset.from_dict({"text": ["w4 w5"] * 3, "label": ["bad", "ugly", "good"]}).to_csv(paths["MISNAMED"])
    given = [_named(argument, paths) for argument in arguments]
    assert said in score(*given)
    assert not (tmp_path / "scores" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (RobertaForSequenceClassification(RobertaConfig(**TINY, max_position_embeddings=66, pad_token_id=1)), 64),
        (BertForSequenceClassification(BertConfig(**TINY, max_position_embeddings=66)), 66),
        (DebertaV2ForSequenceClassification(DebertaV2Config(**TINY, **RELATIVE, max_position_embeddings=66)), None),
    ],
    ids=["RoBERTa", "BERT", "relative"],
)
def test_texts_are_cut_at_the_positions_that_a_model_has(model, positions):
    """The number of positions is found for RoBERTa, which starts after its padding; relative ones have no limit."""
    assert n_positions(model.eval(), trainers.tokenizer()) == positions


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["Config", "Model", "ModelForImageClassification", "ImageProcessor", "Tokenizer"])
def test_code_in_a_model_folder_never_runs(tmp_path, monkeypatch, file, kind):
    """Code of a model folder never runs, no question is asked, and a refusal is a VoGError."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run the code"))
    trace = tmp_path / "trace"
    (tmp_path / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Own: ...\n")
    described = {"model_type": "own", "auto_map": {f"Auto{kind}": "own.Own"}, "architectures": [f"Auto{kind}"]}
    described |= {"image_processor_type": "Own", "feature_extractor_type": "Own", "tokenizer_class": "Own"}
    for name in {"config.json", file}:
        (tmp_path / name).write_text(json.dumps({**described, **({"model_type": "bert"} if name != file else {})}))
    for load in (read_architecture, *(partial(load_processor, of, revision=None) for of in ("image", "text", "audio"))):
        with pytest.raises(ModelError):
            load(name=str(tmp_path))
    assert not trace.exists()


def _named(argument, paths):
    """An argument with its placeholder replaced by a path."""
    name, slash, rest = argument.partition("/")
    return f"{paths[name]}{slash}{rest}" if name in paths else argument


@pytest.mark.parametrize(("top", "refused"), [(255, False), (256, True)])
def test_images_of_16_bits_are_not_clipped(top, refused):
    """Images that fit 8 bits are scored; others are refused with their mode and values."""
    import numpy as np
    from PIL import Image

    from vog_hf.cli.model_inputs import _eight_bits
    from vog_hf.errors import DataError

    pixels = np.full((4, 4), 3, dtype=np.uint16)
    pixels[0, 0] = top
    image = Image.fromarray(pixels)
    if refused:
        with pytest.raises(DataError, match=r"mode 'I;16' has values from 3 to 256, expected 0 to 255"):
            _eight_bits(image)
    else:
        assert np.asarray(_eight_bits(image).convert("RGB")).max() == 255
    big_endian = Image.frombytes("I;16B", (4, 4), pixels.astype(">u2").tobytes())
    if refused:
        with pytest.raises(DataError, match="mode 'I;16B' has values from 3 to 256"):
            _eight_bits(big_endian)
    else:
        for each in (image, big_endian):
            np.testing.assert_array_equal(np.asarray(_eight_bits(each).convert("RGB"))[..., 1], pixels)
    gray = Image.new("LA", (2, 2))
    assert _eight_bits(gray) is gray
