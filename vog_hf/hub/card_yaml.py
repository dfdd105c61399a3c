"""A card with metadata that stays as it was written, except for the entries that a push declares.

The client reads and rewrites all of it, and not everything survives: ``language: no`` becomes ``false``,
``version: 1.10`` becomes ``1.1``, comments are gone.
"""

import yaml  # type: ignore[import-untyped]
from huggingface_hub import DatasetCard, RepoCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

DECLARED = ("configs", "dataset_info", "tags")  # what a push may change


class CardWithOriginalYaml(DatasetCard):
    """A card that keeps its original YAML: only the metadata entries in `DECLARED` are rewritten."""

    @property
    def content(self) -> str:
        """The card, metadata and text."""
        rewritten = str(RepoCard.content.fget(self))  # type: ignore[attr-defined] # a property, which has one
        old, new = REGEX_YAML_BLOCK.search(self._content), REGEX_YAML_BLOCK.search(rewritten)
        if old is None or new is None:
            return rewritten
        entries = _merged(old[2].replace("\r\n", "\n"), new[2].replace("\r\n", "\n"))
        if entries is None:
            return rewritten
        line_end = "\r\n" if new[1].endswith("\r\n") else "\n"
        return rewritten[: new.start(2)] + entries.replace("\n", line_end) + rewritten[new.end(2) :]

    @content.setter
    def content(self, content: str) -> None:
        RepoCard.content.fset(self, content)  # type: ignore[attr-defined] # as above


def _merged(old: str, new: str) -> str | None:
    """The old metadata with the new entries of `DECLARED`; None if the entries cannot be separated."""
    try:
        was, becomes = (yaml.safe_load(text) or {} for text in (old, new))
        entries, declared = _entries(old), _entries(new)
        if entries is None or declared is None:
            return None
        changed = {name for name in DECLARED if name in becomes and was.get(name) != becomes[name]}
        texts = [_renewed(text, declared[name]) if name in changed else text for name, text in entries.items()]
        texts += [text for name, text in declared.items() if name in changed and name not in entries]
        merged = "\n".join(text.removesuffix("\n") for text in texts if text)
        meant = {**was, **{name: becomes[name] for name in changed}}
        return merged if yaml.safe_load(merged) == meant else None
    except yaml.YAMLError:
        return None


def _entries(text: str) -> dict[str, str] | None:
    """Each entry as it is written, by name; lines before the first one under ""."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if node is None:
        return {"": text}
    if node.flow_style or any(name.start_mark.column for name, _ in node.value):
        return None
    starts = [name.start_mark.index for name, _ in node.value]
    names = [name.value for name, _ in node.value]
    ends = [*starts[1:], len(text)]
    parts = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return {"": text[: starts[0]], **dict(zip(names, parts, strict=True))} if starts else {"": text}


def _renewed(old: str, new: str) -> str:
    """A new entry, followed by the comments below the old one, which belong to the next entry."""
    lines = old.removesuffix("\n").split("\n")
    below = len(lines)
    while below and (not lines[below - 1].strip() or lines[below - 1].startswith("#")):
        below -= 1
    return "\n".join([new.removesuffix("\n"), *lines[below:]])
