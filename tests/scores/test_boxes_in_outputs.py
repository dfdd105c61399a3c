"""Objects in outputs: boxes over pictures, lists next to the dataset's categories, and orders of the review queue."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from html_page import read_page
from PIL import Image
from wandb_runs import logged_run, offline_client

from vog_hf import VoGScores, add_vog_columns, write_report
from vog_hf.metric.row_units import RowUnits
from vog_hf.review import Filter, Queue
from vog_hf.review.html import PageMaker
from vog_hf.review.row_records import RowRecords
from vog_hf.scores.dataset_columns import scores_from_columns
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.pictures.boxes import EDGE, GIVEN_COLOR, PREDICTED_COLOR, Box, with_boxes
from vog_hf.scores.scored_rows import ScoredSplit

NAMES = ["cat", "dog"]
SIZES = [2, 1, 0, 3]


def objects():
    """Six objects of four rows, of which the third was skipped."""
    n = sum(SIZES)
    corner = np.linspace(0.1, 0.4, n, dtype=np.float32)
    values = {
        "label_object": np.array([0, 1, 1, 0, 0, 1], dtype=np.int32),
        "position_object": np.array([0, 1, 0, 0, 1, 2], dtype=np.int32),
        "loss_object": np.array([0.5, 3.0, 1.0, 0.25, 4.0, 0.125], dtype=np.float32),
        "iou_object": np.array([0.9, 0.2, 0.5, 0.95, 0.8, 0.05], dtype=np.float32),
        "confidence_object": np.linspace(0.2, 0.8, n, dtype=np.float32),
        "prediction_object": np.array([0, 0, 1, 0, 1, 1], dtype=np.int32),
    }
    boxes = {"left": corner, "top": corner, "width": np.full(n, 0.5), "height": np.full(n, 0.25)}
    values |= {f"{name}_object": np.float32(v) for name, v in boxes.items()}
    values |= {f"predicted_{name}_object": np.float32(v + 0.05) for name, v in boxes.items()}
    values["predicted_left_object"][0] = -0.125  # beyond the picture
    return RowUnits(np.array(SIZES, dtype=np.int32), values)


@pytest.fixture
def split():
    """Scores with objects, and their rows as a dataset has them."""
    n = len(SIZES)
    rows = Dataset.from_dict(
        {
            "image": [Image.new("RGB", (400, 300), "#224466") for _ in SIZES],
            "objects": [
                {"bbox": [[0.0, 0.0, 9.0, 9.0]] * len(labels), "category": labels}
                for labels in ([0, 1], [1], [1, 0], [0, 0, 1])
            ],
        },
        features=Features(
            {
                "image": ImageFeature(),
                "objects": {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=NAMES))},
            }
        ),
    )
    columns = {"vog": np.linspace(1, 2, n, dtype=np.float32), "vog_normalized": np.linspace(-1, 1, n, dtype=np.float32)}
    columns |= {"vog_percentile": np.linspace(10, 90, n, dtype=np.float32), "loss": np.ones(n, dtype=np.float32)}
    manifest = {"units": {"of": "objects", "class_names": NAMES}, "input": {"name": "pixel_values"}}
    return ScoredSplit("", VoGScores(columns, manifest, units=objects()), rows)


def test_a_dataset_gets_lists_next_to_its_categories(split):
    """Loss, IoU and confidence by default; predictions have the names of the categories; boxes stay in the scores."""
    scored = add_vog_columns(split.rows, split.scores)
    core = [name for name in scored.column_names if name.endswith("_object")]
    assert core == ["loss_object", "iou_object", "confidence_object"]
    assert scored["iou_object"][3] == pytest.approx([0.95, 0.8, 0.05])
    assert scored["iou_object"][2] == [None, None]
    everything = add_vog_columns(split.rows, split.scores, "all")
    assert everything.features["prediction_object"].feature.names == NAMES
    assert not [name for name in everything.column_names if "left" in name or "width" in name]
    again = scores_from_columns(everything)
    assert again.units.unit == "object"
    np.testing.assert_array_equal(again.units.column("loss_object"), objects().column("loss_object"))
    assert not RowViews(ScoredSplit("", again, split.rows)).view(0).boxes


def test_categories_of_a_list_of_objects_are_found_as_well(split):
    """As the fields of each object, instead of a list for each field; and none where labels are others."""
    listed = [[{"category": k} for k in row["category"]] for row in split.rows["objects"]]
    features = Features({"objects": List({"category": ClassLabel(names=NAMES)})})
    rows = Dataset.from_dict({"objects": listed}, features=features)
    assert ScoredSplit("", split.scores, rows).label_lists.column == "objects.category"
    others = Dataset.from_dict({"objects": [row[::-1] for row in listed]}, features=features)
    assert ScoredSplit("", split.scores, others).label_lists is None


def test_the_queue_begins_with_the_worst_object(split):
    """Rows by their highest loss, or by their lowest IoU."""
    queue = Queue(split.scores)
    assert {"loss_object", "iou_object", "confidence_object"} < set(queue.columns)
    assert not [name for name in queue.columns if "left" in name or name == "prediction_object"]
    assert queue.rows(Filter(order="loss_object")).tolist() == [3, 0, 1, 2]
    assert queue.rows(Filter(order="iou_object", tail="lowest")).tolist() == [3, 0, 1, 2]


def test_given_and_predicted_boxes_are_drawn_over_the_picture(split):
    """Each at its place, in its color; the picture itself is left as it is, and so is that of a row without objects."""
    views = RowViews(split, side=400)
    view = views.view(1)
    drawn = view.boxed_picture
    box = view.boxes[0]
    assert (box.kind, box.name, box.note) == ("given", "dog", "loss 1.000, IoU 0.5000")
    left, top, bottom = round(box.left * 399), round(box.top * 299), round((box.top + box.height) * 299)
    assert colors(drawn, (left, top, left + 1, bottom)) == {GIVEN_COLOR}
    other = view.boxes[1]
    right, top = round((other.left + other.width) * 399), round(other.top * 299)
    assert colors(drawn, (right, top, right + 1, top + 40)) == {PREDICTED_COLOR, EDGE}  # dashed
    assert view.picture.getcolors() == [(400 * 300, (0x22, 0x44, 0x66))]
    assert views.view(2).boxed_picture is views.view(2).picture
    assert RowRecords(split).record(1).picture != RowRecords(split).record(2).picture


def colors(picture, area):
    """Colors in a part of a picture."""
    return {"#{:02x}{:02x}{:02x}".format(*color) for _, color in picture.crop(area).getcolors(1 << 16)}


def test_boxes_of_a_small_picture_are_thin_and_named():
    """It is enlarged, so that the lines do not hide the objects; names lie inside of it, whole or shortened."""
    small = Image.new("RGB", (32, 24), "#224466")
    given = Box(0.75, 0.5, 0.25, 0.25, "given", 0, "a class with a name that is longer than its picture is wide")
    predicted = Box(0.5, 0.5, 0.25, 0.25, "predicted", 1, "dog\nor wolf")
    drawn = with_boxes(small, [given, predicted])
    assert drawn.size == (256, 192)
    left = round(0.75 * 255)
    assert colors(drawn, (left + 6, 110, 249, 112)) == {"#224466"}  # inside of the given box
    line = next(y for y in range(96) if colors(drawn, (0, y, 1, y + 1)) == {GIVEN_COLOR})
    assert len(colors(drawn, (0, line, 256, line + 14))) > 2  # letters on its color


def test_a_predicted_class_is_named_where_it_is_another_one():
    """Below its box; a second name of the same class would hide the picture."""
    place, picture = (0.25, 0.25, 0.5, 0.5), Image.new("RGB", (400, 300))
    given = Box(*place, "given", 0, "cat")
    same, other = (with_boxes(picture, [given, Box(*place, "predicted", k, n)]) for k, n in ((0, "cat"), (1, "dog")))
    below = (102, 226, 104, 240)
    assert PREDICTED_COLOR in colors(other, below)
    assert PREDICTED_COLOR not in colors(same, below)


def test_names_do_not_hide_each_other():
    """The second of two objects at one place has its name elsewhere at its box."""
    place, picture = (0.25, 0.25, 0.5, 0.5), Image.new("RGB", (400, 300))
    twice = with_boxes(picture, [Box(*place, "given", 0, "cat"), Box(*place, "given", 1, "dog")])
    over, inside = (102, 56, 104, 72), (106, 80, 108, 90)
    assert GIVEN_COLOR in colors(twice, over)
    assert GIVEN_COLOR in colors(twice, inside)
    assert GIVEN_COLOR not in colors(with_boxes(picture, [Box(*place, "given", 0, "cat")]), inside)


def test_the_review_says_what_the_boxes_are(split):
    """Next to the scores of a row with a picture, as no heat map is explained there."""
    near = PageMaker(split.scores).row(RowRecords(split).record(1), [])["near_rows"]
    assert "what the boxes are" in near
    assert "Solid green boxes are the given ones" in near


def test_the_report_lists_the_objects_and_says_what_the_boxes_are(split, tmp_path):
    """Next to the pictures with boxes; the note names the colors."""
    text = read_page(write_report(split.scores, split.rows, tmp_path / "report.html")).text
    assert "object 1: given dog, predicted cat" in text
    assert "Solid green boxes are the given ones" in text


def test_weights_and_biases_gets_boxes_in_its_own_format(split, tmp_path):
    """Given and predicted ones apart, each with its class, its scores and its place as shares of the picture."""
    with offline_client(tmp_path) as offline:
        run = logged_run(offline, split.scores, split.rows, to="wandb")
    _, files = run.artifact("run_table", "-vogreview_first-")
    content = json.loads(files["vog/review_first.table.json"].read_text())
    lines = [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]
    (line,) = [line for line in lines if line["row"] == 1]
    boxes = line["image"]["boxes"]
    assert set(boxes) == {"given", "predicted"}
    (given,), (predicted,) = boxes["given"], boxes["predicted"]
    assert given["class_id"] == predicted["class_id"] == 1
    assert (given["box_caption"], predicted["box_caption"]) == ("dog (loss 1.000, IoU 0.5000)", "dog")
    left = float(split.scores.units.of_row("left_object", 1)[0])
    assert given["position"] == pytest.approx({"minX": left, "maxX": left + 0.5, "minY": left, "maxY": left + 0.25})
    assert predicted["position"]["minX"] == pytest.approx(left + 0.05)
    (beyond,) = [line["image"]["boxes"]["predicted"][0]["position"] for line in lines if line["row"] == 0]
    assert (beyond["minX"], beyond["maxX"]) == (0.0, pytest.approx(0.425))


def test_objects_are_listed_in_words(split):
    """Next to the picture, for those who do not see its boxes: class given and predicted, loss and IoU."""
    first, second = RowViews(split).view(0).unit_lines
    assert first.text == "object 0: given cat, predicted cat, loss 0.5000, IoU 0.9000, confidence 0.2000"
    assert second.text.startswith("object 1: given dog, predicted cat, loss 3.000, IoU 0.2000")
    assert [line.is_mismatched for line in (first, second)] == [False, True]
