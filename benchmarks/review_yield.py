"""Simulate reviews of rankings with planted wrong rows, and count how often the intervals of the yield hold the truth.

    python benchmarks/review_yield.py [--reviews 200] [--rows 5000]

A review looks at the first 40 to 1,000 rows of a queue, in turn, with and without one random row in five. "cover": the
share of intervals that hold the true number. "unclear": share of the reviews without an interval. The intervals are
nominally 95 % and should cover at least 90 % of every line. "at least" and "at most" are the limits of a total that is
extrapolated from the ranking; "at most" supposes that the share of wrong rows does not rise further down. The last
ranking breaks that on purpose and is not held to it.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np

from vog_hf.evaluation import ReviewYield, review_yield
from vog_hf.review.random_rows import with_random_rows

DISTANCES = {"AUROC 0.50": 0.0, "AUROC 0.70": 0.742, "AUROC 0.90": 1.812, "AUROC 0.97": 2.66}
HUMP, HALF = "hump, not monotone", "half of them hidden"
RANKINGS = (*DISTANCES, HALF, HUMP)
RATES = (0.02, 0.10, 0.30)
SHOWN = (40, 60, 150, 400, 1000)
RANDOM_SHARE = 0.2
TARGET = 0.90


@dataclass(frozen=True)
class Cell:
    """Coverage of one kind of ranking at one rate of wrong rows; shares are 0..1, NaN where nothing was claimed."""

    ranking: str
    rate: float
    next_cover: float
    next_unclear: float
    next_width: float
    at_least: float
    at_most: float
    total_cover: float
    total_unclear: float
    total_width: float

    @property
    def held_to(self) -> dict[str, float]:
        """The coverages that should reach the target, by name."""
        named = {"next": self.next_cover, "total": self.total_cover, "at least": self.at_least}
        return named if self.ranking == HUMP else named | {"at most": self.at_most}


def ranked_rows(ranking: str, rate: float, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """``[rows]``, true for wrong rows, in the order of a simulated ranking, top first."""
    wrong = np.zeros(n_rows, dtype=bool)
    wrong[: round(rate * n_rows)] = True
    scores = rng.normal(size=n_rows)
    if ranking == HUMP:  # most of the wrong rows lie around the highest 15 %, and none at the top
        scores[wrong] = rng.normal(1.04, 0.35, size=int(wrong.sum()))
    elif ranking == HALF:  # every other wrong row looks like a right one
        scores[wrong] += 3.0 * (np.arange(wrong.sum()) % 2)
    else:
        scores[wrong] += DISTANCES[ranking]
    return wrong[np.argsort(-scores)]


def reviewed(wrong: np.ndarray, n_shown: int, share: float, rng: np.random.Generator) -> ReviewYield:
    """The yield of a review of the first rows of the queue, with a share of random rows."""
    n_rows = len(wrong)
    shown, is_random = with_random_rows(np.arange(n_rows), rng.permutation(n_rows), share)
    known, random = np.full(n_rows, np.nan), np.zeros(n_rows, dtype=bool)
    known[shown[:n_shown]] = wrong[shown[:n_shown]]
    random[shown[:n_shown][is_random[:n_shown]]] = True
    return review_yield(known, random=random)


def simulate(ranking: str, rate: float, n_reviews: int, n_rows: int) -> Cell:
    """Coverage over simulated reviews, each without random rows for the ranking and with them for the total."""
    claims: dict[str, list[float]] = {name: [] for name in ("next", "width", "low", "high", "total", "total width")}
    for number in range(n_reviews):
        rng = np.random.default_rng([number, round(1000 * rate), RANKINGS.index(ranking)])
        wrong, n_shown = ranked_rows(ranking, rate, n_rows, rng), SHOWN[number % len(SHOWN)]
        for share in (0.0, RANDOM_SHARE):
            found = reviewed(wrong, n_shown, share, rng)
            if found.next is not None and share == 0:
                true = int(wrong[n_shown : n_shown + found.next.rows].sum())
                claims["next"].append(found.next.low <= true <= found.next.high)
                claims["width"].append(found.next.high - found.next.low)
            if found.basis == "from random rows":
                claims["total"].append(found.total.low <= wrong.sum() <= found.total.high)
                claims["total width"].append(found.total.high - found.total.low)
            elif found.total is not None and share == 0:
                claims["low"].append(found.total.low <= wrong.sum())
                if found.total.high is not None:
                    claims["high"].append(wrong.sum() <= found.total.high)
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in claims.items()}
    return Cell(
        ranking,
        rate,
        next_cover=means["next"],
        next_unclear=1 - len(claims["next"]) / n_reviews,
        next_width=means["width"],
        at_least=means["low"],
        at_most=means["high"],
        total_cover=means["total"],
        total_unclear=1 - len(claims["total"]) / n_reviews,
        total_width=means["total width"],
    )


def table(cells: list[Cell]) -> str:
    """The cells as a Markdown table."""
    heads = ["ranking", "wrong", "next 100: cover", "unclear", "width", "at least", "at most"]
    heads += ["total: cover", "unclear", "width"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for cell in cells:
        shares = (cell.next_cover, cell.next_unclear, cell.at_least, cell.at_most, cell.total_cover, cell.total_unclear)
        cover, unclear, least, most, total, total_unclear = ("-" if np.isnan(s) else f"{100 * s:.0f} %" for s in shares)
        most = f"({most})" if cell.ranking == HUMP else most
        widths = [f"{width:,.0f}" for width in (cell.next_width, cell.total_width)]
        fields = [cell.ranking, f"{100 * cell.rate:.0f} %", cover, unclear, widths[0], least, most]
        lines.append("| " + " | ".join([*fields, total, total_unclear, widths[1]]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Simulate all rankings and rates, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=200, help="simulated reviews of each ranking and rate")
    parser.add_argument("--rows", type=int, default=5_000, help="rows of a simulated dataset")
    options = parser.parse_args()
    start = time.perf_counter()
    cells = [simulate(ranking, rate, options.reviews, options.rows) for ranking in RANKINGS for rate in RATES]
    print(table(cells))
    print(f"\n{options.reviews} reviews a line, {options.rows:,} rows each, {time.perf_counter() - start:.0f} s")
    missed = [f"{c.ranking}, {c.rate:g}: {n}" for c in cells for n, s in c.held_to.items() if s < TARGET]
    print("Missed: " + ("; ".join(missed) or "none"))


if __name__ == "__main__":
    main()
