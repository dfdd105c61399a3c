"""Trainings of detectors as transformers' example script trains them, with one added line."""

import importlib.util
import json
import logging
import sys

import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from detection_cases import collate_images, images
from detectors import yolos
from example_scripts import SCRIPTS
from PIL import Image, ImageDraw
from trainers import arguments
from transformers import Trainer, YolosConfig, YolosForObjectDetection, set_seed

from vog_hf import VoGCallback

pytest.importorskip("torchvision")
from transformers import YolosImageProcessor

N_TRAIN, N_EVAL, SIDE = 24, 4, 32
SHAPES = ["disk", "square"]
ADDED = ("from vog_hf import VoGCallback\n", "callbacks=[VoGCallback(")


def drawn_shapes(n, seed):
    """Pictures of one to three shapes with their boxes in pixels, as datasets with objects on the Hub have them."""
    draw, rows = np.random.default_rng(seed), []
    for i in range(n):
        image, objects = Image.new("RGB", (SIDE, SIDE)), {"bbox": [], "category": [], "area": []}
        for _ in range(1 + i % 3):
            size, kind = draw.integers(8, 14, 2).tolist(), int(draw.integers(2))
            left, top = (int(draw.integers(0, SIDE - side)) for side in size)
            corners = (left, top, left + size[0] - 1, top + size[1] - 1)
            paint = ImageDraw.Draw(image)
            (paint.rectangle if kind else paint.ellipse)(corners, fill="#f80" if kind else "#08f")
            objects["bbox"].append([left, top, *size])
            objects["category"].append(kind)
            objects["area"].append(size[0] * size[1])
        rows.append({"image_id": i, "image": image, "objects": objects})
    lists = {
        "bbox": List(List(Value("float32"))),
        "category": List(ClassLabel(names=SHAPES)),
        "area": List(Value("float32")),
    }
    return Dataset.from_list(
        rows, features=Features({"image_id": Value("int64"), "image": ImageFeature(), "objects": lists})
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data, a small YOLOS and its image processor, as files."""
    folder = tmp_path_factory.mktemp("detection")
    drawn_shapes(N_TRAIN, 0).to_parquet(folder / "train.parquet")
    drawn_shapes(N_EVAL, 1).to_parquet(folder / "validation.parquet")
    set_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = YolosConfig(**size, image_size=[SIDE, SIDE], patch_size=8, num_detection_tokens=6, num_labels=2)
    YolosForObjectDetection(config).save_pretrained(folder / "model")
    processor = YolosImageProcessor(size={"height": SIDE, "width": SIDE}, do_pad=False)
    processor.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def script(data, tmp_path, monkeypatch):
    """A function that runs the script with or without the added line; returns its Trainer and the callback."""
    root, level = logging.getLogger(), transformers.utils.logging.get_verbosity()
    handlers = list(root.handlers)

    def run_script(*, added):
        lines = (SCRIPTS / "object_detection_script.py").read_text().splitlines(keepends=True)
        kept = [line for line in lines if added or not line.strip().startswith(tuple(part.strip() for part in ADDED))]
        assert len(lines) - len(kept) == (0 if added else 2)
        path = tmp_path / f"detection_script_{added}.py"
        path.write_text("".join(kept))
        files = ["--train_file", data / "train.parquet", "--validation_file", data / "validation.parquet"]
        fixed = ["--model_name_or_path", data / "model", "--cache_dir", data / "cache"]
        fixed += ["--output_dir", tmp_path / f"out_{added}", "--use_cpu", "--remove_unused_columns", "False"]
        usual = ["--do_train", "--do_eval", "--num_train_epochs", "3", "--per_device_train_batch_size", "8"]
        usual += ["--report_to", "none", "--disable_tqdm", "True", "--log_level", "error", "--logging_steps", "1"]
        usual += ["--eval_do_concat_batches", "False", "--dataloader_pin_memory", "False", "--learning_rate", "1e-3"]
        monkeypatch.setattr(sys, "argv", [*map(str, [path, *files, *fixed, *usual])])
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        trainer = module.main()
        found = [one for one in trainer.callback_handler.callbacks if isinstance(one, VoGCallback)]
        return trainer, next(iter(found), None)

    yield run_script
    transformers.utils.logging.set_verbosity(level)
    root.handlers = handlers


def test_the_script_with_one_line_more(script):
    """Rows and objects are scored, in the order of the dataset's objects; the training is as without the line."""
    trainer, callback = script(added=True)
    without, nothing = script(added=False)
    assert nothing is None
    torch.testing.assert_close(trainer.model.state_dict(), without.model.state_dict(), rtol=0, atol=0)
    losses = [json.dumps([entry.get("loss") for entry in t.state.log_history]) for t in (trainer, without)]
    assert losses[0] == losses[1]
    scored, scores = callback.scored_dataset(), callback.scores
    assert scores.manifest["task"] == "object_detection"
    assert (scores.column("vog") > 0).all()
    assert scores.manifest["units"]["class_names"] == SHAPES
    for row, objects in enumerate(scored["objects"]):
        assert scores.units.of_row("label_object", row).tolist() == objects["category"]
        for name in ("loss_object", "iou_object", "confidence_object"):
            assert len(scored[name][row]) == len(objects["category"])
    assert ((scores.units.column("iou_object") >= 0) & (scores.units.column("iou_object") <= 1)).all()


def test_scores_while_training_are_those_afterwards(tmp_path):
    """Of rows and of objects, with collect="live" as with the replay of the stored snapshots."""
    found = {}
    for collect in ("replay", "live"):
        vog = VoGCallback(collect=collect, snapshots=[2, 4], batch_size=4, log=False)
        args = arguments(tmp_path / collect, num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-2)
        Trainer(yolos(), args, train_dataset=images(8), data_collator=collate_images, callbacks=[vog]).train()
        found[collect] = vog.scores
    replay, live = found["replay"], found["live"]
    for name in ("vog", "loss", "confidence", "correctness"):
        np.testing.assert_allclose(live.column(name), replay.column(name), rtol=1e-5, err_msg=name)
    assert list(live.units.columns) == list(replay.units.columns)
    for name, values in replay.units.columns.items():
        np.testing.assert_allclose(live.units.column(name), values, rtol=1e-5, atol=1e-6, err_msg=name)
