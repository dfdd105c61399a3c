"""`vog-hf compare`: agreement of two scorings of the same rows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output
from vog_hf.cli.scored_sources import one_split
from vog_hf.errors import ConfigError, RowMismatchError

if TYPE_CHECKING:
    from vog_hf.scores.vog_scores import VoGScores


@command(
    "vog-hf compare ./scores-seed-0 ./scores-seed-1",
    "vog-hf compare ./scores-resnet ./scores-vit --column vog_late --top 20",
    "vog-hf compare ./scores-a ./scores-b --json | jq .agreement.spearman",
)
def compare(
    out: Output,
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder with scores.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder with other scores of the same rows.")],
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column to rank by. Default: vog_class_normalized, else vog_normalized, else vog, else loss.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=0, metavar="INTEGER", help="Number of rows with the largest change to print.")
    ] = 10,
) -> None:
    """Compare two rankings of the same rows.

    Prints their rank correlation, the overlap of their highest and lowest rows, and the rows with the largest change of
    rank. Scores of different rows, or of the same rows in another order, are refused.
    """
    from vog_hf.evaluation import merge_rankings, rank_agreement
    from vog_hf.scores.ranking import values_to_rank

    first, second = one_split(a), one_split(b)
    require_same_rows(first, second)
    column = column or shared_ranking(first, second)
    values = {"a": values_to_rank(first, column), "b": values_to_rank(second, column)}
    scored = np.flatnonzero(np.isfinite(values["a"]) & np.isfinite(values["b"]))
    left_out = len(first) - len(scored)
    if not len(scored):
        raise ConfigError(f"no row has a finite {column} in both A and B; score the rows again, or name another column")
    values = {name: of_run[scored] for name, of_run in values.items()}
    agreement = rank_agreement(values["a"], values["b"])
    percentiles = merge_rankings(values)
    change = (percentiles["b"] - percentiles["a"]).to_numpy()
    order = np.argsort(-np.abs(change), kind="stable")[:top]
    movers = [
        {"row": int(scored[at]), **_label(first, int(scored[at])), "a": percentiles["a"][at], "b": percentiles["b"][at]}
        | {"change": float(change[at])}
        for at in order
        if change[at]
    ]
    counts = {"n_rows": len(first), "n_left_out": left_out}
    out.json({"column": column, **counts, "agreement": agreement.to_dict(), "movers": movers})
    out.heading(f"{column} of {len(scored):,} rows: A = {a}, B = {b}")
    if left_out:
        out.line(f"Left out {left_out:,} of {len(first):,} rows without a finite value in both")
    out.table(
        ["agreement", "value"], [[_in_words(str(name)), float(value)] for name, value in agreement.items()], digits=3
    )
    if top and not movers:
        out.heading("No row changed its rank", after=True)
    if movers:
        out.heading("Rows with the largest change, in percentiles of the ranking", after=True)
        headings = list(movers[0])
        out.table(headings, [[mover[name] for name in headings] for mover in movers], digits=1)


def shared_ranking(first: "VoGScores", second: "VoGScores") -> str:
    """The default column that both scorings have."""
    from vog_hf.evaluation import RANKING_COLUMNS

    names = [name for name in (*RANKING_COLUMNS, "loss") if name in first.column_names and name in second.column_names]
    if not names:
        raise ConfigError(
            f"A has the columns {', '.join(first.column_names)}, B {', '.join(second.column_names)}: none of "
            f"{', '.join(RANKING_COLUMNS)} or loss is in both; name one with --column"
        )
    return names[0]


def require_same_rows(first: "VoGScores", second: "VoGScores") -> None:
    """Raise RowMismatchError if two scorings do not cover the same rows in the same order."""
    from vog_hf.scores.ranking import is_skipped

    if len(first) != len(second):
        raise RowMismatchError(
            f"A has scores of {len(first):,} rows and B of {len(second):,} rows; compare scores of the same rows"
        )
    others = second.identity.differing(first.identity)  # both ways: one may be of an earlier version
    differing = [name for name in first.identity.differing(second.identity) if name in others]
    labeled = "label" in first.column_names and "label" in second.column_names
    if not differing and labeled:
        both = ~(is_skipped(first) | is_skipped(second))  # a skipped row has no label
        differing = [] if np.array_equal(first.column("label")[both], second.column("label")[both]) else ["label"]
    if differing:
        raise RowMismatchError(
            f"A and B are scores of other rows, or of the same rows in another order: their column {differing[0]!r} "
            "differs; compare scores of the same rows"
        )


def _label(scores: "VoGScores", row: int) -> dict[str, Any]:
    """The label of a row, as a class name if known."""
    if "label" not in scores.column_names:
        return {}
    label, names = scores.column("label")[row], scores.facts.class_names or []
    if np.issubdtype(type(label), np.integer) and 0 <= label < len(names):
        return {"label": names[label]}
    return {"label": label.item()}


def _in_words(name: str) -> str:
    """A readable name for ``overlap_top_5`` and the like."""
    kind, _, rest = name.partition("_")
    if kind != "overlap":
        return "rank correlation (Spearman)"
    tail, _, percent = rest.partition("_")
    return f"shared rows of the {'highest' if tail == 'top' else 'lowest'} {percent} %"
