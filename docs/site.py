"""For mkdocs: pages that lie outside this folder, and links that lead out of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
}
"""Where files of the project's root are on the site."""

_LINK = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>(?!https?:|#)[^)#\s]+)(?P<anchor>[^)]*)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        text = (Path(config.docs_dir).parent / name).read_text()
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """As it lies in the project, with links as the site needs them; some have nothing there."""
    docs = Path(config.docs_dir)
    places = {page: docs.parent / name for name, page in PAGES.items()}
    here = page.file.src_uri
    folder = places.get(here, docs / here).parent
    pages = {place: page for page, place in places.items()}

    def moved(link: re.Match[str]) -> str:
        place = Path(os.path.normpath(folder / link["target"]))
        target = pages.get(place)
        if target is None and place.is_relative_to(docs):
            target = str(place.relative_to(docs))
        if target is None or files.get_file_from_path(target) is None:
            return f"`{link['target']}`" if place.exists() else link[0]
        return f"{link['text']}({os.path.relpath(target, Path(here).parent)}{link['anchor']})"

    return _LINK.sub(moved, markdown)
