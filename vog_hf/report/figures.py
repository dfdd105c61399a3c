"""The figures of the report as inline SVG: drawn by matplotlib, colored by the style sheet of the page.

What is drawn in one of the placeholder colors below takes the page's color of that name, so that one drawing is
legible on light and on dark. Texts stay texts.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from vog_hf.evaluation.learning_patterns import PATTERN_MEANINGS
from vog_hf.scores.formatting import printable, shortened
from vog_hf.scores.pictures import draw_data_map

INK, MUTED, GRID, HIGH, LOW, ACCENT = (f"#00000{n}" for n in range(1, 7))
PAGE_COLORS = {INK: "ink", MUTED: "muted", GRID: "grid", HIGH: "high", LOW: "low", ACCENT: "accent"}
# From low to high; its middle luminance shows on white and on near-black alike.
MAP_COLORS = LinearSegmentedColormap.from_list("vog_hf", ["#2f7fd0", "#8d9299", "#e0741f"])

WIDTH, HEIGHT = 400, 270  # points; the page shows one at 330 to 480 pixels of width
MAX_MAP_POINTS = 4_000
MAX_BARS = 30  # classes in the chart; the table holds all
HISTOGRAM_BINS = 40
SKEWED = 20  # times the median: where the largest value lies beyond, the histogram's axis is logarithmic

PATTERN_SHARES = {  # legend, and words of the caption
    "known_wrong": ("known to be mislabeled", "known to be mislabeled (is_corrupted)"),
    "error": ("last prediction wrong", "with a last prediction that is not the label"),
}

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 13,
    "font.family": "sans-serif",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 12,
}


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    Attributes:
        svg: The drawing, with title and description for those who cannot see it.
        title: Its heading.
        caption: Description of the figure.
        numbers: The values behind it, None where the page has them elsewhere.
    """

    svg: Markup
    title: str
    caption: str
    numbers: pd.DataFrame | None = None


def decile_figure(deciles: pd.DataFrame, column: str, ident: str) -> Drawing:
    """Error rate by decile of a score with its 95 % interval, from `vog_hf.evaluation.error_by_decile`."""
    overall = float(np.average(deciles["error"], weights=deciles["rows"]))
    with _drawing() as (figure, axes):
        axes.axhline(overall, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        _with_intervals(axes, deciles, "error", color=ACCENT, marker="o")
        _decile_axes(axes, column)
        first, last = deciles["error"].iloc[0], deciles["error"].iloc[-1]
        title = "Error by decile of the ranking"
        caption = (
            f"Error rate (given label vs. last prediction) in each decile of the labeled rows by "
            f"{column}: {first:.1%} in the lowest, {last:.1%} in the highest, {overall:.1%} over all (dashed). "
            "Bars: 95 % Wilson intervals."
        )
        return Drawing(_svg(figure, ident, title, caption), title, caption, deciles)


def early_late_figure(table: pd.DataFrame, ident: str) -> Drawing:
    """Error rate by decile of early and of late VoG, from `vog_hf.evaluation.early_late_table`."""
    with _drawing() as (figure, axes):
        for window, color, marker, shift in (("early", LOW, "s", -0.12), ("late", HIGH, "o", 0.12)):
            _with_intervals(axes, table, f"error_{window}", color=color, marker=marker, shift=shift, label=window)
        _decile_axes(axes, "VoG of the window")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2)
        title = "Early against late"
        parts = [
            f"{window} VoG {table[f'error_{window}'].iloc[0]:.1%} in the lowest and "
            f"{table[f'error_{window}'].iloc[-1]:.1%} in the highest decile"
            for window in ("early", "late")
        ]
        caption = f"The same error by the VoG of the first and of the last snapshots only: {'; '.join(parts)}."
        return Drawing(_svg(figure, ident, title, caption), title, caption, table)


def stability_figure(table: pd.DataFrame, words: str, ident: str) -> Drawing:
    """Stability of the ranking with each snapshot, from `vog_hf.evaluation.ranking_stability`."""
    lines = (
        ("spearman_final", "Spearman, with the last ranking", MUTED, "^"),
        ("spearman_previous", "Spearman, with one snapshot less", LOW, "s"),
        ("overlap_top_10_previous", "highest 10 % shared, with one less", HIGH, "o"),
    )
    with _drawing(height=HEIGHT + 36) as (figure, axes):
        for name, label, color, marker in lines:
            axes.plot(table["snapshots"], table[name], color=color, marker=marker, markersize=5, label=label)
        axes.set_ylim(min(0.0, float(np.nanmin(table[[line[0] for line in lines]]))) - 0.04, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("snapshots used")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, labelspacing=0.2)
        title = "Would more snapshots change the ranking?"
        return Drawing(_svg(figure, ident, title, words), title, words, table)


def data_map_figure(
    variability: npt.NDArray[np.generic],
    confidence: npt.NDArray[np.generic],
    vog: npt.NDArray[np.generic],
    ident: str,
    *,
    name: str = "VoG",
) -> Drawing:
    """The data map of Swayamdipta et al. 2020 colored by VoG; drawn as pixels, with at most `MAX_MAP_POINTS` rows."""
    with _drawing(height=HEIGHT + 16) as (figure, axes):
        which = draw_data_map(
            axes, variability, confidence, vog, colors=MAP_COLORS, max_points=MAX_MAP_POINTS, name=name
        )
        axes.xaxis.set_major_locator(MaxNLocator(4))
        title = "Data map"
        caption = (
            f"Each point is a row ({which}): upwards the mean probability of its label over the snapshots, to the "
            f"right how much that varied; blue rows have low {name}, orange rows high."
        )
        return Drawing(_svg(figure, ident, title, caption), title, caption)


def histogram_figure(vog: npt.NDArray[np.float64], unit: str, ident: str, *, name: str = "VoG") -> Drawing:
    """Distribution of VoG, or of what is named; on a logarithmic axis if a few rows are far above the others."""
    positive = vog[vog > 0]
    median = float(np.median(vog))
    logarithmic = len(positive) == len(vog) and float(vog.max()) > SKEWED * median
    low, high = float(vog.min()), float(vog.max())
    high = high if high > low else low + max(abs(low), 1.0) * 1e-3
    bins = np.geomspace(low, high, HISTOGRAM_BINS + 1) if logarithmic else np.linspace(low, high, HISTOGRAM_BINS + 1)
    with _drawing() as (figure, axes):
        axes.hist(vog, bins=[float(edge) for edge in bins], color=ACCENT, histtype="stepfilled")
        axes.axvline(median, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(
                StrMethodFormatter("{x:g}")
            )  # the usual one writes formulas, shown as they are
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(f"{name.lower()} ({shortened(unit, 40)})")
        axes.set_ylabel("rows")
        title = f"Distribution of {name}"
        of = name if name == "VoG" else name.capitalize()
        caption = (
            f"{of} of {len(vog):,} rows: from {low:.3g} to {float(vog.max()):.3g}, median {median:.3g} (dashed)"
            f"{'; logarithmic axis' if logarithmic else ''}."
        )
        return Drawing(_svg(figure, ident, title, caption), title, caption)


def class_figure(classes: pd.DataFrame, names: Sequence[object], ident: str, *, name: str = "VoG") -> Drawing:
    """Mean VoG (or what is named) of each class and its spread, highest first; `vog_hf.evaluation.class_table`."""
    order = np.argsort(-classes["vog_mean"].to_numpy(), kind="stable")
    shown = order if len(order) <= MAX_BARS else np.concatenate([order[: MAX_BARS // 2], order[-(MAX_BARS // 2) :]])
    means, spread = (classes[column].to_numpy()[shown] for column in ("vog_mean", "vog_std"))
    place = np.arange(len(shown))
    with _drawing(height=max(130, 70 + 19 * len(shown))) as (figure, axes):
        axes.barh(place, means, color=ACCENT, height=0.62)
        axes.hlines(place, np.maximum(means - spread, 0), means + spread, color=INK, linewidth=1)
        axes.set_yticks(place, [shortened(printable(str(names[i])), 18) for i in shown])
        axes.invert_yaxis()
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(f"mean {name.lower()}")
        cut = f" The {MAX_BARS // 2} highest and lowest of {len(order)} classes." if len(shown) < len(order) else ""
        title = f"{name if name == 'VoG' else name.capitalize()} by class"
        normalized = (
            "Rankings and galleries use VoG normalized within the class, so these differences do not affect them."
        )
        caption = (
            f"Mean {name} of the rows of each given class; lines: one standard deviation of its rows to either side."
            f"{cut}{f' {normalized}' if name == 'VoG' else ''}"
        )
        return Drawing(_svg(figure, ident, title, caption), title, caption)


def learning_pattern_figure(table: pd.DataFrame, ident: str) -> Drawing:
    """Rows by learning pattern, from `vog_hf.evaluation.learning_pattern_table`; colored: known wrong, else errors."""
    share = "known_wrong" if "known_wrong" in table else "error"
    legend, words = PATTERN_SHARES[share]
    rows, place = table["rows"].to_numpy(), np.arange(len(table))
    colored = rows * table[share].fillna(0).to_numpy()
    with _drawing(height=HEIGHT - 20) as (figure, axes):
        axes.barh(place, rows, color=ACCENT, height=0.62, label="all rows")
        axes.barh(place, colored, color=HIGH, height=0.62, label=legend)
        for at, count, part in zip(place, rows, table[share], strict=True):
            text = f"{count:,}" + (f" ({part:.0%})" if count else "")
            axes.text(count + 0.015 * max(1, rows.max()), float(at), text, va="center", fontsize=12, color=INK)
        axes.set_yticks(place, [str(name).replace("_", " ") for name in table["pattern"]])
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.set_xlim(0, 1.3 * max(1, rows.max()))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("rows")
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2)
        title = "When rows were learned"
        meanings = "; ".join(f"{name.replace('_', ' ')}: {meaning}" for name, meaning in PATTERN_MEANINGS.items())
        caption = f"Rows by learning pattern, and the share of them {words}. {meanings[0].upper()}{meanings[1:]}."
        return Drawing(_svg(figure, ident, title, caption), title, caption, table)


# Drawing


@contextmanager
def _drawing(height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure with one pair of axes in the report's style; restores the settings of matplotlib."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(visible=True, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        yield figure, axes


def _with_intervals(
    axes: Axes, table: pd.DataFrame, name: str, *, color: str, marker: str, shift: float = 0.0, label: str | None = None
) -> None:
    place = table["decile"].to_numpy() + shift
    axes.vlines(place, table[f"{name}_low"], table[f"{name}_high"], color=color, linewidth=2, alpha=0.55)
    axes.plot(place, table[name], color=color, marker=marker, markersize=5.5, linewidth=1.5, label=label)


def _decile_axes(axes: Axes, column: str) -> None:
    axes.set_xticks(range(1, 11))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if axes.get_ylim()[1] > 0.05 else None))
    axes.set_xlabel(f"decile of {shortened(column, 30)} (1 = lowest)")
    axes.set_ylabel("error")


def _svg(figure: Figure, ident: str, title: str, description: str) -> Markup:
    """The figure as an element of the page: with a description, in the page's colors, and with unique ids."""
    target = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": ident}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's browser chooses the font
        figure.savefig(target, format="svg", dpi=144, metadata={"Date": None})
    root = ET.fromstring(target.getvalue())  # noqa: S314 (matplotlib's own output, whose texts it has escaped)
    for child in [child for child in root if child.tag.endswith("metadata")]:
        root.remove(child)
    _rename(root, ident)
    _recolor(root)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{ident}-title {ident}-desc", "class": "figure"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{SVG}}}{tag}", {"id": f"{ident}-{tag}"})
        element.text = printable(text)
        root.insert(place, element)
    ET.register_namespace("", SVG)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 (serialized by ElementTree, which escapes texts)


def _rename(root: ET.Element, ident: str) -> None:
    """Drop ids without references, make the others unique to the figure, and link images without xlink."""
    text = " ".join(value for element in root.iter() for value in element.attrib.values())
    used = set(re.findall(r"url\(#([^)]+)\)", text))
    for element in root.iter():
        link = element.attrib.pop(XLINK, None)
        if link is not None:
            element.set("href", link)
            used |= {link[1:]} if link.startswith("#") else set()
    for element in root.iter():
        if element.get("id") in used:
            element.set("id", f"{ident}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name == "href" and value.startswith("#"):
                element.set(name, f"#{ident}-{value[1:]}")
            elif "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{ident}-"))


def _recolor(root: ET.Element) -> None:
    """Replace placeholder colors by those of the page, and leave fonts to the page."""
    for element in root.iter():
        style = element.get("style")
        if style:
            style = re.sub("#00000[1-6]", lambda match: f"var(--{PAGE_COLORS[match[0]]})", style)
            style = re.sub(r"font-family:[^;]*;?\s*|font-variant: normal;?\s*", "", style)
            element.set("style", re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", style))
