"""Pictures, texts, heat maps and sheets of rows, whatever kind of dataset they come from."""

import io
import logging
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from matplotlib.figure import Figure
from PIL import Image

from vog_hf.errors import ConfigError, DataError
from vog_hf.evaluation import class_table, error_by_decile
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.scores.formatting import shortened
from vog_hf.scores.pictures import (
    contact_sheet,
    decile_plot,
    overlay,
    row_overlay,
    row_picture,
    row_text,
    show_rows,
    thumbnail,
)
from vog_hf.scores.ranking import most_extreme, ranking_column, row_values
from vog_hf.scores.vog_scores import VoGScores

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def heat_maps(maps):
    """Maps of any shapes as the scorer stores them."""
    scale = np.array([m.max() for m in maps], dtype=np.float32)
    shares = [m.ravel() / max(s, 1e-30) for m, s in zip(maps, scale, strict=True)]
    shapes = np.array([m.shape for m in maps], dtype=np.int32)
    return RaggedMaps(np.concatenate(shares).astype(np.float16), shapes, scale)


def make_scores(n=30, *, names=("cat", "dog", "ship"), maps=None, target=("logit",)):
    """Scores of a classification, random but for the seed; of a second target its VoG, and a companion."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, len(names), n).astype(np.int32)
    columns = {
        "label": label,
        "prediction": np.where(generator.random(n) < 0.3, 0, label).astype(np.int32),
        "vog": generator.random(n).astype(np.float32),
        "vog_class_normalized": generator.normal(size=n).astype(np.float32),
    }
    columns |= {f"vog_{name.rpartition('.')[2]}_late": generator.random(n) for name in target[1:]}
    columns["confidence"] = generator.random(n)
    manifest = {"class_names": list(names), "snapshots": [{}] * 4, "config": {"target": list(target)}}
    return VoGScores(columns, manifest, heat_maps=None if maps is None else heat_maps(maps))


def colored(n, size=(12, 12)):
    """One picture per row; its color tells the row."""
    return [Image.new("RGB", size, (8 * i, 255 - 8 * i, 0)) for i in range(n)]


def png(image):
    """A picture as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


class TestMostExtreme:
    def test_orders_by_value_then_row(self):
        """Most extreme first; equal values in row order in both tails; NaN never before a number."""
        values = np.array([1.0, 3.0, np.nan, 3.0, 1.0, 2.0])
        highest, lowest = most_extreme(VoGScores({"vog": values}, {}), "vog", 5)
        assert highest.tolist() == [1, 3, 5, 0, 4]
        assert lowest.tolist() == [0, 4, 5, 1, 3]

    @pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
    def test_takes_every_number_type(self, dtype):
        """Unsigned counts do not wrap when they are negated."""
        highest, lowest = most_extreme(VoGScores({"forgetting": np.array([0, 4, 2], dtype)}, {}), "forgetting", 2)
        assert (highest.tolist(), lowest.tolist()) == ([1, 2], [0, 2])

    def test_count(self):
        """More than there are gives all; none at all is refused."""
        scores = VoGScores({"vog": np.arange(3.0)}, {})
        assert [len(part) for part in most_extreme(scores, "vog", 9)] == [3, 3]
        with pytest.raises(ConfigError, match="count must be at least 1, got 0"):
            most_extreme(scores, "vog", 0)

    def test_ranking_column(self):
        """Ranked by the normalized score where there is one."""
        assert ranking_column(make_scores()) == "vog_class_normalized"
        assert ranking_column(VoGScores({"vog": np.ones(1)}, {})) == "vog"


class TestRowValues:
    def test_names_and_missing(self):
        """Classes by name; no label and no number are None; a class beyond the names is its number as text."""
        columns = {"label": np.array([1, -1, 5], np.int32), "vog": np.array([0.5, np.nan, np.inf])}
        scores = VoGScores(columns | {"vog_class_normalized": np.zeros(3)}, {"class_names": ["cat", "dog"]})
        assert row_values(scores, "label", [0, 1, 2]) == ["dog", None, "5"]
        assert row_values(scores, "vog", [2, 1, 0]) == [None, None, 0.5]

    def test_numbers_without_names(self):
        """Classes without names stay numbers, None where there is none; negative targets of a regression stay."""
        classes = VoGScores({"label": np.array([1, -1]), "vog_class_normalized": np.zeros(2)}, {"class_names": None})
        assert row_values(classes, "label", np.array([0, 1])) == [1, None]
        regression = VoGScores({"label": np.array([1, -1]), "vog_normalized": np.zeros(2)}, {"class_names": None})
        assert row_values(regression, "label", range(2)) == [1, -1]


class TestRowPicture:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
    def test_every_mode_becomes_rgb(self, mode):
        """A picture of any mode keeps its size and its contrast."""
        if mode in ("I;16", "I", "F"):
            dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
            image = Image.fromarray(np.array([[100, 100, 4000]], dtype=dtype))
        else:
            image = Image.fromarray(np.array([[0, 0, 255]], dtype=np.uint8)).convert(mode)
        assert image.mode == mode
        picture = row_picture({"image": image, "label": 0})
        assert (picture.mode, picture.size) == ("RGB", (3, 1))
        assert [picture.getpixel((x, 0))[0] for x in range(3)] == [0, 0, 255]

    def test_transparent_is_white(self):
        """What is transparent shows the page, not the color that happens to be stored below."""
        picture = row_picture(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))
        palette = Image.new("P", (2, 2), 0)
        palette.info["transparency"] = 0
        assert picture.getpixel((0, 0)) == row_picture(palette).getpixel((1, 1)) == WHITE

    @pytest.mark.parametrize(
        "value",
        [
            torch.zeros(3, 4, 6),
            torch.zeros(1, 4, 6, dtype=torch.bfloat16),
            torch.zeros(4, 6, dtype=torch.uint8),
            np.zeros((4, 6, 3), dtype=np.uint8),
            np.zeros((4, 6)),
            np.zeros((3, 4, 6)).tolist(),
        ],
    )
    def test_arrays(self, value):
        """Channels first or last or none, tensor, array or list: the same size comes out."""
        for row in ({"pixel_values": value, "labels": 1}, (value, 1), value):
            if not isinstance(row, list):
                assert row_picture(row).size == (6, 4)

    def test_normalized_tensor_is_stretched(self):
        """A tensor with a mean taken off shows from its least to its largest value; values in 0..1 as they are."""
        shifted = row_picture(torch.tensor([-2.0, 0.5, 3.0]).expand(3, 1, 3))
        assert [shifted.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
        unit = row_picture(torch.tensor([0.25, 0.5, 0.5]).expand(3, 1, 3))
        assert [unit.getpixel((x, 0))[0] for x in range(3)] == [64, 128, 128]
        assert row_picture(np.full((2, 2), np.nan)).getpixel((0, 0)) == (0, 0, 0)

    @pytest.mark.parametrize(
        "row",
        [
            {"input_ids": torch.arange(9), "labels": 1},
            {"bbox": np.zeros((5, 4))},
            {"image": None},
            {"pixel_values": torch.zeros(2, 5, 7)},
            {"image": Image.new("RGB", (0, 3))},
            (torch.arange(3), 1),
            "text",
            None,
        ],
    )
    def test_no_picture(self, row):
        """Tokens, boxes, two channels, nothing: no picture, no error."""
        assert row_picture(row) is None


class TestRowText:
    @pytest.mark.parametrize(
        ("row", "text"),
        [
            ({"label": "positive", "sentence": "Fine."}, "Fine."),
            ({"title": "A", "text": "B"}, "B"),
            ({"idx": "9", "summary": "S", "label": 1}, "S"),
            ({"sentence1": "A", "sentence2": "B", "idx": 3}, "A\nB"),
            ({"question": "Why?", "context": "So."}, "Why?\nSo."),
            ({"tokens": ["New", "York"], "ner_tags": [1, 2]}, "New York"),
            ({"label": "positive", "input_ids": [1, 2]}, None),
            ({"text": None}, None),
            ("plain", "plain"),
            ((1, 2), None),
        ],
    )
    def test_which_column(self, row, text):
        """Known names first, pairs together, else the first text that is not a label and no number of a row."""
        assert row_text(row) == text


class TestShowRows:
    def test_stored_picture_not_the_transformed(self):
        """The stored picture is shown, the transform is not run and not taken off, other columns are not decoded."""
        features = Features({"label": ClassLabel(names=["a", "b"]), "scan": ImageFeature(), "note": Value("string")})
        dataset = Dataset.from_dict({"label": [0, 1, 0], "scan": colored(3), "note": ["x"] * 3}, features=features)

        def transform(rows):
            pytest.fail("the transform was run")

        dataset.set_transform(transform)
        shown = show_rows(dataset, np.array([2, 0]))
        assert [picture.getpixel((0, 0)) for picture in shown] == [(16, 239, 0), (0, 255, 0)]
        assert dataset.format["type"] == "custom"

    def test_undecoded_and_selected(self):
        """A column that is kept as bytes is decoded here; rows of a selection are its own."""
        dataset = Dataset.from_dict({"image": colored(4)}, features=Features({"image": ImageFeature()}))
        dataset = dataset.cast_column("image", ImageFeature(decode=False)).select([3, 1])
        assert show_rows(dataset, [0])[0].getpixel((0, 0)) == (24, 231, 0)
        assert not dataset.features["image"].decode

    def test_broken_picture(self, caplog):
        """A damaged and a missing picture are None; only the damaged one is worth a line, which names the row."""
        damaged = png(Image.effect_noise((64, 64), 50))[:300]
        stored = [{"bytes": png(Image.new("L", (2, 2))), "path": None}, {"bytes": damaged, "path": None}, None]
        stored.append({"bytes": b"no picture", "path": None})
        dataset = Dataset.from_dict({"image": stored}, features=Features({"image": ImageFeature()}))
        with caplog.at_level(logging.WARNING, logger="vog_hf"):
            shown = show_rows(dataset, range(4))
        assert [picture is None for picture in shown] == [False, True, True, True]
        assert [record.getMessage().split(" is shown")[0] for record in caplog.records] == ["row 1", "row 3"]

    @pytest.mark.parametrize("feature", [Array3D((1, 2, 3), "float32"), List(List(List(Value("float32"))))])
    def test_stored_tensors(self, feature):
        """Rows that hold only what the model eats are shown from the tensor."""
        features = Features({"pixel_values": feature, "text": Value("string")})
        dataset = Dataset.from_dict({"pixel_values": np.zeros((2, 1, 2, 3)), "text": ["a", "b"]}, features=features)
        assert show_rows(dataset, [1])[0].size == (3, 2)

    def test_text(self):
        """Text as it is stored, also when a tokenizer is set as the transform."""
        dataset = Dataset.from_dict({"label": [0, 1], "text": ["good", None]})
        dataset.set_transform(lambda rows: {"input_ids": [[1]] * len(rows["text"])})
        assert show_rows(dataset, [1, 0]) == [None, "good"]

    def test_made_by_the_transform(self):
        """Where nothing that can be shown is stored, the transform's tensor is."""
        dataset = Dataset.from_dict({"seed": [0, 1]})
        assert show_rows(dataset, [0]) == [None]
        dataset.set_transform(lambda rows: {"pixel_values": [torch.zeros(3, 4, 4) for _ in rows["seed"]]})
        assert show_rows(dataset, [0])[0].size == (4, 4)

    def test_torch_data_set(self):
        """Pairs of a torch dataset show their tensor; rows of tokens show nothing."""
        images = torch.utils.data.TensorDataset(torch.rand(3, 3, 4, 5), torch.arange(3))
        tokens = torch.utils.data.TensorDataset(torch.arange(6).reshape(3, 2))
        assert show_rows(images, [2])[0].size == (5, 4)
        assert show_rows(tokens, [0, 1]) == [None, None]


class TestThumbnail:
    @pytest.mark.parametrize(
        ("size", "expected"),
        [
            ((8, 8), (96, 96)),
            ((32, 16), (96, 48)),
            ((3000, 1000), (96, 32)),
            ((1, 5000), (1, 96)),
            ((96, 96), (96, 96)),
        ],
    )
    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
    def test_size(self, size, expected, mode):
        """Tiny and huge pictures end with their longer side as asked, in proportion, never at zero pixels."""
        picture = thumbnail(Image.new(mode, size), side=96)
        assert (picture.size, picture.mode) == (expected, "RGB")

    def test_small_pictures_keep_their_pixels(self):
        """Enlarging makes up no color."""
        small = Image.new("RGB", (8, 8), BLUE)
        small.putpixel((0, 0), RED)
        large = np.asarray(thumbnail(small, side=64))
        assert (large[:8, :8] == RED).all()
        assert (large[8:] == BLUE).all()

    def test_side(self):
        with pytest.raises(ConfigError, match="side must be at least 1 pixel, got 0"):
            thumbnail(Image.new("L", (2, 2)), side=0)


class TestOverlay:
    @pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
    @pytest.mark.parametrize("size", [(40, 20), (200, 100)])
    def test_place(self, corner, size):
        """A hot corner of the map changes that corner of the picture and no other, whatever the sizes."""
        image = Image.new("RGB", size, BLUE)
        heat = np.zeros((10, 20))
        heat[corner] = 3e-9  # far below what float16 could hold: only the share of the largest matters
        changed = np.abs(np.asarray(overlay(image, heat), dtype=int) - BLUE).sum(-1)
        assert changed[corner] > 100
        others = [c for c in ((0, 0), (0, -1), (-1, 0), (-1, -1)) if c != corner]
        assert [changed[c] for c in others] == [0, 0, 0]
        assert changed[size[1] // 2, size[0] // 2] == 0

    @pytest.mark.parametrize("value", [0.0, np.nan])
    def test_nothing_to_show(self, value):
        """A map of zeros (or of nothing finite) leaves the picture, without a division by zero."""
        image = Image.new("RGB", (5, 5), RED)
        with np.errstate(all="raise"):
            shown = overlay(image, np.full((4, 4), value))
        assert np.array_equal(np.asarray(shown), np.asarray(image))

    def test_each_map_by_itself(self):
        """The unit of the map does not show."""
        heat = np.random.default_rng(0).random((6, 6)).astype(np.float32)
        image = Image.new("L", (12, 12), 99)
        assert np.array_equal(np.asarray(overlay(image, heat)), np.asarray(overlay(image, 1024 * heat)))

    def test_refused(self):
        """Maps of texts have one axis."""
        with pytest.raises(ConfigError, match=r"needs a map \[height, width\] and alpha in 0..1, got shape \(4,\)"):
            overlay(Image.new("L", (2, 2)), np.ones(4))
        with pytest.raises(ConfigError, match=r"alpha 1\.5"):
            overlay(Image.new("L", (2, 2)), np.ones((4, 4)), alpha=1.5)

    def test_row_overlay(self):
        """The row's own map; the bare picture where there is none, or none of a picture."""
        hot = np.zeros((2, 4, 4))
        hot[1, 0, 0] = 1.0
        image = Image.new("RGB", (8, 8), BLUE)
        scores = make_scores(2, maps=hot)
        assert row_overlay(scores, 0, image).getpixel((0, 0)) == BLUE
        assert row_overlay(scores, 1, image).getpixel((0, 0)) != BLUE
        assert row_overlay(make_scores(2), 1, image) is image
        assert row_overlay(make_scores(2, maps=np.ones((2, 4))), 1, image) is image


class TestSheets:
    def test_tiles_are_where_they_belong(self):
        """Highest left, lowest right, in order, each picture next to itself with its map."""
        scores = make_scores(30, maps=np.zeros((30, 4, 4)))
        dataset = Dataset.from_dict({"image": colored(30)}, features=Features({"image": ImageFeature()}))
        sheet = contact_sheet(scores, dataset, column="vog", count=4, side=40)
        highest, lowest = most_extreme(scores, "vog", 4)
        seen = np.asarray(sheet)[94]  # a line through the first pictures
        runs = [tuple(int(c) for c in color) for i, color in enumerate(seen) if i == 0 or (color != seen[i - 1]).any()]
        runs = [color for color in runs if color != WHITE]
        assert runs == [(8 * row, 255 - 8 * row, 0) for part in (highest, lowest) for row in part[:2] for _ in range(2)]

    @pytest.mark.parametrize("names", [("$x_$", "$\\frac$", "a\nb"), ("naïve", "猫", "x" * 300), ("_^{", "%s", "{}")])
    def test_names_are_not_markup(self, names):
        """Class names from data are drawn as they are: no mathematics, no error, no warning, no overflow."""
        dataset = Dataset.from_dict({"image": colored(30)}, features=Features({"image": ImageFeature()}))
        plain = contact_sheet(make_scores(30), dataset, count=9)
        assert contact_sheet(make_scores(30, names=names), dataset, count=9).size == plain.size

    def test_captions_show(self):
        """Row, label, prediction and score are written: sheets that differ in a name only, differ."""
        dataset = Dataset.from_dict({"image": colored(30)}, features=Features({"image": ImageFeature()}))
        sheets = [
            np.asarray(contact_sheet(make_scores(30, names=n), dataset)) for n in (("a", "b", "c"), ("a", "b", "d"))
        ]
        assert not np.array_equal(*sheets)

    @pytest.mark.parametrize(
        ("column", "target", "mapped"),
        [
            ("vog", "target logit", "the gradient changed"),
            ("vog_class_normalized", "target logit", "the gradient changed"),
            ("vog_loss_late", "target loss", "the gradient of the logit changed"),
            ("vog_agreed_late", "target models.agreed", "the gradient of the logit changed"),
            ("confidence", None, "the gradient of the logit changed"),
        ],
    )
    def test_subtitle_names_the_target_of_the_column(self, column, target, mapped, monkeypatch):
        """Of several targets the shown column's, for a companion none; and whose gradient the heat maps are of."""
        written = []
        text = Figure.text
        monkeypatch.setattr(Figure, "text", lambda self, x, y, s, **style: written.append(s) or text(self, x, y, s))
        scores = make_scores(30, maps=np.ones((30, 4, 4)), target=("logit", "loss", "models.agreed"))
        contact_sheet(scores, [{"image": image} for image in colored(30)], column=column)
        (subtitle,) = [line for line in written if "30 rows" in line]
        assert [part for part in subtitle.split(" · ") if part.startswith("target")] == [target] * bool(target)
        assert mapped in subtitle

    def test_small_data_broken_rows_and_default_column(self):
        """Fewer rows than asked for, rows without a picture or a label, no classes: still a sheet."""
        dataset = [{"image": image} for image in colored(3)]
        dataset[1]["image"] = None
        columns = {"vog": np.array([1.0, 2.0, 3.0]), "vog_normalized": np.array([-1.0, 0.0, 1.0])}
        assert contact_sheet(VoGScores(columns, {}), dataset, side=8).mode == "RGB"
        columns = {
            "vog_class_normalized": np.zeros(3),
            "label": np.array([-1, 0, 1]),
            "prediction": np.array([1, 0, 0]),
        }
        assert contact_sheet(VoGScores(columns, {"class_names": ["a", "b"]}), dataset, count=1).mode == "RGB"

    def test_no_pictures(self):
        with pytest.raises(
            DataError, match=r"a contact sheet needs pictures, and rows \[.*\] of the dataset have none"
        ):
            contact_sheet(make_scores(2), Dataset.from_dict({"text": ["a", "b"]}))

    def test_decile_plot(self):
        """As wide as asked for; a higher bar is more ink; no error at all is a plot too."""
        none = error_by_decile(np.arange(50), np.zeros(50))
        some = error_by_decile(np.arange(50), np.arange(50) > 30)
        plots = [decile_plot(table, column="$x_$", width=400) for table in (none, some)]
        assert [plot.size for plot in plots] == [(400, 240)] * 2
        assert np.asarray(plots[0]).mean() > np.asarray(plots[1]).mean()

    def test_no_pyplot(self):
        """Nothing here touches the figures of the user's session."""
        contact_sheet(make_scores(3), [{"image": image} for image in colored(3)])
        assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()

    def test_shortened(self):
        """At most a given number of characters, on one line."""
        assert [shortened(text, 5) for text in ("abcde", "abcdef", "a\n b", 123456)] == [
            "abcde",
            "abcd…",
            "a b",
            "1234…",
        ]


def test_class_table():
    """Each class by numpy; rows without a label are a line of their own, which has no error."""
    label = np.array([2, 0, 2, -1, 0, -100, 2])
    vog = np.arange(7.0)
    table = class_table(label, vog, prediction=np.array([2, 2, 0, 0, 0, 1, 0]), confidence=vog / 10)
    expected = pd.DataFrame(
        {
            "class": [-1, 0, 2],
            "rows": [2, 2, 3],
            "vog_mean": [4.0, 2.5, np.mean([0.0, 2.0, 6.0])],
            "vog_std": [1.0, 1.5, np.std([0.0, 2.0, 6.0])],
            "error": [np.nan, 0.5, 2 / 3],
            "confidence": [0.4, 0.25, np.mean([0.0, 0.2, 0.6])],
        }
    )
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert list(class_table(label, vog).columns) == ["class", "rows", "vog_mean", "vog_std"]
    with pytest.raises(ConfigError, match="one value per row of the same rows"):
        class_table(label, vog[:-1])
