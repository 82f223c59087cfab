"""The documentation as a site: whole, readable on a phone, and alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.browser import browser_page
from tests.test_architecture import ROOT


def make_docs(project: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """`make docs`, without setting up anything."""
    variables = (f"RUNS={target}", f"BIN={Path(sys.executable).parent}")
    return subprocess.run(
        ["make", "--no-print-directory", "--assume-old=.venv/.installed", "docs", *variables],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs")
    done = make_docs(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target / "site"


def test_every_document_is_a_page(site: Path) -> None:
    documents = {
        str(path.relative_to(ROOT / "docs").with_suffix("")).replace("README", "index")
        for path in (ROOT / "docs").rglob("*.md")
    }
    pages = {str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html")}
    assert documents | {"index", "contributing", "changelog", "reporting", "404"} == pages


def test_pages_fit_a_desk_and_a_phone_and_ask_no_server(site: Path, tmp_path: Path) -> None:
    is_whole = "[...document.images].every(image => image.naturalWidth > 0)"
    with browser_page(tmp_path) as page:
        pages = [(path, 390) for path in site.glob("*.html")]
        for path, width in (*pages, (site / "decisions" / "rooms.html", 390), (pages[0][0], 1280)):
            page.open(path, width=width, height=900)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert page.evaluate(is_whole), path
        assert page.evaluate("document.querySelectorAll('nav a').length") > 10
    assert [url for url in page.requests if not url.startswith("file:")] == []


def test_a_dead_link_is_an_error(tmp_path: Path) -> None:
    for path in ROOT.iterdir():
        if path.name not in ("CHANGELOG.md", "build"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\nSee [there](docs/metrics.md#no-such).\n")
    done = make_docs(tmp_path, tmp_path / "target")
    assert done.returncode != 0
    assert "'metrics.md' does not contain an anchor '#no-such'" in done.stderr
    assert done.stderr.count("WARNING") == 1  # all else is as it should be
