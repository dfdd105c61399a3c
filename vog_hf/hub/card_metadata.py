"""Metadata of the card: configurations, their splits and columns, and tags; entries of others are preserved."""

import fnmatch
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetInfo, Features, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import CardData, DatasetCard, DatasetCardData

from vog_hf.errors import ConfigError
from vog_hf.hub.repo_paths import is_scores_config
from vog_hf.hub.repository import KnownSplit, Repository, as_path

logger = logging.getLogger(__name__)

TAGS = ("variance-of-gradients", "vog")
ONE_FORMAT = (
    "`datasets` uses one file format per repository; push to a separate repository (with scores_only=True for large "
    "data)"
)


class CardMetadata:
    """The metadata of the configuration that is pushed, merged with what the repository holds.

    Args:
        repository: The repository before the push.
        config: Name of the configuration.
        features: Columns of the pushed splits.
        splits: Rows and bytes of each pushed split.
        patterns: Pattern that matches the files of each pushed split.
        new_files: Names of files that the push adds; no pattern of another split may match them.
        replaced: Names of files that the push replaces or deletes; no other split may use them.

    Attributes:
        config: Its name.
        features: Columns of the configuration.
        splits: Rows and bytes of all its splits.

    Raises:
        ConfigError: The repository holds data that is incompatible with the push.
    """

    def __init__(
        self,
        repository: Repository,
        config: str,
        features: Features,
        splits: Mapping[str, SplitInfo],
        patterns: Mapping[str, str],
        *,
        new_files: Sequence[str],
        replaced: Sequence[str] = (),
    ) -> None:
        self._repository, self.config, self._patterns = repository, config, dict(patterns)
        self._new_files, self._replaced = new_files, replaced
        known = repository.splits(config) if self._own(repository.configs) else {}
        self._others: dict[str, KnownSplit] = {name: split for name, split in known.items() if name not in splits}
        self._require_one_reader()
        self._require_unshared()
        self.features = self._with_others(features)
        infos = {name: repository.split_info(name, split, config) for name, split in self._others.items()}
        self.splits = {**infos, **splits}

    def apply(self, data: CardData, sizes: Mapping[str, int]) -> None:
        """Write the configuration into the metadata of a card; everything else there stays.

        Args:
            data: Metadata of the card; changed in place.
            sizes: Bytes of every file of the pushed splits.
        """
        data["configs"] = self._configs()
        infos = _infos(data.get("dataset_info"))
        other_sizes = [self._repository.sizes.get(file, 0) for split in self._others.values() for file in split.files]
        infos[self.config] = {**infos.get(self.config, {}), **self._info(sum(other_sizes) + sum(sizes.values()))}
        entries = [{"config_name": name, **info} for name, info in infos.items()]
        if list(infos) == ["default"]:
            data["dataset_info"] = infos["default"]
        else:
            data["dataset_info"] = entries if len(entries) > 1 else entries[0]
        tags = data.get("tags") or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        data["tags"] = [*tags, *(tag for tag in TAGS if tag not in tags)]

    def files(self, shards: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Sequence[str]]]:
        """The files that each split must consist of after the push: by configuration, then by split.

        Args:
            shards: Files of each pushed split.

        Returns:
            Files of the configuration that is pushed, and of every other one that may match a file of the push.
        """
        others = {name: split.files for name, split in self._others.items()}
        expected: dict[str, dict[str, Sequence[str]]] = {self.config: {**others, **shards}}
        for config in self._repository.configs:
            name, touched = str(config["config_name"]), [*self._new_files, *self._replaced]
            if name != self.config and any(_may_take_in(pattern, touched) for pattern in _patterns_of(config)):
                expected[name] = {split: known.files for split, known in self._repository.splits(name).items()}
        return {name: splits for name, splits in expected.items() if splits}

    def require_readable(self, card: DatasetCard) -> DatasetCard:
        """Read the metadata of a card back as `datasets` reads it, and return the card.

        If YAML cannot hold a name (one with a "next line" character), the columns are left out of the card, and readers
        take them from the parquet files.

        Raises:
            ConfigError: The card cannot say what it has to.
        """
        if self._reads_back(card):
            return card
        if self._others:
            raise ConfigError(
                "a column or class has a name that no card can hold (with an unusual line break), and the other splits "
                "of the repository need the card; rename it, or pass a config_name=",
                argument="config_name=",
            )
        logger.warning("a column or class has a name that no card can hold; the columns are only in the files")
        infos = card.data["dataset_info"]
        for info in infos if isinstance(infos, list) else [infos]:
            if info.get("config_name", "default") == self.config:
                del info["features"]
        return card

    def _reads_back(self, card: DatasetCard) -> bool:
        """Return whether the columns can be read back from the card."""
        try:
            text = card.content.encode().decode()
        except UnicodeEncodeError:
            return False
        return bool(
            DatasetInfosDict.from_dataset_card_data(DatasetCard(text).data)[self.config].features == self.features
        )

    def _own(self, configs: Sequence[dict[str, object]]) -> dict[str, Any] | None:
        return next((config for config in configs if config["config_name"] == self.config), None)

    def _require_one_reader(self) -> None:
        foreign = self._repository.foreign_file
        others = [c["config_name"] for c in self._repository.configs if c["config_name"] != self.config]
        if foreign and (self._others or others):
            raise ConfigError(
                f"{self._repository.repo_id} has data that is not parquet ({foreign!r}), and {ONE_FORMAT}",
                argument="scores_only=True",
            )

    def _require_unshared(self) -> None:
        others = {f"the split {name!r}": set(split.files) for name, split in self._others.items()}
        for config in self._repository.configs:
            name = str(config["config_name"])
            if name != self.config and any(_may_take_in(pattern, self._replaced) for pattern in _patterns_of(config)):
                splits = self._repository.splits(name).values()
                others[f"the configuration {name!r}"] = {file for split in splits for file in split.files}
        shared = [(who, file) for who, files in others.items() for file in self._replaced if file in files]
        if shared:
            who, file = shared[0]
            raise ConfigError(
                f"the push replaces {file!r}, which {who} of {self._repository.repo_id} also uses; pass another "
                "config_name= or scores_only=True",
                argument=("config_name=", "scores_only=True"),
            )

    def _with_others(self, features: Features) -> Features:
        """The columns of all splits; `datasets` fills in None for columns that a split does not have."""
        columns = dict(features)
        for name, split in self._others.items():
            for column, feature in self._repository.features(split, self.config).items():
                ours = columns.setdefault(column, feature)
                if Features({column: ours}).type != Features({column: feature}).type:
                    raise ConfigError(
                        f"the column {column!r} is {ours}, and {feature} in the split {name!r} of "
                        f"{self._repository.repo_id}; push all splits together, or under another config_name=",
                        argument="config_name=",
                    )
        return Features(columns)

    def _configs(self) -> list[dict[str, Any]]:
        configs = [self._kept(config) for config in self._repository.configs]
        own = self._own(configs)
        if own is None:
            _keep_default(configs, self.config)
            own = {"config_name": self.config}
            configs.append(own)
        self._require_one_default(configs)
        data_files = [entry for entry in own.get("data_files", []) if entry["split"] not in self._patterns]
        data_files += [{"split": split, "path": pattern} for split, pattern in self._patterns.items()]
        if not self._others:  # options of another reader are of no use to ours
            for key in set(own) - {"config_name", "default"}:
                del own[key]
        own["data_files"] = data_files
        return configs

    def _require_one_default(self, configs: Sequence[Mapping[str, object]]) -> None:
        loaded = [c["config_name"] for c in configs if c["config_name"] == "default" or c.get("default")]
        others = [name for name in loaded if name != self.config]
        if others and self.config in loaded:
            raise ConfigError(
                f"{self._repository.repo_id} loads its configuration {others[0]!r} by default, and {self.config!r} "
                f"would be a second default, which `datasets` refuses; pass another config_name= (on the command line "
                f"--config-name): {others[0]!r} itself, or a new one",
                argument="config_name=",
            )

    def _kept(self, config: Mapping[str, object]) -> dict[str, Any]:
        """The entry of an existing configuration, split by split; none of its patterns matches a pushed file."""
        declared, is_own = config.get("data_files"), config["config_name"] == self.config
        if isinstance(declared, list) and all(isinstance(e, dict) for e in declared) and "data_dir" not in config:
            entries = [e if is_own and e["split"] in self._patterns else self._exact(e, config) for e in declared]
            return {**config, "data_files": entries}
        if not is_own and not any(map(self._takes_in, _flat(declared or config.get("data_dir") or "**"))):
            return dict(config)
        rest = {key: value for key, value in config.items() if key not in ("data_files", "data_dir")}
        splits = self._repository.splits(str(config["config_name"]))
        if not splits:
            raise ConfigError(
                f"the card of {self._repository.repo_id} names a configuration {config['config_name']!r} without data; "
                "remove it from the card, or add its data first"
            )
        entries = [self._exact({"split": n, "path": as_path(s.patterns)}, config) for n, s in splits.items()]
        return {**rest, "data_files": entries}

    def _exact(self, entry: Mapping[str, object], config: Mapping[str, object]) -> dict[str, Any]:
        """The entry of a split: as declared, or by file names if its pattern would match a pushed file."""
        if not any(map(self._takes_in, _flat(entry))):
            return dict(entry)
        split = self._repository.splits(str(config["config_name"])).get(str(entry["split"]))
        return dict(entry) if split is None else {**entry, "path": as_path(split.files)}

    def _takes_in(self, pattern: str) -> bool:
        """Return whether a pattern may match a file that the push adds; in doubt, True."""
        return _may_take_in(pattern, self._new_files)

    def _info(self, download_size: int) -> dict[str, Any]:
        splits = SplitDict()
        for split in self.splits.values():
            splits.add(split)
        size = sum(split.num_bytes for split in self.splits.values())
        info = DatasetInfo(features=self.features, splits=splits, download_size=download_size, dataset_size=size)
        data = DatasetCardData()
        DatasetInfosDict({"default": info}).to_dataset_card_data(data)
        return dict(data["dataset_info"])


def _may_take_in(pattern: str, files: Sequence[str]) -> bool:
    pattern = pattern.removeprefix("./")
    expression = re.compile(fnmatch.translate(pattern))  # in which an asterisk goes for slashes, too
    folder = f"{pattern.rstrip('/')}/"
    return any(expression.match(file) or file.startswith(folder) for file in files)


def _patterns_of(config: Mapping[str, object]) -> list[str]:
    """The patterns of a configuration; for one without patterns, everything."""
    return _flat(config.get("data_files") or "**") if "data_dir" not in config else ["**"]


def _flat(data_files: Any) -> list[str]:
    """All patterns of a configuration, in any of the forms that `datasets` reads."""
    if isinstance(data_files, str):
        return [data_files]
    if isinstance(data_files, Mapping):
        return _flat(data_files["path"])
    return [pattern for entry in data_files for pattern in _flat(entry)]


def _keep_default(configs: list[dict[str, object]], pushed: str) -> None:
    """Keep the only configuration as the default before a second one is added, unless it has scores alone."""
    if len(configs) != 1 or configs[0]["config_name"] == "default":
        return
    if pushed != "default" or not is_scores_config(str(configs[0]["config_name"])):
        configs[0]["default"] = True


def _infos(declared: object) -> dict[str, dict[str, Any]]:
    """The metadata ``dataset_info`` by configuration; `datasets` reads lists and mappings, and skips other forms."""
    entries = declared if isinstance(declared, list) else [declared] if isinstance(declared, Mapping) else []
    return {str(e.get("config_name", "default")): {k: v for k, v in e.items() if k != "config_name"} for e in entries}
