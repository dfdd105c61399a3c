import gc
import json
import warnings

import models
import numpy as np
import pytest

from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError, DataError, OutputFolderError
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.runtime.files import read_json
from vog_hf.scores.consistency import MAX_CLASSES, class_count
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer


def scored(output_dir=None, *, name="bert", **options):
    """Scores of a small model's rows."""
    case = models.CASES[name]()
    rows = [{**row, "labels": label} for row, label in zip(case.rows, case.labels, strict=True)]
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 3))]
    scorer = VoGScorer(case.model, config=VoGConfig(**options))
    return scorer.score(rows, states, collate_fn=models.collate, output_dir=output_dir)


def assert_same(scores, expected):
    """Everything that scores hold."""
    assert scores.column_names == expected.column_names
    for name in expected.column_names:
        np.testing.assert_array_equal(scores.column(name), expected.column(name))
        assert scores.column(name).dtype == expected.column(name).dtype
    assert scores.trajectory_names == expected.trajectory_names
    for name in expected.trajectory_names:
        np.testing.assert_array_equal(scores.trajectory(name), expected.trajectory(name))
    assert scores.has_heat_maps == expected.has_heat_maps
    for row in range(len(expected) if expected.has_heat_maps else 0):
        np.testing.assert_array_equal(scores.heat_map(row), expected.heat_map(row))
    assert scores.manifest == expected.manifest
    assert scores.identity.columns == expected.identity.columns
    if expected.row_hash is None:
        assert scores.row_hash is None
    else:
        np.testing.assert_array_equal(scores.row_hash, expected.row_hash)


def test_scores_come_back_as_they_were_saved(tmp_path):
    """Columns with their types, trajectories, ragged heat maps, manifest: all of it, also once more."""
    scores = scored(tmp_path / "scored")
    scores.save(tmp_path / "saved")
    assert_same(VoGScores.load(tmp_path / "saved"), scores)
    VoGScores.load(tmp_path / "saved").save(tmp_path / "again")
    assert_same(VoGScores.load(str(tmp_path / "again")), scores)


def test_scores_made_by_hand_come_back_with_their_row_hashes(tmp_path):
    """Every part is optional but the columns."""
    maps = RaggedMaps(
        np.array([1, 0.5, 1], dtype=np.float16), np.array([[2], [1]], dtype=np.int32), np.array([4, 2], np.float32)
    )
    scores = VoGScores(
        {"label": np.array([1, -1], dtype=np.int32), "vog": np.array([0.1, 0.2])},
        {"data": {"columns": {"text": "abc"}}},
        trajectories={"vog": np.zeros((2, 3))},
        heat_maps=maps,
        row_hash=np.array([2**64 - 1, 7], dtype=np.uint64),
    )
    scores.save(tmp_path / "scores")
    loaded = VoGScores.load(tmp_path / "scores")
    assert_same(loaded, scores)
    assert [loaded.heat_map(row).tolist() for row in range(2)] == [[4, 2], [2]]
    bare = VoGScores({"vog": np.array([0.1])}, {})
    bare.save(tmp_path / "bare")
    assert_same(VoGScores.load(tmp_path / "bare"), bare)


def test_trajectories_and_maps_are_memory_mapped():
    """What grows with rows and snapshots stays on disk until it is looked at, and cannot be written to by accident."""
    scores = scored()
    for name in ("vog", "confidence", "prediction"):
        assert isinstance(scores.trajectory(name), np.memmap)
        assert scores.trajectory(name).shape == (5, 3)
        with pytest.raises(ValueError, match="read-only"):
            scores.trajectory(name)[0, 0] = 1
    assert isinstance(scores._heat_maps.values, np.memmap)


def test_the_table_has_a_line_per_row():
    """to_pandas: the row's number first, then every column in reading order."""
    scores = scored()
    table = scores.to_pandas()
    assert list(table.columns) == ["row", *scores.column_names, "learning_pattern"]
    assert scores.column_names[:5] == ["label", "prediction", "prediction_probability", "vog", "vog_class_normalized"]
    assert table["row"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(table["vog"], scores.column("vog"))
    assert len(scores) == 5
    assert "5 rows, columns label, prediction, prediction_probability" in repr(scores)


def test_what_is_not_there_is_refused_by_name():
    """Columns, trajectories and rows: the message lists what there is."""
    scores = scored()
    with pytest.raises(ConfigError, match=r"no column 'vogue'; these scores have label, prediction, prediction_pro"):
        scores.column("vogue")
    with pytest.raises(ConfigError, match="no trajectory 'margin'; these scores have confidence, loss, prediction"):
        scores.trajectory("margin")
    for row in (-1, 5):
        with pytest.raises(ConfigError, match=rf"row must lie in 0\.\.4, got {row}"):
            scores.heat_map(row)
    scores.heat_map(4)
    with pytest.raises(ConfigError, match=r"one value per row each, got lengths \{'vog': 2, 'label': 3\}"):
        VoGScores({"vog": np.zeros(2), "label": np.zeros(3)}, {})
    with pytest.raises(ConfigError, match="one value per row"):
        VoGScores({}, {})


def test_heat_maps_can_be_turned_off(tmp_path):
    """heat_maps=False writes none and says so when one is asked for; all else is there."""
    scores = scored(tmp_path / "scores", heat_maps=False)
    assert not scores.has_heat_maps
    assert not list((tmp_path / "scores").glob("heat-map*"))
    with pytest.raises(ConfigError, match=r"no heat maps \(VoGConfig\(heat_maps=False\)\)"):
        scores.heat_map(0)
    np.testing.assert_array_equal(scores.column("vog"), scored().column("vog"))
    scores.save(tmp_path / "saved")
    assert_same(VoGScores.load(tmp_path / "saved"), scores)


def test_a_folder_that_is_not_empty_is_not_saved_into(tmp_path):
    """Scores and other files are never mixed or replaced; a new or an empty folder is filled."""
    scores = VoGScores({"vog": np.array([0.1])}, {})
    (tmp_path / "empty").mkdir()
    scores.save(tmp_path / "empty")
    with pytest.raises(OutputFolderError, match="empty is not empty; save to a new folder"):
        scores.save(tmp_path / "empty")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / ".gitignore").touch()
    with pytest.raises(OutputFolderError, match="is not empty"):
        scores.save(tmp_path / "foreign")


def test_a_folder_without_finished_scores_is_refused(tmp_path):
    """No folder, a run that was interrupted, a manifest without its table: the message says to score again."""
    with pytest.raises(OutputFolderError, match=r"holds no finished scores \(no manifest.json with scores.parquet\)"):
        VoGScores.load(tmp_path / "nothing")
    VoGScores({"vog": np.array([0.1])}, {}).save(tmp_path / "scores")
    (tmp_path / "scores" / "scores.parquet").rename(tmp_path / "scores" / "elsewhere")
    with pytest.raises(OutputFolderError, match="holds no finished scores"):
        VoGScores.load(tmp_path / "scores")
    (tmp_path / "scores" / "elsewhere").rename(tmp_path / "scores" / "scores.parquet")
    VoGScores.load(tmp_path / "scores")
    (tmp_path / "scores" / "manifest.json").unlink()
    with pytest.raises(OutputFolderError, match="holds no finished scores"):
        VoGScores.load(tmp_path / "scores")


@pytest.mark.parametrize("others", [{}, {"snapshots": {"first": 3}, "class_names": "a"}])
def test_another_format_is_refused(others, tmp_path):
    """Scores of a version that wrote otherwise are not guessed at, nor called damaged where its keys differ."""
    VoGScores({"vog": np.array([0.1])}, {}).save(tmp_path / "scores")
    manifest = read_json(tmp_path / "scores" / "manifest.json")
    (tmp_path / "scores" / "manifest.json").write_text(json.dumps({**manifest, **others, "format": 2}))
    with pytest.raises(OutputFolderError, match="has format 2, this version reads 1; score again"):
        VoGScores.load(tmp_path / "scores")


@pytest.mark.parametrize("name", ["scores.parquet", "trajectory-vog.npy", "heat-map-values.npy", "heat-map-shapes.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut short", "gone"])
def test_damaged_scores_are_not_loaded(name, damage, tmp_path):
    """No byte of a file may change unnoticed; the message names the file and what to do."""
    scored(tmp_path / "scores")
    path = tmp_path / "scores" / name
    content = path.read_bytes()
    damaged = {"flipped": [], "cut short": [content[:-1], content[: len(content) // 2], b""], "gone": [None]}
    for at in range(0, len(content), 97):
        damaged["flipped"].append(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
    for other in damaged[damage]:
        path.unlink()
        if other is not None:
            path.write_bytes(other)
        message = "holds no finished scores" if damage == "gone" and name == "scores.parquet" else f"{name} is "
        with pytest.raises(OutputFolderError, match=rf"{message}.*score (again|into it again)"):
            VoGScores.load(tmp_path / "scores")
        path.write_bytes(content)
    VoGScores.load(tmp_path / "scores")


def test_large_files_are_checked_when_they_are_copied(tmp_path, monkeypatch):
    """Loading does not read what it maps into memory; `save`, which reads it, copies no damage."""
    monkeypatch.setattr("vog_hf.scores.storage.CHECKED_AT_LOAD", 100)
    scored(tmp_path / "scores")
    path = tmp_path / "scores" / "heat-map-values.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    scores = VoGScores.load(tmp_path / "scores")
    with pytest.raises(OutputFolderError, match=r"heat-map-values\.npy is damaged: .*restore it"):
        scores.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    path.write_bytes(content)
    scores.save(tmp_path / "copy")


def test_a_temporary_folder_lives_as_long_as_its_scores():
    """Without output_dir nothing is left behind, quietly, and what was saved elsewhere stays."""
    scores = scored()
    folder, heat_map = scores.folder, scores.heat_map(0)
    trajectory = scores.trajectory("vog")
    assert (folder / "manifest.json").is_file()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del scores
        gc.collect()
    assert not folder.exists()
    assert not [str(warning.message) for warning in warned if str(folder) in str(warning.message)]
    assert np.isfinite(trajectory).all()
    assert heat_map.max() > 0


def test_the_manifest_says_how_the_scores_were_made(tmp_path):
    """Configuration, task, input, windows, snapshots with their digests: what tells this VoG from others."""
    manifest = scored(tmp_path / "scores", target=("logit", "loss")).manifest
    assert manifest["config"] == VoGConfig(target=("logit", "loss")).to_dict()
    assert (manifest["task"], manifest["normalized_over"]) == ("single_label_classification", "class")
    assert manifest["input"] == {
        "name": "input_ids",
        "embedding": True,
        "element_shape": [9, 8],
        "channels_averaged": False,
    }
    names = ["epoch-0", "epoch-1", "epoch-2"]
    assert manifest["windows"] == {"early": names[:2], "late": names[1:], "all": names}
    assert [snapshot["name"] for snapshot in manifest["snapshots"]] == names
    assert len({snapshot["digest"] for snapshot in manifest["snapshots"]}) == 3
    assert manifest["collect"] == "replay"
    stored = read_json(tmp_path / "scores" / "manifest.json")
    files = stored.pop("files")
    assert stored == manifest
    assert files.keys() == {path.name for path in (tmp_path / "scores").iterdir()} - {
        ".lock",
        "plan.json",
        "manifest.json",
    }
    assert scored(name="conv_net").manifest["input"]["channels_averaged"] is True


FOREIGN_MANIFESTS = {
    "a list": ([], "the manifest must be an object"),
    "names by number": ({"class_names": {"0": "a"}}, "'class_names' must be a list"),
    "a snapshot without a name": ({"snapshots": [{"step": 2}]}, r"'snapshots'\[0\] has no 'name'"),
    "a configuration in words": ({"config": "default"}, "'config' must be an object, got 'default'"),
    "digests in a list": ({"data": {"columns": ["x"]}}, "'columns' must be an object"),
    "a size in words": ({"files": {"scores.parquet": {"bytes": "9", "crc32": "0"}}}, "'bytes' must be a whole number"),
    "a label without a class": ({"class_names": ["only"]}, "row 1 has the label 1, and there are at most 1 classes"),
    "one snapshot": ({"snapshots": [{"name": "x"}]}, r"trajectory 'vog' has the shape \[2, 3\], expected \[2, 1\]"),
}


def classified():
    """Scores of two rows and three snapshots."""
    columns = {"label": np.array([0, 1], np.int32), "vog": np.array([0.1, 0.2])}
    return VoGScores(columns, {"class_names": ["a", "b"]}, trajectories={"vog": np.ones((2, 3))})


@pytest.mark.parametrize("case", FOREIGN_MANIFESTS)
def test_a_manifest_of_another_shape_is_refused(tmp_path, case):
    """Whoever wrote it: loading names the key and what is there, so that nothing later trips over it."""
    edit, message = FOREIGN_MANIFESTS[case]
    classified().save(tmp_path / "scores")
    assert VoGScores.load(tmp_path / "scores").trajectory("vog").shape == (2, 3)
    path = tmp_path / "scores" / "manifest.json"
    manifest = edit if isinstance(edit, list) else {**read_json(path), "files": {}, **edit}
    path.write_text(json.dumps(manifest))
    with pytest.raises(OutputFolderError, match=message):
        VoGScores.load(tmp_path / "scores")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no array", "three rows", "texts"])
def test_arrays_of_another_kind_are_refused(tmp_path, content):
    """Damaged files, and those of other rows or of no numbers, are named when the scores are loaded."""
    classified().save(tmp_path / "scores")
    path = tmp_path / "scores" / "manifest.json"
    path.write_text(json.dumps({**read_json(path), "files": {}}))
    array = tmp_path / "scores" / "trajectory-vog.npy"
    if isinstance(content, bytes):
        array.write_bytes(content)
    else:
        np.save(array, np.ones((3, 3)) if content == "three rows" else np.full((2, 3), "x"))
    with pytest.raises(OutputFolderError, match="trajectory"):
        VoGScores.load(tmp_path / "scores")


def test_a_label_does_not_decide_how_many_classes_there_are():
    """A list of two thousand million names is never made; the highest label that is allowed is."""
    columns = {"vog": np.ones(2), "label": np.array([0, 2_000_000_000])}
    with pytest.raises(DataError, match=r"row 1 has the label 2,000,000,000, and there are at most 100,000 classes"):
        class_count(VoGScores(columns, {}))
    columns["label"] = np.array([0, MAX_CLASSES - 1])
    assert class_count(VoGScores(columns, {})) == MAX_CLASSES
