"""The published Trainer examples with one line more: scripts of their shape, through their own command line."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from example_scripts import N_EVAL, N_TRAIN, command, make_images, make_texts, run, source
from packaging.version import Version

from vog_hf import VoGScorer
from vog_hf.errors import DataError
from vog_hf.evaluation import RANKING_COLUMNS

pytest.importorskip("torchvision")

KEEP = ("--remove_unused_columns", "False")  # as the published image example is called
BEST = (
    *("--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end"),
    *("--metric_for_best_model", "accuracy"),
)
OWN_PADDING = ("--pad_to_max_length", "False")  # DataCollatorWithPadding, by each batch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data and models of both scripts."""
    folder = tmp_path_factory.mktemp("examples")
    make_images(folder / "image")
    make_texts(folder / "text")
    return folder


@pytest.fixture
def script(data, tmp_path, monkeypatch):
    """A function that runs a script: ``script("image", *options, line=None, folder="run")``."""
    root, level = logging.getLogger(), transformers.utils.logging.get_verbosity()
    handlers = list(root.handlers)

    def run_script(name, *options, line=None, folder="run"):
        return run(monkeypatch, tmp_path / folder, name, *options, data=data / name, line=line)

    yield run_script
    transformers.utils.logging.set_verbosity(level)
    root.handlers = handlers


def check(callback, *, snapshots=8):
    """Every training row has its scores, and the dataset has them as columns."""
    scores = callback.scores
    assert len(scores) == N_TRAIN
    assert len(scores.manifest["snapshots"]) == snapshots
    vog = scores.column("vog")
    assert np.isfinite(vog).all()
    assert (vog > 0).all()
    assert len(np.unique(vog)) > N_TRAIN // 2
    assert {"vog", "vog_percentile", RANKING_COLUMNS[0]} <= set(callback.scored_dataset().column_names)
    return scores


def metrics(trainer, split):
    """What the script saved of a split, without what depends on time."""
    found = json.loads((Path(trainer.args.output_dir) / f"{split}_results.json").read_text())
    return {name: value for name, value in found.items() if not name.endswith(("runtime", "per_second"))}


@pytest.mark.parametrize(("name", "options"), [("image", (*KEEP, *BEST)), ("text", (*OWN_PADDING, *BEST))])
def test_a_script_with_one_line_more(script, name, options):
    """With evaluation and the best model loaded at the end: its rows are scored, all else is as without the line."""
    trainer, callback = script(name, *options)
    scores = check(callback)
    without, nothing = script(name, *options, line="", folder="without")
    assert nothing is None
    assert "vog" not in source(name, line="").split('"""', 2)[2]
    for split in ("train", "eval"):
        assert metrics(trainer, split) == metrics(without, split) != {}
    torch.testing.assert_close(trainer.model.state_dict(), without.model.state_dict(), rtol=0, atol=0)
    steps = [snapshot["step"] for snapshot in scores.manifest["snapshots"]]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 9], "the snapshots of the training, whichever model was the best"
    names = scores.manifest["class_names"]
    assert names == (["digit 0", "digit 1", "digit 2", "digit 3"] if name == "image" else ["0", "1"])
    assert metrics(trainer, "eval")["eval_accuracy"] * N_EVAL % 1 == 0


@pytest.mark.slow
@pytest.mark.timeout(900)  # a process of its own, which imports everything
@pytest.mark.parametrize(("name", "options"), [("image", KEEP), ("text", ())])
def test_a_script_that_runs_to_a_log_file_prints_a_few_lines_of_ours(data, tmp_path, name, options):
    """At most 12 lines, among them the estimate, the headline and where everything is, each once."""
    path, log = tmp_path / "script.py", tmp_path / "log.txt"
    path.write_text(source(name))
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, str(path), *command(tmp_path, name, *options, data=data / name)],
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    lines = re.split("[\r\n]+", log.read_text())
    assert done.returncode == 0, lines[-20:]
    ours = [line for line in lines if re.search(r"VoG|vog-hf|vog_hf\.", line)]
    assert len(ours) <= 12, ours
    assert len(set(ours)) == len(ours)
    folder = tmp_path / "out" / "_vog"
    for wanted in (
        rf"VoG: {N_TRAIN} rows x 8 snapshots, .* of computing; snapshots after steps 1, .*; all in {folder}",
        rf"VoG: scored {N_TRAIN} rows from 8 snapshots",
        r"VoG: .*guide in this run.*",
        rf"VoG: the scores are in {folder}/scores; next: vog-hf review {folder}/scores --dataset YOUR_DATASET",
    ):
        assert len([line for line in ours if re.fullmatch(wanted, line)]) == 1, (wanted, ours)
    assert (folder / "scores" / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["image", "text"])
def test_the_readme_says_which_lines(name):
    """All that a script adds is the import and a line of the README's difference, as they stand there."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```diff\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    shown = [line[1:].partition("  # ")[0].rstrip() for line in block.splitlines() if line.startswith("+")]
    without = source(name, line="").splitlines()
    added = [line for line in source(name).splitlines() if line not in without]
    assert len(added) == 2
    assert set(added) <= set(shown)


@pytest.mark.parametrize("name", ["image", "text"])
def test_a_script_that_only_evaluates_goes_on_as_before(script, name):
    """Without --do_train nothing is scored and nothing is in the way."""
    trainer, callback = script(name, *KEEP[: 2 * (name == "image")], "--do_train", "False")
    assert 0 <= metrics(trainer, "eval")["eval_accuracy"] <= 1
    assert callback is None or not list(Path(trainer.args.output_dir).glob("_vog*"))


@pytest.mark.parametrize("line", ["callbacks=[VoGCallback()],", 'callbacks=[VoGCallback(dataset["train"])],'])
def test_random_transforms_are_refused_with_the_line_to_write(script, line):
    """Before the first step; what the message advises, in the script's own names, is the line that works."""
    with pytest.raises(DataError, match=r"'pixel_values' of rows 0-7 .* is random \(crop, flip") as refused:
        script("image", *KEEP, line=line)
    (advised,) = re.findall(r"VoGCallback\([^;]*\)", str(refused.value))
    names = {"dataset": 'dataset["train"]', "eval_transform": "val_transforms"}
    assert f"callbacks=[{re.sub('|'.join(names), lambda name: names[name[0]], advised)}]" in source("image")


def test_a_transform_whose_column_trainer_strips(script):
    """The published image example needs remove_unused_columns=False: without, the callback says so, not a KeyError."""
    with pytest.raises(DataError, match=r"reading rows .*KeyError: 'image'\. .*remove_unused_columns=False"):
        script("image", line="callbacks=[VoGCallback()],")


def test_texts_that_trainer_cannot_collate(script):
    """With their string column left in, padded texts collate, others do not, with Trainer alone neither."""
    with pytest.raises(DataError, match=r"collating 8 rows .*given texts \('sentence'\).*remove_unused_columns=True"):
        script("text", *OWN_PADDING, *KEEP)
    with pytest.raises(ValueError, match="sentence"):
        script("text", *OWN_PADDING, *KEEP, line="", folder="without")
    _, callback = script("text", *KEEP, folder="padded")
    check(callback)


def test_columns_that_trainer_strips_or_not(script):
    """The same rows, padded alike, have the same scores: the transform or the collator sees what it did before."""
    _, stripped = script("text", folder="stripped")
    _, kept = script("text", *KEEP, folder="kept")
    np.testing.assert_array_equal(check(stripped).column("vog"), check(kept).column("vog"))
    assert stripped.scored_dataset()["sentence"][:] == kept.scored_dataset()["sentence"][:]


def test_a_script_that_is_started_again(script):
    """A finished training has its scores again; an interrupted one continues to those of an uninterrupted one."""
    saving = ("--save_strategy", "steps", "--save_steps", "3")
    trainer, whole = script("text", *OWN_PADDING, *saving)
    expected = check(whole).column("vog")
    _, again = script("text", *OWN_PADDING, *saving)  # finds its last checkpoint
    np.testing.assert_array_equal(check(again).column("vog"), expected)
    if Version(transformers.__version__) < Version("5.6"):
        pytest.skip("this transformers resumes the script with other weights, also without the callback")
    middle = str(Path(trainer.args.output_dir) / "checkpoint-3")
    _, resumed = script("text", *OWN_PADDING, *saving, "--resume_from_checkpoint", middle)
    np.testing.assert_array_equal(check(resumed).column("vog"), expected)


# Options that change how a model is trained, as they are given on the command line.
OPTIONS = {
    "bf16": ["--bf16"],
    "fp16": ["--fp16"],  # a CPU has none: Trainer trains in float32
    "bf16 evaluation": ["--bf16_full_eval", "--eval_strategy", "epoch"],
    "gradient checkpointing": ["--gradient_checkpointing"],
    "re-entrant": ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"use_reentrant": true}'],
    "accumulation": ["--gradient_accumulation_steps", "2"],
    "evaluation": ["--eval_strategy", "steps", "--eval_steps", "2", "--eval_on_start"],
    "best model": list(BEST),
    "best weights": [*BEST, "--save_only_model"],
    "workers": ["--dataloader_num_workers", "2"],
    "label smoothing": ["--label_smoothing_factor", "0.1"],
    "batch size found": ["--auto_find_batch_size"],
    "deterministic": ["--full_determinism"],
    "fewer rows": ["--max_train_samples", "40"],
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["image", "text"])
def test_options_of_a_script(script, name, options):
    """Whatever Trainer is told: rows are scored, and train and evaluation metrics are as without the line."""
    usual = KEEP if name == "image" else OWN_PADDING
    trainer, callback = script(name, *usual, *options)
    scores = callback.scores
    assert len(scores) == (40 if "--max_train_samples" in options else N_TRAIN)
    assert np.isfinite(scores.column("vog")).all()
    assert scores.column("vog").min() > 0
    without, _ = script(name, *usual, *options, line="", folder="without")
    for split in ("train", "eval"):
        assert metrics(trainer, split) == metrics(without, split) != {}
    torch.testing.assert_close(trainer.model.state_dict(), without.model.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "text"])
def test_memory_saved_or_not(script, name):
    """Gradient checkpointing, and half precision where there is none, change no score but by rounding (of padding)."""
    usual = KEEP if name == "image" else OWN_PADDING
    expected = check(script(name, *usual)[1]).column("vog")
    for option in ("--gradient_checkpointing", "--fp16"):
        found = check(script(name, *usual, option, folder=option)[1]).column("vog")
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "text"])
def test_a_compiled_training(script, name):
    """With --torch_compile the scores are those of the snapshots' weights in a model that was never compiled."""
    usual = KEEP if name == "image" else OWN_PADDING
    trainer, callback = script(name, *usual, "--max_steps", "4", "--torch_compile")
    scores = check(callback, snapshots=4)
    output = Path(trainer.args.output_dir)

    def collate(rows):
        kept = ("pixel_values", "input_ids", "attention_mask", "label")
        return trainer.data_collator([{key: row[key] for key in kept if key in row} for row in rows])

    scorer = VoGScorer(type(trainer.model).from_pretrained(output), batch_size=8, progress=False)
    again = scorer.score(callback.dataset, output / "_vog", collate_fn=collate)
    np.testing.assert_allclose(again.column("vog"), scores.column("vog"), rtol=1e-4)


@pytest.mark.slow
def test_a_data_set_dict_and_no_data_set(script):
    """Every split at once; or none, and the rows are those that Trainer trains on."""
    _, callback = script("text", *OWN_PADDING, line="callbacks=[VoGCallback(raw_datasets)],", folder="splits")
    assert {split: len(part) for split, part in callback.scores.items()} == {"train": N_TRAIN, "validation": N_EVAL}
    _, own = script("text", *OWN_PADDING, line="callbacks=[VoGCallback()],")
    np.testing.assert_array_equal(own.scores.column("vog"), callback.scores["train"].column("vog"))
