"""The command line as a whole, and the commands that read scores: report, compare, info."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trainers
from cli_runs import MODULE, SCRIPT, launch, run
from datasets import DatasetDict

import vog_hf
from vog_hf.cli.output import Output, naming_options
from vog_hf.cli.scored_sources import open_scored
from vog_hf.cli.sources import Source, note_source
from vog_hf.errors import LabelError
from vog_hf.scores.dataset_columns import identify_rows
from vog_hf.scores.vog_scores import VoGScores

COMMANDS = ("demo", "score", "report", "review", "apply", "push", "space", "compare", "info")


def made_scores(folder, values, **manifest):
    """Saved scores of digits with a record of their dataset."""
    rows = trainers.digits(len(values))
    values = np.asarray(values, dtype=np.float32)
    columns = {"label": np.asarray(rows["label"], dtype=np.int32), "vog": values, "vog_percentile": values}
    identity = identify_rows(rows)
    described = {"data": {"columns": identity.columns}, "class_names": list("0123456789"), **manifest}
    VoGScores(columns, described, row_hash=identity.row_hash).save(folder / "scores")
    rows.save_to_disk(str(folder / "digits"))
    note_source(folder / "scores", Source(str(folder / "digits")))
    return folder / "scores"


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores of 20 digits; row i has the score i."""
    return made_scores(tmp_path_factory.mktemp("first"), np.arange(20))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Scores of the same digits in reverse order."""
    return made_scores(tmp_path_factory.mktemp("second"), [*range(1, 20), 0])


# --- the whole --------------------------------------------------------------------------------------------------------


def test_help_names_every_command_with_its_examples(capfd):
    """With or without --help, the commands are listed, each with its options and examples."""
    bare, listed = run(capfd), run(capfd, "--help")
    assert bare.code == 2
    assert listed.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in bare.stdout + bare.stderr
        assert f"\n  {name} " in listed.stdout
        shown = run(capfd, name, "-h")
        assert shown.code == 0
        assert "Options:" in shown.stdout
        assert "--debug" in shown.stdout
        assert f"\n  $ vog-hf {name}" in shown.stdout
    for code in ("0  done", "1  error", "2  usage error", "130  interrupted"):
        assert code in listed.stdout


@pytest.mark.parametrize("columns", [80, 200])
def test_help_fits_the_terminal(capfd, monkeypatch, columns):
    """Help lines fit the terminal and a readable width, and no summary of a command is cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in ([], *([name] for name in COMMANDS)):
        lines = run(capfd, *arguments, "--help").stdout.splitlines()
        assert max(map(len, lines)) <= min(columns, 120)
        assert not any(line.endswith("...") and not line.startswith(("Usage", "  $")) for line in lines)


def test_importing_the_command_line_loads_nothing_slow():
    """`vog-hf --help` is fast: it loads no large library."""
    program = "import json, sys, vog_hf.cli; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert not {"torch", "transformers", "datasets", "accelerate", "pandas", "scipy", "wandb"} & set(loaded)


def test_both_entry_points_are_the_same_command_line():
    """The script and the module print the version and end with the exit code of the command."""
    for command in (SCRIPT, MODULE):
        assert launch(command, "--version").stdout.strip() == vog_hf.__version__
        refused = launch(command, "compare", "a")
        assert refused.code == 2
        assert "Usage: vog-hf compare" in refused.stderr


def test_completion_is_there_for_the_shell():
    """Bash completes commands, options and choices."""

    def completed(words):
        variables = {"_VOG_HF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return launch(SCRIPT, **variables).stdout.split()

    assert completed("vog-hf sc") == ["score"]
    assert completed("vog-hf score --snapshot") == ["--snapshot-revision"]
    assert completed("vog-hf score --dtype bf") == ["bfloat16"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scor"], "No such command 'scor'"),
        (["info", "--jsn"], "No such option"),
        (["compare", "a"], "Missing argument 'B'"),
        (["score", "a"], "Missing option '--dataset'"),
        (["compare", "a", "b", "--top", "many"], "Invalid value for '--top'"),
        (["score", "a", "-d", "b", "--dtype", "int8"], "Invalid value for '--dtype'"),
        (["score", "a", "b", "-d", "c", "--snapshot-revision", "e"], "use one of them"),
        (["score", "a", "-d", "c", "--memory-budget", "lots"], "such as 4GiB or 500M, got 'lots'"),
        (["push", "a", "b", "--create-pr", "--revision", "c"], "leave out --revision or --create-pr"),
        (["push", "a", "b", "--card-section", "words"], "expected TITLE=TEXT, got 'words'"),
        (["report", "a", "--numbers-only", "--dataset", "b"], "Invalid value for --numbers-only: reads no dataset"),
        (["apply", "a"], "Invalid value for --output: nothing to do: give --output, --push, or both"),
    ],
)
def test_what_is_not_understood_ends_with_2(capfd, arguments, said):
    """Usage errors name the fault and point to the help; stdout stays empty."""
    done = run(capfd, *arguments)
    assert done.code == 2
    assert said in done.stderr
    assert "' for help" in done.stderr
    assert done.stdout == ""


def test_an_error_is_one_line_and_a_traceback_only_on_request(capfd, tmp_path):
    """Errors go to stderr with exit code 1, also under --json."""
    done = run(capfd, "info", tmp_path / "nowhere", "--json")
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: there is no folder ")
    assert done.stderr.count("\n") == 1
    shown = run(capfd, "info", tmp_path / "nowhere", "--debug")
    assert shown.code == 1
    assert "Traceback" in shown.stderr
    assert shown.stderr.splitlines()[-1] == done.stderr.rstrip("\n")


def test_an_error_that_nobody_expected_says_how_to_see_more(capfd, monkeypatch):
    """An unexpected exception is also reported in one line, with its type."""
    monkeypatch.setattr("vog_hf.cli.info.installed", lambda: {}["nothing"])
    done = run(capfd, "info")
    assert done.code == 1
    assert done.stderr == "Error: KeyError: 'nothing' (--debug adds the traceback)\n"


@pytest.mark.slow
def test_an_interruption_ends_with_130(tmp_path):
    """An interruption ends without a traceback."""
    process = subprocess.Popen(
        [*MODULE, "demo", "--output", str(tmp_path / "demo")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "demo" / "trainer").is_dir() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.rstrip().endswith("Interrupted.")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(scores):
    """`vog-hf info | head -1` ends silently."""
    process = subprocess.Popen(
        [*MODULE, "info", str(scores)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(60)


def test_nothing_is_colored_or_moving_without_a_terminal(capfd, scores, others):
    """Piped output has no escape codes and no progress bars."""
    for arguments in (["info", scores], ["compare", scores, others], ["info", "nowhere"]):
        done = run(capfd, *arguments)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\r" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("message", "arguments", "said"),
    [
        (
            "pass another split=, config_name= or revision=",
            ("split=", "config_name=", "revision="),
            "pass another --split, --config or revision=",
        ),
        ("got 'a b'; pass split='train'", "split='train'", "got 'a b'; pass --split 'train'"),
        ("split= names one; the split 'x' of /split=x/y", "split=", "--split names one; the split 'x' of /split=x/y"),
        (
            "/output_dir/x is full; choose another output_dir",
            "output_dir",
            "/output_dir/x is full; choose another --output",
        ),
        ("output_dir must be text, got output_dir", "output_dir", "--output must be text, got output_dir"),
        ("needs a folder: output_dir=True", "output_dir=True", "needs a folder: --output"),
        ("pass split='train'", (), "pass split='train'"),
        ("choose another folder", "output_dir=", "--output: choose another folder"),
    ],
)
def test_arguments_are_named_as_options(message, arguments, said):
    """Errors of the library name options instead of arguments, but values and paths stay unchanged."""
    with (
        pytest.raises(LabelError) as caught,
        naming_options(split="--split", config_name="--config", output_dir="--output"),
    ):
        raise LabelError(message, 7, argument=arguments)
    assert (str(caught.value), caught.value.position) == (said, 7)


def test_addresses_are_printed_as_they_are(capfd):
    """An IPv6 address in brackets is not parsed as markup."""
    Output.of(as_json=False, debug=False).notice("Whoever reaches [fe80::1] on the network can see the rows.")
    assert capfd.readouterr().err == "Whoever reaches [fe80::1] on the network can see the rows.\n"


def test_json_has_neither_nan_nor_numpy(capfd):
    """JSON has null for NaN and infinity, and plain numbers for numpy's."""
    Output.of(as_json=True, debug=False).json({"a": np.float32(0.5), "b": [np.nan, np.int64(3)], "c": float("inf")})
    assert json.loads(capfd.readouterr().out) == {"a": 0.5, "b": [None, 3], "c": None}


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_tells_how_scores_were_made_and_what_is_installed(capfd, tmp_path):
    """The options in words; the whole manifest as JSON; without scores only installed versions."""
    folder = made_scores(tmp_path, range(5), config={"target": ["logit", "loss"]}, model={"name": "me/[b]model"})
    shown = run(capfd, "info", folder).stdout
    for line in ("rows: 5", "target: logit, loss", "model: me/[b]model", f"dataset: {tmp_path / 'digits'}"):
        assert f"  {line}\n" in shown
    assert f"  vog-hf: {vog_hf.__version__}\n" in shown
    values = run(capfd, "info", folder, "--json").values
    assert values["scores"] == VoGScores.load(folder).manifest
    assert values["environment"]["vog-hf"] == vog_hf.__version__
    assert run(capfd, "info", "--json").values["scores"] is None


def test_scores_of_a_callback_are_found_by_the_folder_of_its_training(capfd, tmp_path):
    """Scores are found in the run, in its `_vog`, and in a folder per split."""
    for split in ("train", "test"):
        made_scores(tmp_path / split, range(3))
        (tmp_path / "run" / "_vog" / "scores").mkdir(parents=True, exist_ok=True)
        (tmp_path / split / "scores").rename(tmp_path / "run" / "_vog" / "scores" / split)
    for folder in (tmp_path / "run", tmp_path / "run" / "_vog"):
        assert sorted(run(capfd, "info", folder, "--json").values["scores"]) == ["test", "train"]
    assert (
        len(run(capfd, "info", tmp_path / "run" / "_vog" / "scores" / "test", "--json").values["scores"]["data"]) == 1
    )
    refused = run(capfd, "compare", tmp_path / "run", tmp_path / "run")
    assert "holds scores of the splits test, train; pass the folder of one of them" in refused.stderr


def test_scores_of_a_callback_with_one_data_set_are_found(capfd, tmp_path):
    """Scores in `_vog/scores` are found through the run or its `_vog`, by every command."""
    folder = made_scores(tmp_path, range(20))
    (tmp_path / "run" / "_vog").mkdir(parents=True)
    VoGScores.load(folder).save(tmp_path / "run" / "_vog" / "scores")
    for place in ("run", "run/_vog", "run/_vog/scores"):
        values = run(capfd, "info", tmp_path / place, "--json").values
        assert values["scores"]["class_names"] == list("0123456789")
    given = [tmp_path / "run" / "_vog", "--dataset", tmp_path / "digits"]
    done = run(capfd, "report", *given, "-o", tmp_path / "report.html")
    assert done.code == 0, done.stderr
    assert run(capfd, "compare", tmp_path / "run", folder, "--json").values["movers"] == []
    opened = open_scored(str(given[0]), dataset=str(given[2]), config=None, split=None, revision=None)
    assert (len(opened.dataset), opened.split) == (20, None)


@pytest.mark.slow
@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["script", "module"])
def test_info_in_a_process_of_its_own(command, scores):
    """--json prints one document to stdout and nothing to stderr."""
    done = launch(command, "info", scores, "--json")
    assert (done.code, done.stderr) == (0, "")
    assert done.values["scores"]["class_names"][3] == "3"


# --- compare ----------------------------------------------------------------------------------------------------------


def test_compare_measures_agreement_and_finds_what_moved(capfd, scores, others):
    """`compare` prints rank correlation, shared rows and the rows with the largest change, with class names."""
    values = run(capfd, "compare", scores, others, "--json", "--top", "3").values
    # One row falls from the last place to the first, 19 rise by one: Spearman is 1 - 6 * (19^2 + 19) / (20 * 399).
    assert values["agreement"]["spearman"] == pytest.approx(1 - 6 * (19**2 + 19) / (20 * 399))
    assert values["agreement"]["overlap_top_5"] == 0.0
    assert values["agreement"]["overlap_top_10"] == 0.5
    assert (values["column"], values["n_rows"], len(values["movers"])) == ("vog", 20, 3)
    first = values["movers"][0]
    assert (first["row"], first["label"], first["a"], first["b"], first["change"]) == (19, "9", 97.5, 2.5, -95.0)
    shown = run(capfd, "compare", scores, others).stdout
    assert "shared rows of the highest 10 %" in shown
    assert " 19  9      97.5   2.5   -95.0" in shown


def test_compare_of_scores_with_themselves(capfd, scores):
    """Equal scores agree fully, and no row changes its rank."""
    assert run(capfd, "compare", scores, scores, "--json").values["movers"] == []
    assert "No row changed its rank" in run(capfd, "compare", scores, scores).stdout


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (range(19), "A has scores of 20 rows and B of 19"),
        ("shuffled", "their column 'image' differs; compare scores of the same rows"),
        ("unnamed", "their column 'label' differs"),
        ("column", "there is no column 'vog_late'; these scores have label, vog, vog_percentile"),
        ("unranked", "none of vog_class_normalized, vog_normalized, vog or loss is in both; name one with --column"),
        ("infinite", "no row has a finite vog in both A and B"),
    ],
)
def test_compare_refuses_what_cannot_be_compared(capfd, tmp_path, scores, other, said):
    """`compare` refuses other rows, another order, a missing column and values without ranks."""
    given, options = [scores, tmp_path / "scores"], []
    known = VoGScores.load(scores)
    columns = {name: known.column(name) for name in known.column_names}
    if other == "shuffled":
        manifest = {**known.manifest, "data": {"columns": {"image": "2:" + "0" * 64}}}
        VoGScores(columns, manifest).save(tmp_path / "scores")
    elif other == "unnamed":
        VoGScores({**columns, "label": columns["label"][::-1].copy()}, {}).save(tmp_path / "scores")
    elif other == "unranked":
        VoGScores({"loss": columns["vog"]}, {}).save(tmp_path / "scores")
    elif other == "infinite":
        VoGScores({"vog": np.full(20, np.nan)}, {}).save(tmp_path / "scores")
        given = [tmp_path / "scores"] * 2
    elif other == "column":
        given, options = [scores, scores], ["--column", "vog_late"]
    else:
        made_scores(tmp_path, other)
    done = run(capfd, "compare", *given, *options)
    assert (done.code, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.slow
def test_compare_in_a_process_of_its_own(scores, others):
    """The script and the module give the same result."""
    assert launch(SCRIPT, "compare", scores, others, "--json") == launch(MODULE, "compare", scores, others, "--json")
    assert launch(SCRIPT, "compare", scores, others / "nowhere").code == 1


# --- report -----------------------------------------------------------------------------------------------------------


def test_report_finds_the_data_set_that_was_noted(capfd, tmp_path, scores):
    """`report` writes one HTML file with the images and prints its path."""
    done = run(capfd, "report", scores, "-o", tmp_path / "report.html", "--title", "Digits & more", "--json")
    assert done.code == 0, done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert done.values == {"report": str(tmp_path / "report.html"), "bytes": len(page.encode())}
    assert "<title>Digits &amp; more" in page
    assert "data:image/" in page


def test_report_of_numbers_alone(capfd, tmp_path, scores):
    """--numbers-only needs no dataset and shows no rows."""
    assert run(capfd, "report", scores, "--numbers-only", "-o", tmp_path / "a.html", "--top-k", "3").code == 0
    pictures = {name: (tmp_path / name).read_text(encoding="utf-8").count("data:image/") for name in ("a.html",)}
    run(capfd, "report", scores, "-o", tmp_path / "b.html", "--top-k", "3")
    assert (tmp_path / "b.html").read_text(encoding="utf-8").count("data:image/") > pictures["a.html"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top-k", "0"], "--top-k must lie in 1..500, got 0"),
        (["--dataset", "nowhere.parquet"], "nowhere.parquet with split 'train' cannot be loaded"),
        (["--dataset", "someone/nothing"], "was looked up on the Hub; check --dataset, --config and --split"),
        (["--split", "test"], "Unknown split \"test\". Should be one of ['train']; check --config and --split"),
        (["--dataset", "OTHER"], "is not the one that was scored"),
        (["--output", "NOTES"], "exists and is not a vog_hf report"),
        (["--dataset", "NOTES"], "a file must be one of *.parquet, *.csv, *.json, *.jsonl"),
        (["--dataset-revision", "v1"], "is of a dataset on the Hub"),
    ],
)
def test_report_refuses(capfd, tmp_path, scores, options, said):
    """`report` refuses options out of range, missing or different datasets, and foreign files."""
    (tmp_path / "notes.txt").write_text("mine")
    trainers.digits(20, start=7).to_parquet(tmp_path / "other.parquet")
    if options == ["--dataset-revision", "v1"]:
        options = [*options, "--dataset", "OTHER"]
    paths = {"OTHER": tmp_path / "other.parquet", "NOTES": tmp_path / "notes.txt"}
    given = [paths.get(option, option) for option in options]
    done = run(capfd, "report", scores, "--output", tmp_path / "report.html", *given)
    assert (done.code, done.stdout) == (1, "")
    assert said in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()


def test_report_of_one_of_several_splits(capfd, tmp_path):
    """--split reports only that split, with or without its rows."""
    for split, count in (("train", 6), ("test", 4)):
        VoGScores.load(made_scores(tmp_path / split, range(count))).save(tmp_path / "scores" / split)
    given = ["report", tmp_path / "scores", "-o", tmp_path / "report.html", "--json"]
    DatasetDict(train=trainers.digits(6), test=trainers.digits(4)).save_to_disk(str(tmp_path / "digits"))
    rows = ["--dataset", tmp_path / "digits"]
    for options in (["--numbers-only"], rows):
        done = run(capfd, *given, "--split", "test", *options)
        assert done.code == 0, done.stderr
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "4 rows" in page
        assert "6 rows" not in page
    assert "choose one with --split, got 'dev'" in run(capfd, *given, "--split", "dev", *rows).stderr
    alone = run(capfd, "report", tmp_path / "scores" / "test", "--numbers-only", "--split", "test")
    assert "holds the scores of one split; leave out --split" in " ".join(alone.stderr.split())


def test_report_needs_a_data_set(capfd, tmp_path, scores):
    """Scores not written by `vog-hf score` need --dataset."""
    VoGScores.load(scores).save(tmp_path / "scores")
    done = run(capfd, "report", tmp_path / "scores", "-o", tmp_path / "report.html")
    assert "does not record which dataset was scored; pass --dataset" in done.stderr
    assert done.code == 1
    (tmp_path / "scores" / "source.json").write_text('{"path": "x"}')
    assert "is not what vog-hf writes" in run(capfd, "report", tmp_path / "scores").stderr


@pytest.mark.slow
def test_report_of_splits_in_a_process_of_its_own(tmp_path):
    """Scores by split and a saved `DatasetDict` give one page with a section per split."""
    rows = {"train": trainers.digits(12), "test": trainers.digits(9, start=12)}
    for split, part in rows.items():
        identity = identify_rows(part)
        VoGScores({"vog": np.arange(len(part), dtype=np.float32)}, {"data": {"columns": identity.columns}}).save(
            tmp_path / "scores" / split
        )
    DatasetDict(rows).save_to_disk(str(tmp_path / "digits"))
    for command in (SCRIPT, MODULE):
        done = launch(command, "report", tmp_path / "scores", "--dataset", tmp_path / "digits", cwd=tmp_path)
        assert done.code == 0, done.stderr
    page = (tmp_path / "vog-report.html").read_text(encoding="utf-8")
    assert "train" in page
    assert "test" in page
    missing = launch(MODULE, "report", tmp_path / "scores", "--dataset", tmp_path / "nowhere", cwd=tmp_path)
    assert missing.code == 1
    assert "Traceback" not in missing.stderr
