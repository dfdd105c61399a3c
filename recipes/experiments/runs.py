"""Run recipes and experiments as runs.toml lists them, record the results, and write the pages of results/.

    python recipes/experiments/runs.py run label_noise --data FOLDER --hardware "two CPU cores; one thread"
    python recipes/experiments/runs.py table

`run` starts each program through its own command line, once per seed, in the folder --data: the data files of runs.toml
are named relative to it, as a user would name them. The figures of the table are the "headline" ({name: number}) of the
results.json that an experiment leaves in its output folder; of a recipe without one they are computed from its scores.
Its "details", if any, are recorded too; results/regimes.md shows them. After each seed results/<name>.json is written,
and at the end the pages. `table` writes the pages alone.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path

import numpy as np
from regime_tables import make_regimes_page
from scipy.stats import t as student_t

HERE = Path(__file__).resolve().parent
RECIPES, RUNS, RESULTS = HERE.parent, HERE / "runs.toml", HERE / "results"
PAGE, REGIMES = RESULTS / "README.md", RESULTS / "regimes.md"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "timm", "peft", "trl", "vog-hf")
SEEDS = [0, 1, 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run recipes, record the results, write the table")
    run.add_argument("names", nargs="*", help="runs of runs.toml; default: all")
    run.add_argument("--data", required=True, type=Path, help="folder with the data files that runs.toml names")
    run.add_argument("--hardware", required=True, help="what it runs on, in words; goes into the table")
    run.add_argument("--seeds", nargs="+", type=int, help="only these; default: those of runs.toml, else 0, 1 and 2")
    run.add_argument("--output", type=Path, help="keep what the recipes write in this folder; default: it is dropped")
    commands.add_parser("table", help="write the pages of results/ from the records")
    args = parser.parse_args()
    if args.command == "run":
        unknown = sorted(set(args.names) - set(read_runs()))
        if unknown or not args.data.is_dir():
            sys.exit(f"error: not in runs.toml: {unknown}" if unknown else f"error: --data {args.data} is not a folder")
        for name in args.names or read_runs():
            record_run(name, args)
    write_pages()


def write_pages():
    """Write results/README.md, and results/regimes.md of the records with details."""
    PAGE.write_text(make_page(), encoding="utf-8")
    REGIMES.write_text(make_regimes_page(detailed_records()), encoding="utf-8")


def detailed_records():
    """Records that hold details, by name, in the order of runs.toml."""
    paths = {name: RESULTS / f"{name}.json" for name in read_runs()}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}
    return {name: record for name, record in found.items() if "details" in record["seeds"][0]}


def read_runs():
    """The runs of runs.toml by name: recipe, arguments, seeds, and what the paper claims of the figures."""
    return tomllib.loads(RUNS.read_text(encoding="utf-8"))


def record_run(name, args):
    """Run a recipe once per seed; results/<name>.json is written after each, so that a failure costs one seed.

    Seeds that were recorded today by the same command, on the same hardware and versions, stay in the record.
    """
    run, path = read_runs()[name], RESULTS / f"{name}.json"
    how = {
        "recipe": run["recipe"],
        "arguments": run["arguments"],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "hardware": args.hardware,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    if "first" in run:
        prepare(run["first"], args.data)
    with tempfile.TemporaryDirectory() as dropped:
        for seed in args.seeds or run.get("seeds", SEEDS):
            output = (args.output or Path(dropped)).resolve() / f"{name}-seed-{seed}"
            found = {"seed": seed, **run_once(run, seed, output, args.data)}
            print(f"{name}, seed {seed}: {json.dumps(found)}", flush=True)
            before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            kept = before.pop("seeds", []) if before.items() >= how.items() else []
            seeds = sorted([found, *(other for other in kept if other["seed"] != seed)], key=itemgetter("seed"))
            RESULTS.mkdir(exist_ok=True)
            path.write_text(json.dumps({**how, "seeds": seeds}, indent=2) + "\n", encoding="utf-8")


def prepare(first, data):
    """Make the folder that a run reads, in the data folder, if it is not there."""
    output = data / first["output"]
    if not output.exists():
        part = output.with_name(output.name + ".part")
        start(first, part.resolve(), data)
        part.rename(output)


def start(run, output, data, *options):
    """A recipe as a user would start it: its own command line, in the data folder."""
    command = [sys.executable, str(RECIPES / run["recipe"]), *run["arguments"], *options]
    done = subprocess.run([*command, "--output_dir", str(output)], cwd=data, check=False)  # noqa: S603 (our own recipe)
    if done.returncode:
        sys.exit(f"error: {shlex.join(command)} ended with {done.returncode}; nothing was recorded of it")


def run_once(run, seed, output, data):
    """Seconds by the clock, the headline, and details for the page by regime if the experiment has them."""
    started = time.perf_counter()
    start(run, output, data, "--seed", str(seed))
    seconds = time.perf_counter() - started
    path = output / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"headline": figures_of(output)}
    headline = results.get("headline")
    if not headline or not all(isinstance(v, int | float) and math.isfinite(v) for v in headline.values()):
        sys.exit(f"error: the headline of {run['recipe']} must be names and finite numbers, got {headline}")
    details = {"details": results["details"]} if "details" in results else {}
    return {"seconds": round(seconds, 1), "headline": headline, **details}


def figures_of(output):
    """The figures of a recipe: accuracy, error at both ends of two rankings, and what finds rows known to be wrong."""
    import pandas as pd  # here, so that the table is written at once

    from vog_hf.evaluation import auroc, error_by_decile, rank_correlations

    table = pd.read_parquet(output / "scored.parquet")
    evaluated = output / "eval_results.json"
    figures = {}
    if "label" in table:
        figures["accuracy on the training rows"] = float((table["prediction"] == table["label"]).mean())
    if evaluated.is_file():
        figures["accuracy on the evaluation rows"] = json.loads(evaluated.read_text(encoding="utf-8"))["eval_accuracy"]
    for column in ("vog_class_normalized", "loss") if "label" in table else ():
        error = list(error_by_decile(table[column], 1 - table["correctness"])["error"])
        figures |= {f"training error, lowest tenth by {column}": error[0]}
        figures |= {f"training error, highest tenth by {column}": error[-1]}
    if "is_corrupted" in table:
        names = [name for name in ("vog", "vog_answer", "gradient_magnitude", "loss") if name in table]
        figures |= {f"AUROC of high {name} for wrong rows": auroc(table[name], table["is_corrupted"]) for name in names}
    correlations = rank_correlations(table[["vog", "gradient_magnitude", "loss"]]).loc["vog"].drop("vog").dropna()
    return figures | {f"rank correlation of vog with {name}": float(value) for name, value in correlations.items()}


def versions():
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


ABOUT = """# Results

Written by [runs.py](../runs.py) from the records in this folder: mean and range (lowest to highest) over the seeds, and
what became of the paper's claim in these runs. A claim holds, or is contradicted, if the 95 % interval of the mean
difference over the seeds (in brackets; Student's t) lies on one side of 0. Times are by the clock, two programs at a
time, each on a core of its own.

"""


def make_page():
    """Write the recorded runs in the order of runs.toml as Markdown: results, and the command of each."""
    lines = ["| run | on | time per seed | result | the paper's claim, in this run |", "|---|---|---|---|---|"]
    commands = []
    for name, run in read_runs().items():
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if (record["recipe"], record["arguments"]) != (run["recipe"], run["arguments"]):
            sys.exit(f"error: results/{name}.json is of other arguments than runs.toml has; run it again")
        lines.append(f"| {' | '.join(cells(name, run, record))} |")
        threads = f"OMP_NUM_THREADS={record['threads']} " if record["threads"] else ""
        commands.append(f"# {name}")
        if "first" in run:
            first = shlex.join([*run["first"]["arguments"], "--output_dir", run["first"]["output"]])
            commands.append(f"{threads}python recipes/{run['first']['recipe']} {first}")
        commands.append(f"{threads}python recipes/{run['recipe']} {shlex.join(run['arguments'])}".strip())
    return "\n".join([ABOUT + lines[0], *lines[1:], "", "```bash", *commands, "```", ""])


def cells(name, run, record):
    """A line of the table."""
    seeds = record["seeds"]
    minutes = [seed["seconds"] / 60 for seed in seeds]
    figures = {figure: [seed["headline"][figure] for seed in seeds] for figure in seeds[0]["headline"]}
    return [
        f"[{name}](../../{run['recipe']}): {run['about']}",
        f"{record['hardware']}, {record['date']}",
        f"{in_words(minutes, '{:.1f}'.format)} min, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}",
        "<br>".join(f"{figure}: {in_words(values)}" for figure, values in figures.items()),
        "<br>".join(judged(claim, figures) for claim in run.get("claims", [])) or "none",
    ]


def in_words(values, form=None):
    """Mean, and the range over the seeds."""
    form = form or number
    if len(values) == 1:
        return form(values[0])
    return f"{form(sum(values) / len(values))} ({form(min(values))} to {form(max(values))})"


def number(value):
    """Three digits; whole numbers as they are, and small ones by their size."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def judged(claim, figures):
    """Whether a figure lies above (below) what the claim wants it to, and by how much.

    It holds, or is contradicted, where the 95 % interval of the mean difference over the seeds (Student's t) lies on
    one side of 0.
    """
    says_above = "above" in claim
    bound = claim["above"] if says_above else claim["below"]
    values = figures[claim["figure"]]
    bounds = figures[bound] if isinstance(bound, str) else [bound] * len(values)
    margins = [value - limit for value, limit in zip(values, bounds, strict=True)]
    mean, n = sum(margins) / len(margins), len(margins)
    found = f"{claim['figure']}, less {bound}: {mean:+.3f}"
    if n == 1:
        return f"{claim['says']}: one seed, cannot be told; {found}"
    half = student_t.ppf(0.975, n - 1) * np.std(margins, ddof=1) / math.sqrt(n)
    if abs(mean) <= half:
        verdict = "cannot be told from these seeds"
    else:
        verdict = "holds" if (mean > 0) == says_above else "**contradicted**"
    return f"{claim['says']}: {verdict}; {found} ({mean - half:+.3f} to {mean + half:+.3f})"


if __name__ == "__main__":
    main()
