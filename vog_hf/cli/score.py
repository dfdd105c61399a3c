"""`vog-hf score`: stored snapshots of a model and a data set in, scores out."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output, in_options
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
OPTIONS = {  # by the name of the argument of the scorer
    "batch_size": "--batch-size",
    "dtype": "--dtype",
    "label": "--label",
    "label_column": "--label-column",
    "memory_budget": "--memory-budget",
    "num_workers": "--workers",
    "output_dir": "--output",
    "prefix": "--prefix",
    "target": "--target",
    "torch_compile": "--torch-compile",
}


class Target(StrEnum):
    """What is differentiated."""

    LOGIT = "logit"
    PROBABILITY = "probability"
    LOSS = "loss"


class Label(StrEnum):
    """Whose class it is."""

    GIVEN = "given"
    PREDICTED = "predicted"


class Precision(StrEnum):
    """What the model computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    MODEL = "model"


def memory(text: str | None) -> int | None:
    """Bytes of ``"4GiB"``, ``"500M"`` or ``"1000000"``."""
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
            metavar="MODEL", help="Model folder or Hub id; or the folder of a run, whose last checkpoint is the model."
        ),
    ],
    snapshots: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SNAPSHOTS",
            help="Snapshots in the order of training: model folders, .safetensors files, patterns, or one folder "
            "with checkpoint-* or a callback's snapshots in it. Default: those in MODEL.",
        ),
    ] = None,
    *,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "-d",
            metavar="DATASET",
            help="Data set on the Hub, folder of save_to_disk or of images, or a parquet, csv or json file.",
        ),
    ],
    config: ConfigOption = None,
    split: SplitOption = None,
    dataset_revision: DatasetRevisionOption = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder for the scores. An interrupted run goes on there."
        ),
    ] = Path("vog-scores"),
    save_dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write the data set with its scores, too: a .parquet file, or a folder for load_from_disk.",
        ),
    ] = None,
    columns: Annotated[
        Columns, typer.Option(metavar="core|all", help="Which scores --save-dataset adds.")
    ] = Columns.CORE,
    prefix: PrefixOption = "",
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit of MODEL on the Hub.")
    ] = None,
    snapshot_revision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REVISION",
            help="Revision of MODEL on the Hub that is a snapshot; once for each, in the order of training.",
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
            metavar="NAME", help="Column of the image, text or sound; twice for pairs of texts. Default: by its type."
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column of the label. Default: labels, label, or the only column of classes."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="INTEGER", help="Tokens after which texts are cut. Default: what tokenizer and model take."
        ),
    ] = None,
    target: Annotated[
        list[Target] | None,
        typer.Option(
            metavar="logit|probability|loss",
            help="What is differentiated; the first fills the column vog. Default: logit.",
        ),
    ] = None,
    label: Annotated[
        Label, typer.Option(metavar="given|predicted", help="Whose class is differentiated.")
    ] = Label.GIVEN,
    dtype: Annotated[
        Precision, typer.Option(metavar="float32|bfloat16|model", help="What the model computes in.")
    ] = Precision.FLOAT32,
    heat_maps: Annotated[bool, typer.Option("--heat-maps/--no-heat-maps", help="Keep a heat map per row.")] = True,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="INTEGER", help="Rows per forward pass; changes no score.")
    ] = 64,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory for a block of rows, such as 4GiB. Default: a quarter of what is free."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="INTEGER", help="Processes that read rows ahead.")] = 0,
    torch_compile: Annotated[bool, typer.Option("--torch-compile", help="Compile the model first.")] = False,
    token: TokenOption = None,
) -> None:
    """Score the rows of a data set from stored snapshots of a model.

    Classifiers and regressions of images, texts and sounds. Rows go through the model's own processor, without
    augmentation. What is wrong with model, data or snapshots is said before the long work. Called again with the same
    OUTPUT, an interrupted scoring goes on and a finished one is returned as it is.
    """
    if snapshots and snapshot_revision:
        raise typer.BadParameter(
            "snapshots come as paths or as --snapshot-revision, not as both", param_hint="--snapshot-revision"
        )
    targets = tuple(map(str, target or [Target.LOGIT]))
    from vog_hf.cli.scoring import Wanted, score_all

    wanted = Wanted(
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
    with hub_token(token), in_options(**OPTIONS):
        found = score_all(
            wanted,
            output=output,
            save_dataset=save_dataset,
            columns=str(columns),
            prefix=prefix,
            choices={
                "target": targets if len(targets) > 1 else targets[0],
                "label": str(label),
                "dtype": str(dtype),
                "heat_maps": heat_maps,
            },
            options={
                "batch_size": batch_size,
                "memory_budget": memory(memory_budget),
                "num_workers": workers,
                "progress": out.shows_progress,
                "torch_compile": torch_compile,
            },
        )
    if found is not None:
        tail = found["hard_tail"]
        shown = {"output": found["output"], "saved": found["saved"], "in this run": tail and tail["in_words"]}
        out.result(f"{found['n_rows']:,} rows scored from {found['n_snapshots']} snapshots", found, shown=shown)
        out.hint(f"`vog-hf report {output}` shows the rows, `vog-hf push {output} <user/name>` publishes them")
