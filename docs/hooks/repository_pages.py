"""MkDocs hook: pages of the repository's files outside docs/, so that relative links work on GitHub and in the site.

A link of a page to such a file adds the file to the site: Markdown as a page, images as they are, anything else as a
page that shows its text. Pages that the navigation names (`CHANGELOG.md`) are found in the repository, too.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
IMAGES = {".gif", ".jpg", ".png", ".svg", ".webp"}
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sbatch": "bash"}

sources: dict[str, Path] = {}  # by the name of the page in the site


def site_name(path: Path) -> str:
    """The file of the site that shows a file of the repository, as MkDocs names files (posix, relative)."""
    path = path / "README.md" if path.is_dir() else path
    if path == ROOT / "README.md":
        return "index.md"
    name = path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()
    return name if path.suffix in {".md", *IMAGES} else f"{name}.md"


def linked_files(page: Path) -> Iterator[Path]:
    """The files of the repository that a Markdown file links to."""
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / match[1]).resolve()
        if target.is_relative_to(ROOT) and target.exists():
            yield target / "README.md" if target.is_dir() else target


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages and navigation name, and those that the added pages link to."""
    sources.clear()
    sources.update({file.src_uri: DOCS / file.src_uri for file in files})
    waiting = [path for path in sources.values() if path.suffix == ".md"]
    waiting += [ROOT / name for name in _nav_names(config.nav) if name not in sources and (ROOT / name).is_file()]
    while waiting:
        path = waiting.pop()
        name = site_name(path)
        if name not in sources:
            sources[name] = path
            files.append(_shown(path, name, config))
        if path.suffix == ".md":
            waiting += [target for target in linked_files(path) if site_name(target) not in sources]
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point each relative link at the file of the site that shows its target."""
    folder = sources[page.file.src_uri].parent

    def in_site(match: re.Match[str]) -> str:
        target = (folder / match[1]).resolve()
        if not (target.is_relative_to(ROOT) and target.exists()):
            return match[0]  # MkDocs reports it
        start = os.path.dirname(page.file.src_uri) or "."  # noqa: PTH120 (a name in the site)
        return Path(os.path.relpath(site_name(target), start)).as_posix() + (match[2] or "")

    return LINK.sub(in_site, markdown)


def _nav_names(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    for part in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
        yield from _nav_names(part)


def _shown(path: Path, name: str, config: MkDocsConfig) -> File:
    if path.suffix in {".md", *IMAGES}:
        return File.generated(config, name, abs_src_path=str(path))
    fence = "~" * 8
    text = path.read_text(encoding="utf-8").rstrip()
    language = LANGUAGES.get(path.suffix, "text")
    title = path.relative_to(ROOT).as_posix()
    content = f"---\nsearch: {{exclude: true}}\n---\n# {title}\n\n{fence}{language}\n{text}\n{fence}\n"
    return File.generated(config, name, content=content)
