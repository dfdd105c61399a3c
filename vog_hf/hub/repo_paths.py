"""Paths in a repository; names that come from there are verified before they become names of local files."""

import re
from collections.abc import Iterable

from vog_hf.errors import ConfigError, require_type
from vog_hf.scores.storage import HEAT_MAP_FILES, MANIFEST_NAME, TOKENIZER_NAME
from vog_hf.scores.unit_table import PIXELS_NAME, UNITS_NAME
from vog_hf.scores.visited_steps import STEPS_NAME

SCORES_FOLDER = "vog"  # files of the scores: vog/<configuration>/<split>/
SCORES_CONFIG = "vog_scores"
CONFIG_NAME = re.compile(r"\w[\w.-]*")
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # what `datasets` takes for one; no separator of folders is among these
NUMBER = "[0-9]" * 5  # in the name of a shard; a glob and a regular expression read it alike
PICTURES = (DECILES_NAME, SHEET_NAME) = ("error-by-tenth.png", "both-ends.png")
SCORES_FILE = re.compile(
    r"scores(-\d{5}-of-\d{5})?\.parquet|trajectory-\w+\.npy|"
    + "|".join(
        re.escape(name)
        for name in (MANIFEST_NAME, STEPS_NAME, TOKENIZER_NAME, UNITS_NAME, PIXELS_NAME, *HEAT_MAP_FILES.values())
    )
)


def require_config_name(name: str) -> None:
    """Raise ConfigError for an invalid name of a configuration, which also names a folder of the repository."""
    reserved = ("data", SCORES_FOLDER, SCORES_CONFIG)
    require_type("config_name", name, str, "'default' is usual")
    if not CONFIG_NAME.fullmatch(name) or name in reserved or is_scores_config(name):
        raise ConfigError(
            f"config_name must be letters, digits, _, - and dots, and none of {', '.join(reserved)}, got {name!r}; "
            "pass 'default', for example",
            argument="config_name",
        )


def scores_config(config: str) -> str:
    """The name of the configuration that holds only the scores of a configuration of the data."""
    return SCORES_CONFIG if config == "default" else f"{config}_{SCORES_CONFIG}"


def is_scores_config(name: str) -> bool:
    """Return whether a configuration holds only scores."""
    return name == SCORES_CONFIG or name.endswith(f"_{SCORES_CONFIG}")


def scores_folder(config: str, split: str) -> str:
    """The folder of a split's scores."""
    return f"{SCORES_FOLDER}/{config}/{split}"


def split_key(config: str, split: str) -> str:
    """The key of a split of a configuration in the card."""
    return f"{config}/{split}"


def data_folder(config: str) -> str:
    """The folder of the data of a configuration; named as `datasets` does."""
    return "data" if config == "default" else config


def shard_name(config: str, split: str, index: int, count: int) -> str:
    """The file of a shard; named as `datasets` does."""
    return f"{data_folder(config)}/{split}-{index:05d}-of-{count:05d}.parquet"


def shard_pattern(config: str, split: str) -> str:
    """The pattern that matches all shards of a split, and nothing else."""
    return f"{data_folder(config)}/{split}-{NUMBER}-of-{NUMBER}.parquet"


def earlier_shards(files: Iterable[str], config: str, split: str) -> list[str]:
    """Shards of a split from earlier pushes, by this library or `datasets` (once with a fingerprint in the name)."""
    stem = f"{re.escape(data_folder(config))}/{re.escape(split)}-{NUMBER}-of-{NUMBER}"
    pattern = re.compile(rf"{stem}(-[0-9a-f]{{16}})?\.parquet")
    return [file for file in files if pattern.fullmatch(file)]


def earlier_scores(files: Iterable[str], config: str, split: str) -> list[str]:
    """Files of a split's scores, and pictures of the card, from earlier pushes."""
    folder = scores_folder(config, split)
    names = {file: file.removeprefix(f"{folder}/") for file in files if file.startswith(f"{folder}/")}
    return [file for file, name in names.items() if name in PICTURES or SCORES_FILE.fullmatch(name)]


def scored_splits(files: Iterable[str], config: str) -> dict[str, list[str]]:
    """Files of the scores of each split of a configuration, by split; files with other names are ignored."""
    names_of: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        split = folder.removeprefix(f"{SCORES_FOLDER}/{config}/")
        if folder == scores_folder(config, split) and SPLIT_NAME.fullmatch(split) and SCORES_FILE.fullmatch(name):
            names_of.setdefault(split, []).append(file)
    return {
        split: names for split, names in names_of.items() if scores_folder(config, split) + f"/{MANIFEST_NAME}" in names
    }
