"""Maps of masks: the loss and the classes at each place, as a loop over pixels gives them, wherever they are kept."""

import functools

import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from reference import _snapshots
from task_cases import N_ROWS, TASK_CASES, _interpolation, segmenter
from wandb_runs import logged_run, offline_client

from vog_hf import VoGConfig, VoGScorer, VoGScores
from vog_hf.errors import ConfigError
from vog_hf.metric.pixel_maps import map_of_row, pixel_observation
from vog_hf.scores.descriptions import heat_note
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.scored_rows import ScoredSplit

SNAPSHOTS = 2
CASE = TASK_CASES["semantic_segmentation"]


@functools.cache
def states():
    """Weights of each snapshot."""
    return models.perturbed_states(segmenter().double(), SNAPSHOTS)


def scorer(batch_size=7, **options):
    """A scorer in float64."""
    named = {name: options.pop(name) for name in ("memory_budget",) if name in options}
    return VoGScorer(segmenter().double(), config=VoGConfig(**options), batch_size=batch_size, progress=False, **named)


def scored(batch_size=7, rows=None, **options):
    """Scores of the rows; options of the scoring or the configuration."""
    where = {name: options.pop(name) for name in ("output_dir",) if name in options}
    named = [(f"epoch-{k}", state) for k, state in enumerate(states())]
    return scorer(batch_size, **options).score(rows or CASE.rows(), named, collate_fn=models.collate, **where)


@functools.cache
def expected_maps():
    """Mean loss, given and predicted class of each pixel of each row, by loops over rows and snapshots."""
    maps = []
    for row in CASE.rows():
        losses, mask = [], row["labels"].numpy()
        for snapshot in _snapshots(segmenter().double(), states()):
            z = CASE._outputs(snapshot, row).logits[0]
            z = torch.einsum("yh,chw,xw->yxc", _interpolation(9, z.shape[1]), z, _interpolation(7, z.shape[2])).numpy()
            at_label = np.take_along_axis(z, np.where(mask == 255, 0, mask)[..., None], -1)[..., 0]
            losses.append(np.where(mask == 255, 0, np.log(np.exp(z).sum(-1)) - at_label))
        maps.append((np.mean(losses, axis=0), np.where(mask == 255, -100, mask), z.argmax(-1)))
    return maps


def assert_same_maps(pixels, expected):
    """Bit for bit."""
    assert_array_equal(pixels.sizes, expected.sizes)
    for name, values in expected.columns.items():
        assert_array_equal(pixels.column(name), values, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 7, N_ROWS])
def test_maps_are_those_of_a_loop_over_pixels(batch_size):
    """The mean loss over the snapshots, 0 where no class is given, and the classes of the last one."""
    scores = scored(batch_size)
    for row, (loss, given, predicted) in enumerate(expected_maps()):
        assert_allclose(scores.loss_map(row), loss, rtol=1e-5, atol=1e-7)
        assert_array_equal(map_of_row(scores.pixels, "label_pixel", row), given)
        assert_array_equal(map_of_row(scores.pixels, "prediction_pixel", row), predicted)


def test_large_masks_are_brought_to_64_places_a_side():
    """The mean loss of the pixels of a place that count, and the classes of the pixel in its middle."""
    generator = torch.Generator().manual_seed(0)
    loss, counts = torch.rand((2, 128, 80), generator=generator), torch.rand((2, 128, 80), generator=generator) < 0.4
    label = torch.randint(5, (2, 128, 80), generator=generator)
    counts[1, 2:4, :3] = False
    found = pixel_observation(loss, label, label + 1, counts)
    assert found["loss"].shape == found["label"].shape == (2, 64, 64)
    for y, x in ((0, 0), (1, 0), (30, 63), (63, 17)):
        left, right = 80 * x // 64, -(-80 * (x + 1) // 64)
        at = (1, slice(2 * y, 2 * y + 2), slice(left, right))
        expected = loss[at][counts[at]].mean() if counts[at].any() else torch.tensor(0.0)
        torch.testing.assert_close(found["loss"][1, y, x], expected)
        middle = (1, 2 * y + 1, int((x + 0.5) * 80 / 64))
        assert found["prediction"][1, y, x] == label[middle] + 1
        assert found["label"][1, y, x] == (label[middle] if counts[middle] else -100)


def test_maps_do_not_depend_on_blocks_live_moments_and_the_folder(tmp_path):
    """Blocks of a few rows, moments that are kept and restored, scores saved and loaded: the same bits."""
    expected = scored().pixels
    assert_same_maps(scored(memory_budget=1, output_dir=tmp_path / "blocks").pixels, expected)
    assert_same_maps(VoGScores.load(tmp_path / "blocks").pixels, expected)
    scored().select([5, 2]).save(tmp_path / "some")
    assert_same_maps(VoGScores.load(tmp_path / "some").pixels, expected.select([5, 2]))
    model = segmenter().double()

    def begun():
        live = VoGScorer(model, batch_size=7, progress=False)
        reader = live.reader(CASE.rows(), collate_fn=models.collate)
        return live.live(reader, live.plan(reader), SNAPSHOTS)

    live = begun()
    model.load_state_dict(states()[0])
    live.update("epoch-0")
    live.save(tmp_path / "live")
    live = begun()
    live.restore(tmp_path / "live")
    model.load_state_dict(states()[1])
    live.update("epoch-1")
    assert_same_maps(live.finish().pixels, expected)


def test_without_maps_the_error_names_the_option(tmp_path):
    """Maps are turned off with heat maps; scores of an earlier version have none."""
    scores = scored(heat_maps=False, output_dir=tmp_path / "scores")
    assert not (tmp_path / "scores" / "pixels.parquet").exists()
    assert scores.units is not None
    with pytest.raises(ConfigError, match=r"no loss map of row 3: only semantic segmentation .* with heat_maps=True"):
        scores.loss_map(3)


def with_pictures():
    """The rows as pictures, with scores whose classes have names."""
    images = [Image.new("RGB", (20, 10), (7 * i % 256, 90, 90)) for i in range(N_ROWS)]
    scores = scored()
    scores.manifest["units"]["class_names"] = ["wall", "floor", "lamp"]
    scores = VoGScores(
        {name: scores.column(name) for name in scores.column_names},
        {name: value for name, value in scores.manifest.items() if name != "data"},
        heat_maps=scores._heat_maps,
        units=scores.units,
        pixels=scores.pixels,
    )
    return Dataset.from_dict({"image": images}), scores


def test_heat_maps_of_rows_with_masks_show_the_loss():
    """In every output, with a note that says so."""
    rows, scores = with_pictures()
    view = RowViews(ScoredSplit("", scores, rows)).view(4)
    assert_allclose(view.heat_map, scores.loss_map(4))
    assert view.heat_picture.size == view.picture.size
    assert heat_note(scores, {"overlay"}).startswith("Where the mean loss over the mask was highest: over an image")
    assert_array_equal(view.masks["given"], expected_maps()[4][1])


def test_weights_and_biases_gets_both_masks_as_overlays(tmp_path):
    """In its own format, in the size of the picture, with names of classes; where none is given, it says so."""
    rows, scores = with_pictures()
    with offline_client(tmp_path) as offline:
        run = logged_run(offline, scores, rows, top_k=4)
    _, files = run.artifact("run_table", "-voghighest-")
    frame = run.table("vog/highest")
    masks = {path: Image.open(file) for path, file in files.items() if "mask/" in path}
    size, expected = frame["image"][0].size, set()
    for row in frame["row"]:
        for mask in expected_maps()[row][1:]:
            known = np.where(mask < 0, 255, mask).astype(np.uint8)
            expected.add(Image.fromarray(known).resize(size, Image.Resampling.NEAREST).tobytes())
    assert {mask.tobytes() for mask in masks.values()} == expected  # the client stores each content once
    assert len(expected) > len(frame)
    names = " ".join(file.read_text() for path, file in files.items() if path.endswith(".json"))
    assert all(name in names for name in ("wall", "floor", "lamp", "not labeled"))
