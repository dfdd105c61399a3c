"""`vog-hf score`: score a dataset from stored snapshots of a model."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output, naming_options
from vog_hf.cli.sources import (
    Columns,
    ConfigOption,
    DatasetRevisionOption,
    PrefixOption,
    Source,
    SplitOption,
    TokenOption,
    hub_token,
)

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
NAMED_ROWS = 5  # of those without a score; --json lists more
OPTIONS = {  # argument of the scorer: option
    "batch_size": "--batch-size",
    "dtype": "--dtype",
    "label": "--label",
    "label_column": "--label-column",
    "memory_budget": "--memory-budget",
    "num_workers": "--workers",
    "on_error": "--on-error",
    "output_dir": "--output",
    "prefix": "--prefix",
    "target": "--target",
    "token_units": "--token-units",
    "torch_compile": "--torch-compile",
}


class Target(StrEnum):
    """The scalar to differentiate."""

    LOGIT = "logit"
    PROBABILITY = "probability"
    LOSS = "loss"


class Label(StrEnum):
    """The class to differentiate."""

    GIVEN = "given"
    PREDICTED = "predicted"


class OnError(StrEnum):
    """Treatment of a row that cannot be scored."""

    RAISE = "raise"
    SKIP = "skip"


class Precision(StrEnum):
    """The precision of the model."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    MODEL = "model"


def memory(text: str | None) -> int | None:
    """Number of bytes from ``"4GiB"``, ``"500M"`` or ``"1000000"``."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(
            f"a number of bytes is expected, such as 4GiB or 500M, got {text!r}", param_hint="--memory-budget"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


@command(
    "vog-hf score ./outputs --dataset cifar10 --output ./scores",
    "vog-hf score ./model ./outputs/checkpoint-* --dataset ./my-images",
    "vog-hf score me/model --dataset me/reviews \\\n      --snapshot-revision epoch-1 --snapshot-revision epoch-2",
    "vog-hf score ./outputs --dataset rows.parquet --target logit --target loss",
    "accelerate launch -m vog_hf score ./outputs --dataset me/my-data \\\n      --save-dataset ./scored.parquet",
)
def score(
    out: Output,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Model folder or Hub id, or the folder of a run (then its last checkpoint)."
        ),
    ],
    snapshots: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SNAPSHOTS",
            help="Snapshots in the order of training: model folders, .safetensors files, patterns, or one folder "
            "with checkpoint-* folders or the snapshots of a callback. Default: those in MODEL.",
        ),
    ] = None,
    *,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            metavar="DATASET",
            help="Dataset on the Hub, folder written by save_to_disk, folder of images, or parquet, csv or json file.",
        ),
    ],
    config: ConfigOption = None,
    split: SplitOption = None,
    dataset_revision: DatasetRevisionOption = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder for the scores; an interrupted run resumes here."
        ),
    ] = Path("vog-scores"),
    save_dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Also write the dataset with its scores, as a .parquet file or a folder for load_from_disk.",
        ),
    ] = None,
    columns: Annotated[
        Columns, typer.Option(metavar="core|all", help="Scores that --save-dataset adds as columns.")
    ] = Columns.CORE,
    prefix: PrefixOption = "",
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of MODEL on the Hub.")
    ] = None,
    snapshot_revision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REVISION",
            help="Revision of MODEL on the Hub to use as a snapshot; repeat it, in the order of training.",
        ),
    ] = None,
    processor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Folder or Hub id of the image processor, tokenizer or feature extractor. Default: MODEL.",
        ),
    ] = None,
    input_column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Image, text or audio column; repeat it for several. Default: found by name and type."
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of labels, tags, answers, masks or summaries. Default: found by name and type."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="INTEGER",
            help="Truncate texts to this many tokens. Default: the limit of tokenizer and model.",
        ),
    ] = None,
    target: Annotated[
        list[Target] | None,
        typer.Option(
            metavar="logit|probability|loss",
            help="Scalar to differentiate; may be repeated, the first fills the column vog. Default: logit.",
        ),
    ] = None,
    label: Annotated[
        Label,
        typer.Option(metavar="given|predicted", help="Class to differentiate: the given label or the last prediction."),
    ] = Label.GIVEN,
    dtype: Annotated[
        Precision, typer.Option(metavar="float32|bfloat16|model", help="Precision of the model; model: as stored.")
    ] = Precision.FLOAT32,
    heat_maps: Annotated[bool, typer.Option("--heat-maps/--no-heat-maps", help="Store a heat map per row.")] = True,
    token_units: Annotated[
        bool, typer.Option("--token-units", help="Score each label token of causal and masked language models.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="INTEGER", help="Rows per forward pass; does not affect the scores.")
    ] = 64,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory for a block of rows, e.g. 4GiB. Default: a quarter of the free memory."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="INTEGER", help="Worker processes that prefetch rows.")] = 0,
    on_error: Annotated[
        OnError,
        typer.Option(metavar="raise|skip", help="Stop at a row that cannot be scored, or leave it without a score."),
    ] = OnError.RAISE,
    torch_compile: Annotated[
        bool, typer.Option("--torch-compile", help="Run the model through torch.compile.")
    ] = False,
    token: TokenOption = None,
) -> None:
    """Score the rows of a dataset from stored snapshots of a model.

    The task follows from the model's head: classification and regression, tags of words, multiple choice, question
    answering, language models, summaries, preferences, segmentation, detection, masked images, pairs of image and text,
    speech.
    Rows pass through the model's own processor, without augmentation. Invalid models, data or snapshots are reported
    before the long work. Called again with the same --output, an interrupted scoring resumes and a finished one is
    returned unchanged.
    """
    if snapshots and snapshot_revision:
        raise typer.BadParameter(
            "snapshots are given both as paths and as --snapshot-revision; use one of them",
            param_hint="--snapshot-revision",
        )
    targets = tuple(map(str, target or [Target.LOGIT]))
    from vog_hf.cli.scoring import ScoreRequest, score_all
    from vog_hf.scores.descriptions import skipped_in_words

    request = ScoreRequest(
        model=model,
        revision=revision,
        snapshots=snapshots or [],
        snapshot_revisions=snapshot_revision or [],
        source=Source(dataset, config, split, dataset_revision),
        processor=processor,
        input_columns=input_column or [],
        label_column=label_column,
        max_length=max_length,
    )
    with hub_token(token), naming_options(**OPTIONS):
        summary = score_all(
            request,
            output=output,
            save_dataset=save_dataset,
            columns=str(columns),
            prefix=prefix,
            choices={
                "target": targets if len(targets) > 1 else targets[0],
                "label": str(label),
                "dtype": str(dtype),
                "heat_maps": heat_maps,
                "token_units": token_units,
            },
            options={
                "batch_size": batch_size,
                "memory_budget": memory(memory_budget),
                "num_workers": workers,
                "progress": out.shows_progress,
                "torch_compile": torch_compile,
                "on_error": str(on_error),
            },
        )
    if summary is not None:
        first, n_rows, n_skipped = (summary[name] for name in ("review_first", "n_rows", "n_skipped"))
        shown = {
            "without a score": skipped_in_words(n_skipped, summary["skipped"][:NAMED_ROWS]),
            "in this run": summary["headline"],
            "start with": first and first["sentence"].removeprefix("Start with "),
            **{name: summary[name] for name in ("next", "output", "saved")},
        }
        rows = f"{n_rows - n_skipped:,} of {n_rows:,} rows" if n_skipped else f"{n_rows:,} rows"
        out.result(f"Scored {rows} from {summary['n_snapshots']} snapshots", summary, shown=shown)
        out.hint(f"`vog-hf report {output}` shows the rows, `vog-hf push {output} <user/name>` publishes them")
