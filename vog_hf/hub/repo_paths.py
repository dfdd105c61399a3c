"""Where things are in a repository; names that come from there are checked before they become names of files here."""

import re
from collections.abc import Iterable

from vog_hf.errors import ConfigError, require_type
from vog_hf.scores.storage import HEAT_MAP_FILES, MANIFEST_NAME

SCORES_FOLDER = "vog"  # files of the scores: vog/<configuration>/<split>/
SCORES_CONFIG = "vog_scores"
CONFIG_NAME = re.compile(r"\w[\w.-]*")
SPLIT_NAME = re.compile(r"\w+(\.\w+)*")  # what `datasets` takes for one; no separator of folders is among these
NUMBER = "[0-9]" * 5  # in the name of a shard; a glob and a regular expression read it alike
PICTURES = (DECILES_NAME, SHEET_NAME) = ("error-by-tenth.png", "both-ends.png")
SCORES_FILE = re.compile(
    r"scores(-\d{5}-of-\d{5})?\.parquet|trajectory-\w+\.npy|"
    + "|".join(re.escape(name) for name in (MANIFEST_NAME, *HEAT_MAP_FILES.values()))
)


def require_config_name(name: str) -> None:
    """Raise ConfigError for what cannot name a configuration, and with it a folder of the repository."""
    reserved = ("data", SCORES_FOLDER, SCORES_CONFIG)
    require_type("config_name", name, str, "'default' is usual")
    if not CONFIG_NAME.fullmatch(name) or name in reserved or is_scores_config(name):
        raise ConfigError(
            f"config_name must be letters, digits, _, - and dots, and none of {', '.join(reserved)}, got {name!r}; "
            "'default' is usual",
            argument="config_name",
        )


def scores_config(config: str) -> str:
    """The configuration with the scores alone of a configuration of the data."""
    return SCORES_CONFIG if config == "default" else f"{config}_{SCORES_CONFIG}"


def is_scores_config(name: str) -> bool:
    """Whether a configuration holds scores alone."""
    return name == SCORES_CONFIG or name.endswith(f"_{SCORES_CONFIG}")


def scores_folder(config: str, split: str) -> str:
    """Where the files of a split's scores are."""
    return f"{SCORES_FOLDER}/{config}/{split}"


def split_key(config: str, split: str) -> str:
    """What a split of a configuration is known by in the card."""
    return f"{config}/{split}"


def data_folder(config: str) -> str:
    """Where the data of a configuration is; as `datasets` names it."""
    return "data" if config == "default" else config


def shard_name(config: str, split: str, index: int, count: int) -> str:
    """The file of a shard; as `datasets` names it."""
    return f"{data_folder(config)}/{split}-{index:05d}-of-{count:05d}.parquet"


def shard_pattern(config: str, split: str) -> str:
    """What all shards of a split are matched by, and nothing else."""
    return f"{data_folder(config)}/{split}-{NUMBER}-of-{NUMBER}.parquet"


def earlier_shards(files: Iterable[str], config: str, split: str) -> list[str]:
    """Shards of a split that an earlier push left, ours or that of `datasets`, which once gave them a fingerprint."""
    stem = f"{re.escape(data_folder(config))}/{re.escape(split)}-{NUMBER}-of-{NUMBER}"
    pattern = re.compile(rf"{stem}(-[0-9a-f]{{16}})?\.parquet")
    return [file for file in files if pattern.fullmatch(file)]


def earlier_scores(files: Iterable[str], config: str, split: str) -> list[str]:
    """Files of a split's scores, and pictures of the card, that an earlier push left."""
    folder = scores_folder(config, split)
    names = {file: file.removeprefix(f"{folder}/") for file in files if file.startswith(f"{folder}/")}
    return [file for file, name in names.items() if name in PICTURES or SCORES_FILE.fullmatch(name)]


def scored_splits(files: Iterable[str], config: str) -> dict[str, list[str]]:
    """Files of the scores of each split of a configuration, as far as they bear the names that we give."""
    found: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        split = folder.removeprefix(f"{SCORES_FOLDER}/{config}/")
        if folder == scores_folder(config, split) and SPLIT_NAME.fullmatch(split) and SCORES_FILE.fullmatch(name):
            found.setdefault(split, []).append(file)
    return {
        split: names for split, names in found.items() if scores_folder(config, split) + f"/{MANIFEST_NAME}" in names
    }
