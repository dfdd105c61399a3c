"""(not a program) The page results/regimes.md: tables of the experiments on fine-tuned weights and all of CIFAR-10.

`runs.py` writes it from the "details" that those experiments leave in their records.
"""

import numpy as np

KINDS = {
    "pretrained_image": "EfficientNet-Lite0 (ImageNet) fine-tuned, images",
    "pretrained_text": "MiniLM-L6 fine-tuned, texts",
    "scratch_digits": "a small network from scratch, digits",
}
# Rankings of the first table: name in the record, name on the page.
RANKINGS = {
    "loss": "mean loss",
    "confidence": "mean confidence, low",
    "margin": "mean margin, low",
    "el2n": "EL2N",
    "csg": "CSG (energy of the gradient)",
    "vog": "VoG of the logit",
    "vog_class_normalized": "VoG of the logit, class-normalized",
    "vog_early": "VoG of the logit, early",
    "vog_late": "VoG of the logit, late",
    "vog_loss": "VoG of the loss",
    "gradient_magnitude": "mean gradient of the logit",
    "forgetting": "forgetting events",
    "variability": "variability",
    "confidence after snapshot 1": "confidence after the first snapshot, low",
    "confidence at the end": "confidence at the end, low",
    "loss at the first visit": "loss at the first visit",
    "loss at the first visit, less its neighbors'": "loss at the first visit, less that of its neighbors",
    "loss at the last visit": "loss at the last visit",
    "mean loss at the visits": "mean loss at the visits (no extra pass)",
}
HALVES = {
    "confidence at the end (two halves)": "two halves: confidence at the end, low",
    "loss (two halves)": "two halves: mean loss",
    "loss and two halves": "mean loss and two halves (confidence at the end), mean rank",
    "csg (scored halves)": "two halves: CSG",
    "vog (scored halves)": "two halves: VoG of the logit",
    "vog_loss (scored halves)": "two halves: VoG of the loss",
}
FIVE_FOLD = {"five-fold self-confidence": "five-fold self-confidence (cleanlab), low"}
SCORED = "one training", "its scores"
WITHOUT_GRADIENTS = ("loss", "confidence", "margin", "el2n", "forgetting", "variability")
WITHOUT_GRADIENTS += ("confidence after snapshot 1", "confidence at the end")
COSTS = {
    **dict.fromkeys(WITHOUT_GRADIENTS, ("one training", "its companions")),
    "loss at the first visit": ("one training",),
    "loss at the first visit, less its neighbors'": ("one training",),
    "loss at the last visit": ("one training",),
    "mean loss at the visits": ("one training",),
    "loss and two halves": ("one training", "its companions", "two halves"),
    "confidence at the end (two halves)": ("two halves",),
    "loss (two halves)": ("two halves",),
    "csg (scored halves)": ("two halves with snapshots", "their scores"),
    "vog (scored halves)": ("two halves with snapshots", "their scores"),
    "vog_loss (scored halves)": ("two halves with snapshots", "their scores"),
    "five-fold self-confidence": ("cross-validation",),
}
SUBSETS = "fewer_snapshots_"  # begins the names of runs that score subsets of the snapshots
SUBSET_REGIMES = {
    "scratch": "images from scratch",
    "image": "images fine-tuned",
    "text": "texts fine-tuned",
    "audio": "sounds from scratch",
}
SUBSET_COLUMNS = ("vog", "vog_loss", "loss", "csg")
SUBSET_MEASURES = ("Spearman", "Share of the top 5 % that both have")
ABOUT = """# Results by regime

Written by [runs.py](../runs.py) from the records in this folder; means over the seeds. What they say in plain words:
[../README.md](../README.md). Commands: [README.md](README.md).

"""


def make_regimes_page(records):
    """Tables of the records (by name) as Markdown."""
    parts = []
    for kind, title in KINDS.items():
        runs = {name: record for name, record in records.items() if name.startswith(kind)}
        if runs:
            parts += [f"## Wrong labels: {title}", "", *hardware(runs), "", *noise_table(runs), ""]
        for name, record in runs.items():
            if "five-fold self-confidence" in record["seeds"][0]["details"]["columns"]:
                parts += [f"### Against cross-validation: {name}", "", *cost_table(record), ""]
    for name, record in records.items():
        if name.startswith("full_cifar10"):
            parts += [
                f"## All of CIFAR-10 from scratch: {name}",
                "",
                *hardware({name: record}),
                "",
                *decile_tables(record),
            ]
    subsets = {name: record for name, record in records.items() if name.startswith(SUBSETS)}
    if subsets:
        parts += ["## Fewer snapshots", "", *hardware(subsets), "", *subset_tables(subsets)]
    return ABOUT + "\n".join(parts).rstrip() + "\n"


def hardware(runs):
    """Where and when the runs were made, as lines."""
    lines = {f"{record['hardware']}, {record['date']}" for record in runs.values()}
    return [f"Measured on: {line}." for line in sorted(lines)]


def noise_table(runs):
    """AUROC and average precision of each ranking (a line) in each run (a column)."""
    names = {**RANKINGS, **HALVES, **FIVE_FOLD}
    kinds = [name.split("_", 2)[2].replace("_0", "_").replace("_", " ") for name in runs]
    heads = [f"{kind} % ({seeds_in_words(run)})" for kind, run in zip(kinds, runs.values(), strict=True)]
    lines = ["AUROC / average precision / recall at the number of wrong rows; high = wrong unless it says low.", ""]
    lines += [table_line(["ranking", *heads]), table_line(["---"] * (len(heads) + 1))]
    for column, title in names.items():
        found = [mean_figures(run, column) for run in runs.values()]
        if any(figures is not None for figures in found):
            lines.append(table_line([title, *("" if f is None else " / ".join(map(three, f)) for f in found)]))
    wrong = [
        f"{run['seeds'][0]['details']['wrong']} of {run['seeds'][0]['details']['rows']:,}" for run in runs.values()
    ]
    return [*lines, table_line(["wrong rows", *wrong])]


def cost_table(record):
    """Figures and cost of each ranking of a run, relative to five trainings."""
    lines = [table_line(["ranking", "AUROC", "average precision", "recall", "computing time"]), table_line(["---"] * 5)]
    for column, title in {**FIVE_FOLD, **RANKINGS, **HALVES}.items():
        found = mean_figures(record, column)
        if found is not None:
            lines.append(table_line([title, *map(three, found), f"{cost(record, column):.0%}"]))
    return lines


def cost(record, column):
    """Computing time of what a column needs, as a share of that of the cross-validation."""
    shares = []
    for seed in record["seeds"]:
        seconds = seed["details"]["cpu_seconds"]
        shares.append(sum(seconds[part] for part in COSTS.get(column, SCORED)) / seconds["cross-validation"])
    return float(np.mean(shares))


def mean_figures(record, column):
    """AUROC, average precision and recall, mean over the seeds; None if the run does not have the column."""
    found = [seed["details"]["columns"].get(column) for seed in record["seeds"]]
    return None if None in found else np.mean(found, axis=0)


def decile_tables(record):
    """Test and training error by decile of each column; of several seeds the mean."""
    trained = [seed["details"]["record"] for seed in record["seeds"]]
    accuracy = np.mean([run["test_accuracy"] for run in trained])
    lines = [f"Test accuracy {accuracy:.4f} ({seeds_in_words(record)}), {trained[0]['epochs']} epochs.", ""]
    for rows in ("test", "training"):
        found = [seed["details"][rows] for seed in record["seeds"] if rows in seed["details"]]
        if not found:
            continue
        error = np.mean([part["error"] for part in found])
        lines += [f"Error of {found[0]['rows']:,} {rows} rows by decile (1 = lowest score); all: {error:.3f}.", ""]
        lines += [table_line(["score", *range(1, 11), "AUROC"]), table_line(["---"] * 12)]
        for name in found[0]["deciles"]:
            deciles = np.mean([part["deciles"][name] for part in found], axis=0)
            area = np.mean([part["auroc"][name] for part in found])
            lines.append(table_line([name, *map(three, deciles), three(area)]))
        lines.append("")
    return lines


def subset_tables(records):
    """Agreement of subsets of the snapshots (a line) with all of them by regime (a column); means over the seeds."""
    regimes = {name: SUBSET_REGIMES[name.removeprefix(SUBSETS)] for name in records}
    heads = [f"{title} ({seeds_in_words(records[name])})" for name, title in regimes.items()]
    subsets, lines = next(iter(records.values()))["seeds"][0]["details"]["agreement"], []
    for number, measure in enumerate(SUBSET_MEASURES):
        lines += [f"{measure}, of {' / '.join(SUBSET_COLUMNS)}:", ""]
        lines += [table_line(["snapshots of 20", *heads]), table_line(["---"] * (1 + len(heads)))]
        for subset in subsets:
            schedule, n = subset.split()
            cells = [subset_cell(record, subset, number) for record in records.values()]
            lines.append(table_line([f"{n} {schedule}", *cells]))
        lines.append("")
    return lines


def subset_cell(record, subset, number):
    """One measure (0 or 1) of all columns of a subset, mean over the seeds."""
    found = [seed["details"]["agreement"][subset] for seed in record["seeds"]]
    return " / ".join(f"{np.mean([part[name][number] for part in found]):.2f}" for name in SUBSET_COLUMNS)


def seeds_in_words(record):
    """The number of seeds of a record."""
    return f"{len(record['seeds'])} seed{'s' if len(record['seeds']) > 1 else ''}"


def three(value):
    """A figure of a table."""
    return f"{value:.3f}"


def table_line(cells):
    """A line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"
