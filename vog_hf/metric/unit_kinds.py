"""The kinds of units that rows have (tokens of a text, objects of an image), and the columns of each: one table.

The name of a column of units is that of the column of rows, `_`, and the name of the kind: ``loss_token``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vog_hf.metric.column import Column

LABEL, POSITION, PREDICTION = "label", "position", "prediction"  # of units, and no scores
BOX_COLUMNS = ("left", "top", "width", "height")  # of objects, as shares of the picture without its padding
PREDICTED = "predicted_"  # begins those of the box that the model predicts at the last snapshot


@dataclass(frozen=True)
class UnitKind:
    """A kind of units of rows.

    Attributes:
        name: Name of one, at the end of the names of columns.
        plural: Name of several.
        meanings: Description of a value of each column, by the name of the column of rows.
        along_input: Whether they lie along the first axis of the model's input: then each has VoG of its own.
        described_by: What says which unit it is: its label, its place in the row.
        shown: Those of them that a dataset gets, because none of its own columns has them.
        labels_are_classes: Whether labels are numbers of classes, which may have names.
        places: Number of places of every row, where all rows have as many: a list in a dataset has an entry for each.
        core: Columns that ``columns="core"`` adds, after VoG.
    """

    name: str
    plural: str
    meanings: Mapping[str, str] = field(hash=False)
    along_input: bool = False
    described_by: tuple[str, ...] = (LABEL, POSITION)
    shown: tuple[str, ...] = ()
    labels_are_classes: bool = False
    places: int | None = None
    core: tuple[str, ...] = ("loss", "confidence")


TOKEN = UnitKind(
    "token",
    "tokens",
    {
        "vog": "Standard deviation over the snapshots of the gradient at the token, averaged over its embedding; the "
        "gradient is that of the row's score, so the mean over all tokens of a row is its vog",
        "loss": "Mean loss of the token over the snapshots",
        "confidence": "Mean probability of the token's given label over the snapshots",
        "variability": "Standard deviation of that probability over the snapshots",
        "correctness": "Share of the snapshots that predict the token's given label",
        "forgetting": "As forgetting, of the token",
        "margin": "Logit of the token's given label minus the largest other, mean over snapshots",
        "el2n": "Length of the difference between predicted probabilities and label of the token, mean over snapshots",
        "prediction_probability": "Probability of the class that is predicted for the token, at the last snapshot",
    },
    along_input=True,
    labels_are_classes=True,
)
END = UnitKind(
    "end",
    "ends",
    {
        "loss": "Mean loss of the given start, and of the given end, over the snapshots",
        "confidence": "Mean probability of the given start, and of the given end, among the tokens of the row",
        "variability": "Standard deviation of that probability over the snapshots",
        "correctness": "Share of the snapshots that predict the given start, and the given end",
        "forgetting": "As forgetting, of the start, and of the end",
        "margin": "Logit of the given start, and of the given end, minus the largest other, mean over snapshots",
        "el2n": "Length of the difference between predicted probabilities and label of each end, mean over snapshots",
        "prediction_probability": "Probability of the predicted start, and of the predicted end, at the last snapshot",
    },
    places=2,
)
CHOICE = UnitKind(
    "choice",
    "choices",
    {
        "vog": "Standard deviation over the snapshots of the gradient at the tokens of the choice, averaged over their "
        "embeddings; the gradient is that of the row's score",
        "confidence": "Mean probability of each choice, given or not, over the snapshots",
        "variability": "Standard deviation of that probability over the snapshots",
    },
    along_input=True,
    described_by=(POSITION,),
    core=("confidence",),
)
CLASS = UnitKind(
    "class",
    "classes",
    {
        "label": "Class in the row's mask",
        "loss": "Mean loss over the pixels of the class in the row's mask, over the snapshots",
        "confidence": "Mean probability of the class over its pixels and the snapshots",
        "variability": "Standard deviation over the snapshots of that mean probability",
        "correctness": "Share of the pixels of the class that are predicted as such, mean over snapshots",
    },
    described_by=(LABEL,),
    shown=(LABEL,),
    labels_are_classes=True,
    core=(LABEL, "loss", "confidence"),
)
SIDE = UnitKind(
    "side",
    "sides",
    {
        "vog": "Standard deviation over the snapshots of the gradient at the tokens of the chosen, and of the rejected "
        "text, averaged over their embeddings; the gradient is that of the row's score",
        "loss": "Mean loss of the tokens of the chosen, and of the rejected answer, over the snapshots",
        "logp": "Log-probability of the chosen, and of the rejected answer, mean over snapshots",
        "reward": "Reward of the chosen, and of the rejected text, mean over snapshots",
    },
    along_input=True,
    described_by=(POSITION,),
    places=2,
    core=("loss", "logp", "reward"),
)
PATCH = UnitKind(
    "patch",
    "patches",
    {
        "position": "Number of the masked patch in the image, row by row from the upper left",
        "loss": "Mean reconstruction loss of the masked patch over the snapshots",
    },
    described_by=(POSITION,),
    shown=(POSITION,),
    core=(POSITION, "loss"),
)
OBJECT = UnitKind(
    "object",
    "objects",
    {
        "loss": "Minus the log-probability of the object's given class at the matched query, plus the weighted losses "
        "of its box; mean over the snapshots",
        "iou": "Intersection over union of the given box and that of the matched query, mean over the snapshots",
        "confidence": "Mean probability of the object's given class at the matched query over the snapshots",
        "variability": "Standard deviation of that probability over the snapshots",
        "correctness": "Share of the snapshots whose matched query predicts the object's given class",
        "forgetting": "As forgetting, of the object",
        "prediction_probability": "Probability of the class that the matched query predicts, at the last snapshot",
    },
    labels_are_classes=True,
    core=("loss", "iou", "confidence"),
)
UNIT_KINDS = {kind.name: kind for kind in (TOKEN, END, CHOICE, CLASS, SIDE, PATCH, OBJECT)}

# In the order of display: title, unit and range, meaning of a higher value.
MEASURES = {
    LABEL: ("class", "whole number", "names without an order"),
    POSITION: ("position", "whole number", "further down"),
    "vog": ("VoG", "{unit}, at least 0", "the gradient changed more between snapshots"),
    "loss": ("loss", "at least 0", "fits worse"),
    "iou": ("IoU", "0 to 1", "fits better"),
    "confidence": ("confidence", "0 to 1", "fits better"),
    "variability": ("variability", "0 to 0.5", "more undecided"),
    "correctness": ("correctness", "0 to 1", "fits better"),
    "forgetting": ("forgetting", "whole number", "less stable"),
    "margin": ("margin", "logits", "fits better"),
    "el2n": ("EL2N", "0 to 1.41", "fits worse"),
    "prediction_probability": ("prediction probability", "0 to 1", "surer of its prediction, right or wrong"),
    "logp": ("log-probability", "nats, at most 0", "likelier for the model"),
    "reward": ("reward", "as the model gives it", "better for the model"),
}


def unit_column(name: str, unit: str) -> str:
    """Name of a column of units, after that of rows.

    Example:
        >>> unit_column("vog_loss", "token")
        'vog_loss_token'
    """
    return f"{name}_{unit}"


UNIT_COLUMNS = tuple(
    Column(unit_column(name, kind.name), f"{title} by {kind.name}", kind.meanings[name], measure, higher)
    for kind in UNIT_KINDS.values()
    for name, (title, measure, higher) in MEASURES.items()
    if name in kind.meanings
)


def unit_column_place(name: str) -> tuple[int, str]:
    """Key that brings columns of units into reading order: label and place, VoG of each target, the companions.

    Example:
        >>> sorted(["loss_token", "vog_loss_token", "label_token", "vog_token"], key=unit_column_place)
        ['label_token', 'vog_token', 'vog_loss_token', 'loss_token']
    """
    first, of_rows = [LABEL, POSITION, "vog"], name.rpartition("_")[0]
    if of_rows in first or name.startswith("vog"):
        return (first.index(of_rows) if of_rows in first else len(first)), name
    measures = list(MEASURES)
    return len(first) + 1 + (measures.index(of_rows) if of_rows in measures else len(measures)), name


def core_unit_columns(names: Sequence[str], kind: UnitKind) -> list[str]:
    """Columns of units that ``columns="core"`` adds: VoG of each target where units have it, then loss and the like.

    Args:
        names: The column of each target's VoG.
        kind: What the units are.

    Example:
        >>> core_unit_columns(["vog"], TOKEN)
        ['vog_token', 'loss_token', 'confidence_token']
    """
    return [unit_column(name, kind.name) for name in (*(names if kind.along_input else ()), *kind.core)]
