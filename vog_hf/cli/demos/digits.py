"""The default demo: handwritten digits of scikit-learn, a small ResNet, Trainer and VoGCallback; a minute on a CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

from vog_hf.cli.demos.offline import offline_wandb
from vog_hf.evaluation import error_by_decile, rank_correlations
from vog_hf.metric.vocabulary import COMPANIONS
from vog_hf.scores.pictures import contact_sheet
from vog_hf.scores.ranking import most_extreme
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.trainer.callback import VoGCallback

EPOCHS = 8
SIDE = 32  # the 8 x 8 digits are enlarged, because the network halves its input three times


def run_demo(output: Path, *, seed: int = 0, console: Console | None = None) -> VoGScores:
    """Train on the 1,797 digits, score all of them, print the findings and write everything to ``output``.

    Returns:
        The scores. ``output`` holds the scored dataset (``scored`` for ``load_from_disk``,
        ``scored.parquet``), ``contact-sheet.png``, the offline W&B run, and the trainer's folder.

    Raises:
        NotScoredError: Scoring failed (the cause is chained).
    """
    console = console or Console()
    output.mkdir(parents=True, exist_ok=True)
    digits = load_digits_dataset()
    set_seed(seed)
    args = TrainingArguments(
        output_dir=str(output / "trainer"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        learning_rate=5e-4,
        save_strategy="no",
        logging_steps=50,
        report_to="wandb",
        run_name="vog-hf-demo",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),  # elsewhere it causes a warning
        seed=seed,
        disable_tqdm=not console.is_terminal,
    )
    with offline_wandb(output):
        callback = VoGCallback()  # the only added line
        trainer = Trainer(small_resnet(), args, train_dataset=digits.with_transform(to_pixels), callbacks=[callback])
        trainer.train()
    scores = callback.scores
    if not isinstance(scores, VoGScores):  # a DatasetDict would give one per split
        raise TypeError(f"expected the scores of one dataset, got {type(scores).__name__}")
    scored = callback.scored_dataset("all")
    scored.save_to_disk(str(output / "scored"))
    scored.to_parquet(output / "scored.parquet")
    contact_sheet(scores, digits).save(output / "contact-sheet.png")
    print_findings(scores, console)
    console.print(
        f"Everything is in [bold]{escape(str(output))}[/bold]: "
        "contact-sheet.png, scored.parquet, scored/, wandb/, trainer/"
    )
    return scores


def load_digits_dataset() -> Dataset:
    """The 1,797 handwritten 8 x 8 digits that scikit-learn bundles, as a `Dataset` of images and labels."""
    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(n) for n in bunch.target_names])})
    return Dataset.from_dict({"image": list(pixels), "label": bunch.target}, features=features)


def small_resnet() -> ResNetForImageClassification:
    """A ResNet with three stages of one block each, for gray images of digits; freshly initialized."""
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate("0123456789")),
        )
    )


def to_pixels(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The transform of the demo: enlarged digits with pixels in -1..1."""
    pixels = [np.asarray(image.convert("L").resize((SIDE, SIDE)), dtype=np.float32) for image in rows["image"]]
    return {
        "pixel_values": [torch.from_numpy(image / 127.5 - 1.0).unsqueeze(0) for image in pixels],
        "labels": rows["label"],
    }


def print_findings(scores: VoGScores, console: Console) -> None:
    """Print the highest and lowest rows, the error by decile and the companions' rank correlations."""
    highest, lowest = most_extreme(scores, "vog_class_normalized", 5)
    rows = Table(title="Highest and lowest rows by vog_class_normalized")
    for heading in ("", "row", "label", "prediction", "vog", "class-normalized", "confidence"):
        rows.add_column(heading, justify="right")
    for name, part in (("highest", highest), ("lowest", lowest)):
        for row in part:
            values = [
                scores.column(c)[row] for c in ("label", "prediction", "vog", "vog_class_normalized", "confidence")
            ]
            rows.add_row(name, str(row), *(f"{v:.3f}" if isinstance(v, np.floating) else str(v) for v in values))
    console.print(rows)
    console.print(decile_table(scores))
    correlations = Table(title="Spearman rank correlation with vog")
    correlations.add_column("column")
    correlations.add_column("correlation", justify="right")
    wanted = ("vog", "vog_class_normalized", "vog_early", "vog_late", *COMPANIONS)
    compared = [name for name in wanted if name in scores.column_names]
    table = rank_correlations({name: scores.column(name) for name in compared})["vog"]
    for column, value in zip(table.index[1:], table.to_numpy()[1:], strict=True):
        correlations.add_row(str(column), f"{value:.2f}")
    console.print(correlations)


def decile_table(scores: VoGScores) -> Table:
    """Error on the training rows by decile of three columns, at the last snapshot and averaged over all snapshots."""
    errors = {
        "last": scores.column("prediction") != scores.column("label"),
        "all": 1 - scores.column("correctness"),
    }
    ranked = ("vog", "vog_class_normalized", "loss")
    table = Table(title="Error on these rows by decile, at the last snapshot / averaged over all")
    for heading in ("decile", *ranked):
        table.add_column(heading, justify="right")
    parts = {
        (column, over): error_by_decile(scores.column(column), wrong)["error"].to_numpy()
        for column in ranked
        for over, wrong in errors.items()
    }
    for i in range(10):
        name = {0: "1 (lowest)", 9: "10 (highest)"}.get(i, str(i + 1))
        table.add_row(name, *(f"{parts[c, 'last'][i]:.3f} / {parts[c, 'all'][i]:.3f}" for c in ranked))
    return table
