"""The columns of scores: one table of what each is called, means and is measured in.

It is on the lowest floor, because the configuration, the scores and all outputs read it.
"""

from collections.abc import Sequence

from vog_hf.metric.column import Column
from vog_hf.metric.unit_kinds import UNIT_COLUMNS, UNIT_KINDS

CSG = "csg"  # the only companion that needs a target: "loss"
FIRST_LOSS = "first_loss"  # only of scores that were collected from the training's own passes
OBSERVATIONS = "observations"  # likewise
VOG_LOSS = "vog_loss"  # the same name as of the target "loss" next to others
LEARNING_PATTERN = "learning_pattern"  # the only column of texts
PREDICTION_PROBABILITY = "prediction_probability"

# In the order of display: the scores of each target, then the companions, which do not depend on the target.
TARGET_COLUMNS = (
    Column(
        "vog_class_normalized",
        "VoG, class-normalized",
        "vog as a z-score within the row's class (the given label, else the last prediction); rankings are by this",
        "standard deviations",
        "higher than other rows of its class",
    ),
    Column(
        "vog_normalized",
        "VoG, normalized",
        "vog as a z-score over the whole dataset, because rows have no single class; rankings are by this",
        "standard deviations",
        "higher than other rows",
    ),
    Column(
        "vog",
        "VoG, raw",
        "Variance of Gradients: standard deviation of the gradient over the snapshots, averaged over the input",
        "{unit}, at least 0",
        "the gradient changed more between snapshots",
    ),
    Column(
        "vog_early",
        "VoG, early snapshots",
        "vog of the first snapshots only",
        "{unit}, at least 0",
        "changed more early in the training",
    ),
    Column(
        "vog_late",
        "VoG, late snapshots",
        "vog of the last snapshots only",
        "{unit}, at least 0",
        "changed more late in the training",
    ),
    Column(
        "vog_percentile",
        "VoG percentile",
        "Percentile of the normalized score within this dataset",
        "0 to 100",
        "higher in the ranking",
    ),
)
COMPANION_COLUMNS = (
    Column(
        "gradient_magnitude",
        "mean |gradient|",
        "Mean absolute gradient over elements and snapshots",
        "{unit}, at least 0",
        "the output depends more on the input",
    ),
    # "Memorization Through the Lens of Sample Gradients", ICLR 2026 (https://openreview.net/forum?id=jeTiBeW3iZ) sums
    # the squared norm over training; the mean over snapshots ranks the same and does not grow with their number.
    Column(
        CSG,
        "CSG",
        "Cumulative Sample Gradient (ICLR 2026): squared length of the gradient of the loss over all channels of the "
        "input, mean over the snapshots",
        "nats\N{SUPERSCRIPT TWO} per squared unit of input for classification, at least 0",
        "harder; more often mislabeled in the published experiments",
    ),
    Column("loss", "loss", "Mean loss over the snapshots", "at least 0 for classification, in nats", "fits worse"),
    Column(
        FIRST_LOSS,
        "first loss",
        "Loss at the first visit of the training, before the model was trained on the row",
        "at least 0 for classification, in nats",
        "a model that does not know the row fits worse",
    ),
    Column(
        "confidence", "confidence", "Mean probability of the given label over the snapshots", "0 to 1", "fits better"
    ),
    Column(
        "variability",
        "variability",
        "Standard deviation of that probability over the snapshots",
        "0 to 0.5",
        "more undecided",
    ),
    Column(
        "correctness", "correctness", "Share of the snapshots that predict the given label", "0 to 1", "fits better"
    ),
    Column(
        "forgetting",
        "forgetting",
        "How often a right prediction was followed by a wrong one; never right counts as the number of snapshots",
        "whole number",
        "less stable",
    ),
    Column(
        "margin",
        "margin",
        "Logit of the given label minus the largest other, mean over snapshots; below 0 the model prefers another "
        "label",
        "logits",
        "fits better",
    ),
    Column(
        "el2n",
        "EL2N",
        "Length of the difference between predicted probabilities and label, mean over snapshots",
        "0 to 1.41",
        "fits worse",
    ),
)
PROBABILITY_COLUMN = Column(
    PREDICTION_PROBABILITY,
    "prediction probability",
    "Probability of the predicted class, at the last snapshot",
    "0 to 1",
    "surer of its prediction, right or wrong",
)
PATTERN_COLUMN = Column(
    LEARNING_PATTERN,
    "learning pattern",
    "When the prediction became correct and whether it stayed so: learned_early, learned_late, unstable (learned again "
    "after it was forgotten), forgotten or never_learned",
    "text",
    "names without an order",
)
OBSERVATIONS_COLUMN = Column(
    OBSERVATIONS,
    "observations",
    "Number of epochs whose training visited the row; the other columns are over these",
    "whole number",
    "seen more often",
)
VOG_LOSS_COLUMN = Column(  # of scores that were collected from the training's own passes, which have no other VoG
    VOG_LOSS,
    VOG_LOSS,
    "Variance of Gradients of the loss over the visits of the row, one per epoch, in the passes that trained it",
    "loss per unit of input, at least 0",
    "the gradient changed more between epochs",
)
PART_COLUMNS = (
    *(
        Column(
            f"vog_{part}",
            f"VoG of the {part}",
            f"VoG with respect to {input_of_part} of a row that has a text as well",
            "{unit}, at least 0",
            f"the gradient of the {part} changed more between snapshots",
        )
        for part, input_of_part in (
            ("image", "the pixels of the images, averaged over their colors,"),
            ("video", "the pixels of the video, averaged over their colors,"),
            ("audio", "the waveform or spectrogram"),
        )
    ),
    Column(
        "vog_text",
        "VoG of the text",
        "VoG with respect to the embeddings of the text of a row that has an image, a video or a sound as well, "
        "without the places of images",
        "{unit}, at least 0",
        "the gradient of the text changed more between snapshots",
    ),
    *(
        Column(
            f"vog_text_{number}",
            f"VoG of text {number}",
            f"VoG with respect to the embeddings of the row's text number {number}",
            "{unit}, at least 0",
            "the gradient of this text changed more between snapshots",
        )
        for number in (1, 2, 3)
    ),
    *(
        Column(
            f"{part}_share",
            f"share of the {part}",
            f"Squared length of the gradient of the {part}, as a share of that of {part} and text together, mean over "
            f"the snapshots; {part} and embeddings have other scales, so compare rows",
            "0 to 1",
            f"the output depends more on the {part} and less on the text",
        )
        for part in ("image", "video", "audio")
    ),
)
OTHER_COLUMNS = (PROBABILITY_COLUMN, OBSERVATIONS_COLUMN, PATTERN_COLUMN)
COLUMNS = {
    column.name: column
    for column in (*TARGET_COLUMNS, *COMPANION_COLUMNS, *PART_COLUMNS, *OTHER_COLUMNS, *UNIT_COLUMNS)
}
COMPANIONS = tuple(column.name for column in COMPANION_COLUMNS)
ENDINGS = tuple(column.name.removeprefix("vog") for column in TARGET_COLUMNS)


def title_of(name: str) -> str:
    """Heading of a column; its name if it is not in the table.

    Example:
        >>> title_of("el2n"), title_of("my_column")
        ('EL2N', 'my_column')
    """
    return COLUMNS[name].title if name in COLUMNS else name


def core_endings(*, has_classes: bool) -> list[str]:
    """Endings of the columns that ``columns="core"`` adds for a target: raw, normalized, percentile.

    Args:
        has_classes: Whether scores are normalized within classes.
    """
    return ["", "_class_normalized" if has_classes else "_normalized", "_percentile"]


def column_names(target_names: Sequence[str]) -> tuple[str, ...]:
    """Column of each target's VoG: ``vog`` for the first, ``vog_<target>`` for others."""
    return tuple("vog" if i == 0 else f"vog_{name.rpartition('.')[2]}" for i, name in enumerate(target_names))


def target_of_column(column: str, target_names: Sequence[str]) -> str | None:
    """The target of a VoG column; None for other columns (label, loss and so on).

    Example:
        >>> target_of_column("vog_late", ["logit", "loss"]), target_of_column("vog_loss_percentile", ["logit", "loss"])
        ('logit', 'loss')
    """
    named = zip(target_names, column_names(target_names), strict=True)
    endings = (*ENDINGS, *(f"_{kind}" for kind in UNIT_KINDS))
    return next((target for target, name in named if column in {name + ending for ending in endings}), None)
