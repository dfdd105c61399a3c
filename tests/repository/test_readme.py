import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import run, train_on_images
from hub_server import ACCEPTED, HubServer

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
FEWER_DIGITS = """\
import vog_hf.demo
all_digits = vog_hf.demo.load_digits_dataset()
vog_hf.demo.load_digits_dataset = lambda: all_digits.select(range({}))
"""


def code_blocks(language):
    """The fenced blocks of one language, in the order of the README."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_readme_is_short_and_begins_with_code():
    """A reader sees code before scrolling, and decides within 150 lines; the documentation has the rest."""
    lines = README.read_text(encoding="utf-8").splitlines()
    assert lines.index("```python") < 10
    assert len(lines) <= 150


@pytest.mark.parametrize("n_digits", [300, pytest.param(1797, marks=pytest.mark.slow)])
def test_python_blocks_run_in_order(tmp_path, n_digits):
    """Every python block of the README runs as it stands, one after the other, in an empty folder."""
    blocks = [FEWER_DIGITS.format(n_digits), *code_blocks("python")]
    assert len(blocks) >= 4
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_DATA_DIR": str(tmp_path)}
    with HubServer(tokens={ACCEPTED: "me"}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(blocks)],
            cwd=tmp_path,
            env={**environment, **hub.environment(tmp_path / "home"), "HF_TOKEN": ACCEPTED},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/datasets/me/digits-vog" in done.stdout
    assert hub.dataset("me/digits-vog").private
    assert "vog_loss_class_normalized" in done.stdout
    assert "1 row dropped" in done.stdout
    ours = [line for line in done.stderr.splitlines() if line.startswith("VoG")]
    assert len(ours) <= 12
    assert any("of computing; snapshots after steps" in line for line in ours)
    assert any("guide in this run" in line for line in ours)
    assert any("the scores are in digits/_vog/scores; next: vog-hf review" in line for line in ours)
    assert (tmp_path / "digits" / "_vog" / "scores" / "manifest.json").is_file()
    assert list(tmp_path.glob("wandb/offline-run-*"))


def shell_commands():
    """The words of each command of the shell blocks, without the comments."""
    return [line.split("#")[0].split() for block in code_blocks("bash") for line in block.splitlines()]


def test_shell_blocks_name_make_targets():
    """Every command of the README's shell blocks is a make word that exists, or our own command line."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [command for command in shell_commands() if command[0] != "vog-hf"]
    assert commands
    for command in commands:
        assert command[0] == "make"
        assert command[1] in targets


def test_the_command_line_of_the_readme_runs(capfd, tmp_path, monkeypatch):
    """Each command as it stands, after a training; the push is understood, and stops where there is no network."""
    training = train_on_images(tmp_path)
    training.folder.rename(tmp_path / "outputs")
    training.scores.save(tmp_path / "other-scores")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    commands = [command[1:] for command in shell_commands() if command[0] == "vog-hf"]
    assert [name for name, *_ in commands] == ["score", "report", "compare", "info", "push"]
    for command in commands[:-1]:
        done = run(capfd, *command)
        assert done.code == 0, done.stderr
    assert {"scored.parquet", "vog-scores", "vog-report.html"} <= {path.name for path in tmp_path.iterdir()}
    done = run(capfd, *commands[-1])
    assert done.code == 1
    assert "HF_HUB_OFFLINE" in done.stderr


@pytest.mark.parametrize(
    "link", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))))
)
def test_local_links_exist(link):
    """Every file that the README links to is in the repository."""
    assert (ROOT / link).is_file()
