"""Output on terminals and logs that accept only ASCII, and of texts with invalid Unicode."""

import io
import sys

import numpy as np
import pytest
from cli_runs import MODULE, launch

from vog_hf.cli.output import Output
from vog_hf.cli.terminal import any_encoding
from vog_hf.scores.vog_scores import VoGScores

NAMES = ["gr\udcfcn", "Übergröße", "猫 → 🐈"]  # the first as a file system has it that is not UTF-8


@pytest.fixture
def folder(tmp_path):
    """Scores of classes with names outside ASCII."""
    values = np.array([0.1, 0.2, 0.3, 0.4])
    columns = {"label": np.array([0, 1, 2, 0]), "prediction": np.array([0, 1, 1, 2]), "vog": values, "loss": values}
    snapshots = [{"name": "é\udcff", "step": 1}, {"name": "ü", "step": 2}]
    scores = VoGScores({**columns, "vog_class_normalized": values}, {"class_names": NAMES, "snapshots": snapshots})
    scores.save(tmp_path / "sçores")
    return tmp_path / "sçores"


def printed(encoding, write):
    """The decoded output of a command on a stream with this encoding."""
    raw, before = io.BytesIO(), (sys.stdout, sys.stderr)
    stream = sys.stdout = sys.stderr = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    try:
        with any_encoding():
            write(Output())
            stream.flush()
    finally:
        sys.stdout, sys.stderr = before
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"* 3 rows: gr\udcfcn \xe9 -> \u732b \u2764... - 1-2"),
        ("latin-1", "* 3 rows: gr\\udcfcn é -> \\u732b \\u2764... · 1-2"),
        ("utf-8", "✓ 3 rows: gr\\udcfcn é → 猫 ❤… · 1–2"),  # noqa: RUF001 (the dash is what is tested)
    ],
)
def test_a_result_is_printed_in_every_encoding(encoding, shown):
    """Characters missing in the encoding become ASCII: our marks a similar sign, letters their escape."""
    text = "3 rows: gr\udcfcn é → 猫 ❤… · 1\N{EN DASH}2"
    assert printed(encoding, lambda out: out.result(text, {})).strip() == shown


def test_a_table_and_a_failure_are_printed_in_ascii():
    """Table rules become dashes and bars, a name in an error becomes its escape, and nothing raises."""
    lines = printed("ascii", lambda out: print("━┃╇ █▌", file=sys.stderr))
    assert lines == "-|- ##\n"
    assert "Error: " in printed("ascii", lambda out: out.error(ValueError("no column 'größe'")))


def test_streams_are_left_as_they_were():
    """The error handling of a stream is restored, also after a failure."""
    stream, before = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"), sys.stdout
    sys.stdout = stream
    try:
        with pytest.raises(KeyError), any_encoding():
            raise KeyError
    finally:
        sys.stdout = before
    assert stream.errors == "strict"


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "latin-1", "C"],
)
def test_commands_end_well_in_every_locale(folder, tmp_path, environment):
    """`info`, `compare` and `report` accept names with any character, and the JSON is ASCII with the same names."""
    described = launch(MODULE, "info", folder, "--json", **environment)
    assert described.values["scores"]["class_names"] == NAMES
    for arguments in (
        ["info", folder],
        ["compare", folder, folder],
        ["report", folder, "--numbers-only", "-o", tmp_path / "r.html"],
    ):
        done = launch(MODULE, *arguments, **environment)
        assert done.code == 0, done.stderr
    assert "Übergröße" in (tmp_path / "r.html").read_text(encoding="utf-8")
