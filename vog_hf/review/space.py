"""The folder of a Hugging Face Space that runs the review of a scored dataset on the Hub."""

import re
import shlex
import shutil
from dataclasses import dataclass
from importlib.metadata import distribution, requires, version
from pathlib import Path

from huggingface_hub import SpaceCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from vog_hf.errors import ConfigError, OutputFolderError

NAME = "vog-hf"
PYTHON = "3.12"
JOURNAL = "review.jsonl"
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class SpaceOf:
    """The dataset that a Space shows.

    Attributes:
        repo_id: Name of the dataset on the Hub.
        config_name: Its configuration.
        split: Its split.
        revision: A branch, tag or commit; None = the main branch, as it is when the Space starts.
    """

    repo_id: str
    config_name: str = "default"
    split: str = "train"
    revision: str | None = None


def write_space(folder: str | Path, shown: SpaceOf, *, package: str | None = None) -> Path:
    """Write ``app.py``, ``requirements.txt`` and ``README.md`` of a Space.

    Args:
        folder: Where to; must be empty or not be there.
        shown: Dataset to review.
        package: Requirement that installs vog_hf, e.g. ``"vog-hf[review]==0.1.0"``; None = a copy of this package is
            put into the folder and only what it depends on is installed.

    Returns:
        The folder, to be uploaded with ``hf upload OWNER/NAME FOLDER --repo-type space``.

    Raises:
        ConfigError: An invalid name of a dataset.
        OutputFolderError: Something is in the folder.
    """
    folder = Path(folder)
    if not REPO_ID.fullmatch(shown.repo_id):
        raise ConfigError(f"a dataset on the Hub is named like 'user/data', got {shown.repo_id!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputFolderError(f"{folder} must be a new or an empty folder; name another one, or empty it")
    environment = Environment(  # Python and Markdown, not HTML: what is put in is written as Python or YAML writes it
        loader=PackageLoader("vog_hf.review", "templates"),
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    given = {"shown": shown, "journal": JOURNAL, "metadata": _metadata(shown), "apply": _apply_command(shown)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, template in (("app.py", "space_app.py.j2"), ("README.md", "space_readme.md.j2")):
        (folder / name).write_text(environment.get_template(template).render(given), encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in _requirements(package)), encoding="utf-8")
    if package is None:
        source = Path(__file__).parents[1]
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        described = folder / f"vog_hf-{version(NAME)}.dist-info"  # by which the copy knows its own version
        described.mkdir()
        (described / "METADATA").write_text(distribution(NAME).read_text("METADATA") or "", encoding="utf-8")
    return folder


def _metadata(shown: SpaceOf) -> str:
    return SpaceCardData(
        title=f"Review of {shown.repo_id.rpartition('/')[2]}",
        sdk="gradio",
        sdk_version=version("gradio"),  # which installs it
        python_version=PYTHON,
        app_file="app.py",
        datasets=[shown.repo_id],
        pinned=False,
    ).to_yaml()


def _apply_command(shown: SpaceOf) -> str:
    """The command that applies the decisions to the data of the Space."""
    named = {"--config": shown.config_name, "--split": shown.split, "--dataset-revision": shown.revision}
    options = [part for name, value in named.items() if value is not None for part in (name, value)]
    return shlex.join(["vog-hf", "apply", shown.repo_id, JOURNAL, *options])


def _requirements(package: str | None) -> list[str]:
    if package is not None:
        return [package]
    return [line for line in requires(NAME) or [] if "extra ==" not in line]
