"""A run and its scores in words: how they were computed, what the columns mean, which tail is hard."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vog_hf.metric.vocabulary import COLUMNS, VOG_LOSS, VOG_LOSS_COLUMN, target_of_column
from vog_hf.scores.manifest import Manifest
from vog_hf.scores.unit_columns import coloring_column, has_boxes, unit_column_names
from vog_hf.scores.vog_scores import VoGScores

DIGEST = 16  # characters shown of a digest
NUMBERS_NOTE = (
    "Errors are shares of rows, losses percentiles 0..100; the parts are the lowest 20 %, the middle 60 % and the "
    "highest 20 %. All intervals together hold with 99 % confidence."
)
DETECTION_NOTE = (
    "How well each column finds the rows that are known to be mislabeled (is_corrupted), in whichever direction works "
    'better on these rows, which can only be chosen if they are known. AUROC 0.5 (row "random") means no signal.'
)


@dataclass(frozen=True)
class Meaning:
    """A column of the scores in words."""

    column: str
    what: str
    unit: str
    higher: str


def column_meanings(scores: VoGScores) -> list[Meaning]:
    """Meaning, unit and direction of each column of the scores that is described here."""
    targets = scores.facts.targets
    described = COLUMNS | ({VOG_LOSS: VOG_LOSS_COLUMN} if scores.facts.collect == "training" else {})
    meanings = []
    for column in (*scores.column_names, *scores.text_column_names, *unit_column_names(scores)):
        target = target_of_column(column, targets)
        name = column
        if target is not None and target != targets[0]:  # vog_loss_late means what vog_late means, of another target
            name = column.replace(f"vog_{target.rpartition('.')[2]}", "vog", 1)
        if name in described:
            known, of = described[name], f" (of the target {target})" if name != column else ""
            unit = known.unit.format(unit=unit_of(target or first_target(scores)))
            meanings.append(Meaning(column, known.meaning + of, unit, known.higher))
    return meanings


def first_target(scores: VoGScores) -> str | None:
    """The target of the column ``vog``; None if the manifest does not say."""
    return next(iter(scores.facts.targets), None)


def unit_of(target: str | None) -> str:
    """The unit of VoG."""
    return f"{target or 'target'} per unit of input"


def unit_of_column(scores: VoGScores, column: str) -> str:
    """The unit of ``vog`` or of ``loss``."""
    if column == "vog":
        return unit_of(first_target(scores))
    return "nats" if scores.has_classes else "as in training"


def skipped_in_words(n_skipped: int, rows: Sequence[Mapping[str, object]]) -> str | None:
    """The number of rows that could not be scored, with some of them and the reasons; None without any.

    Example:
        >>> skipped_in_words(3, [{"row": 3, "reason": "3.png: OSError: image file is truncated"}])
        '3 (row 3: 3.png: OSError: image file is truncated; and 2 others)'
    """
    if not n_skipped:
        return None
    named = [f"row {entry['row']}: {entry['reason']}" for entry in rows]
    n_others = n_skipped - len(named)
    if n_others and named:
        named.append(f"and {n_others:,} other{'s' if n_others > 1 else ''}")
    return f"{n_skipped:,}" + (f" ({'; '.join(named)})" if named else "")


def run_facts(scores: VoGScores) -> list[tuple[str, str]]:
    """Options of the scoring: names and values from the manifest, in reading order."""
    known = scores.facts
    facts = [
        ("Model", _model(known.model)),
        ("Task", (known.task or "").replace("_", " ")),
        ("Data", f"{len(scores):,} rows" + _columns_of_data(known)),
        ("Rows without a score", f"{known.n_skipped:,} could not be scored" if known.n_skipped else ""),
        ("Dataset", _source(known.data.get("source") or {})),
        ("Transform", _transform(known.transform)),
        ("Target", _target(known.config)),
        ("Gradient with respect to", _leaf(known.input)),
        ("Snapshots", _snapshots(known)),
        ("Windows", _windows(known)),
        ("Collected", _collected(known)),
        ("Computed on", _computed(known.computed, known.config)),
        ("Digest of the rows after their transform", _short(known.rows_digest)),
        ("Versions", ", ".join(f"{name} {value}" for name, value in known.versions.items())),
        ("Scored", (known.created or "").replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(name, value) for name, value in facts if value]


def digests(scores: VoGScores) -> list[tuple[str, str]]:
    """Digests of the columns of the data and of the content of each snapshot."""
    columns = scores.facts.column_digests
    snapshots = [s for s in scores.facts.snapshots if s.get("digest")]
    return [(f"column {name}", _short(value)) for name, value in columns.items()] + [
        (f"snapshot {s.get('name')}" + _step(s), _short(s["digest"])) for s in snapshots
    ]


def tail_title(tail: str, name: str) -> str:
    """Title of the gallery of one end of the ranking (``highest`` or ``lowest``), hard only where the run shows it.

    Args:
        tail: `HardTail.named_tail` of the ranking.
        name: ``"highest"`` or ``"lowest"``.
    """
    hard = tail == "both" or tail == {"highest": "high", "lowest": "low"}[name]
    if not hard:
        return f"{name.capitalize()} rows"
    return f"{name.capitalize()} rows: {'a' if tail == 'both' else 'the'} hard tail of this run"


def heat_note(scores: VoGScores, kinds: Collection[str]) -> str:
    """Sentence about heat maps, in the forms that they have here: ``overlay``, ``plane``, ``strip`` or ``words``."""
    column, of_tokens = coloring_column(scores), scores.facts.reads_tokens
    if column is not None and "words" in kinds:
        return (
            f"Words are colored by {column}, the stronger the higher, each row by its own highest; a dotted line is "
            "under words with another last prediction than their label. Point at a word for its label and its scores."
        )
    more = "more change" if scores.pixels is None else "more"
    forms = {
        "overlay": f"over an image, brighter means {more}, and transparent the least",
        "plane": "a row without an image has its map alone",
        "words": "the words of a text are colored, the stronger the more change (special tokens are left out, and what "
        "the model did not see is pale)",
        "strip": "a strip has one cell per token that the model saw, in order, including special tokens; its cells "
        "are not aligned with the words"
        if of_tokens
        else "a strip runs along the input from its start, in equal parts",
    }
    explained = "; ".join(form for kind, form in forms.items() if kind in kinds)
    compared = "Colors compare places within one row, not between rows."
    return f"{heat_subject(scores)}: {explained}. {compared}{boxes_note(scores)}"


def heat_subject(scores: VoGScores) -> str:
    """Subject of heat maps that are not of words."""
    if scores.pixels is not None:
        return "Where the mean loss over the mask was highest"
    target = first_target(scores)
    return f"Where the {f'gradient of the {target}' if target else 'gradient'} changed most between snapshots"


def boxes_note(scores: VoGScores) -> str:
    """Sentence about the boxes in pictures, after a space; "" without boxes."""
    if not has_boxes(scores):
        return ""
    return (
        " Solid green boxes are the given ones, with their class. Dashed orange boxes are those that the model matches "
        "to them at the last snapshot, with the predicted class where it differs."
    )


def _model(model: Mapping[str, object]) -> str:
    named = " ".join(str(part) for part in (model.get("class"), model.get("name")) if part)
    return f"{named}, revision {model['revision']}" if model.get("revision") else named


def _source(source: Mapping[str, object]) -> str:
    """Name of the dataset, if it is noted (`vog-hf score` notes it)."""
    rest = [f"{name} {source[name]}" for name in ("config", "split", "revision") if source.get(name)]
    return ", ".join([str(source["name"]), *rest]) if source.get("name") else ""


def _transform(transform: Mapping[str, Any]) -> str:
    """Words about how rows became inputs, if it is noted."""
    if not transform.get("processor"):
        return ""
    limit = transform.get("max_length")
    columns = ", ".join(transform.get("input_columns") or [])
    return f"{transform['processor']} of {columns}" + (f", cut at {limit} tokens" if limit else "")


def _columns_of_data(known: Manifest) -> str:
    columns = known.column_digests
    return f", columns {', '.join(columns)}" if columns else ""


def _target(config: Mapping[str, Any]) -> str:
    targets: Sequence[str] = config.get("target") or []
    if not targets:
        return ""
    label = {"given": "of the given label", "predicted": "of the last prediction"}.get(str(config.get("label")), "")
    others = f"; also {', '.join(targets[1:])}" if len(targets) > 1 else ""
    return f"{targets[0]} {label}".strip() + others


def _leaf(read: Mapping[str, Any]) -> str:
    if not read.get("name"):
        return ""
    shape = " \N{MULTIPLICATION SIGN} ".join(str(size) for size in read.get("element_shape") or [])
    parts = [
        "embedding of the tokens" if read.get("embedding") else "",
        "mean over channels" * bool(read.get("channels_averaged")),
    ]
    details = ", ".join(detail for detail in (*parts, f"per row {shape}" if shape else "") if detail)
    return f"{read['name']} ({details})" if details else str(read["name"])


def _snapshots(known: Manifest) -> str:
    snapshots = known.snapshots
    steps = [str(s["step"]) for s in snapshots if s.get("step") is not None]
    if not snapshots:
        return ""
    after = f", after the steps {', '.join(steps)}" if steps else ""
    return f"{len(snapshots)}{after}" + (f" ({known.thinned})" if known.thinned else "")


def _windows(known: Manifest) -> str:
    windows = known.windows
    if "early" in windows and "late" in windows:
        early, late, every = (len(windows.get(name, [])) for name in ("early", "late", "all"))
        return f"all {every}; early: the first {early}; late: the last {late}"
    return known.windows_missing or ""


def _collected(known: Manifest) -> str:
    words = {
        "replay": "from stored snapshots (replay)",
        "live": "during training (live)",
        "training": "from the passes that trained the rows (training)",
    }
    return words.get(known.collect or "", "")


def _computed(computed: Mapping[str, object], config: Mapping[str, object]) -> str:
    parts = [computed.get("device"), config.get("dtype"), computed.get("folding")]
    parts.append("torch.compile" if computed.get("torch_compile") else None)
    return ", ".join(str(part) for part in parts if part)


def _short(digest: object) -> str:
    return str(digest)[:DIGEST] if digest else ""


def _step(snapshot: Mapping[str, object]) -> str:
    return f" (step {snapshot['step']})" if snapshot.get("step") is not None else ""
