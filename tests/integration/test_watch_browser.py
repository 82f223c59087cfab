"""The live page in a real Chromium, of a run that is killed, resumed and deleted meanwhile."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from pipeline.watch.root import Root
from pipeline.watch.server import bind
from tests.integration.browser import Page, browser_page
from tests.integration.test_report_browser import PAGE_RGB, num_pixels
from tests.integration.training import LONG, train, wait_for_step
from tests.pipeline.fake_run import write_run
from tests.pipeline.monitoring import free_port, process, wait_for

EVIL = "<img src=x onerror=alert(1)>"
SAVING = [*LONG, "--checkpoint.every_epochs", 0.5, "--evaluation.every_epochs", 1]
SAVING += ["--metrics.publish_seconds", 0.5]

WORD, SENTENCE, LINK, FOUND = "#state .state", "#sentence", "#link", "main"
CURVES = "[...document.querySelectorAll('#charts path')].map(path => path.getAttribute('d'))"
UNNAMED = """[...document.querySelectorAll('svg:not([aria-hidden]), [role=img], [tabindex="0"]')]
    .filter(image => image.checkVisibility() && !image.getAttribute('aria-label')).length"""
WIDTH = "document.documentElement.scrollWidth"
CURSOR = """(() => { const chart = document.querySelector('#charts svg'); chart.focus();
    const before = chart.getAttribute('aria-valuetext');
    chart.dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}));
    return [before, chart.getAttribute('aria-valuetext'), document.activeElement === chart] })()"""
FOLLOWED = """(() => { const link = [...document.querySelectorAll('#runs a')].find(
    a => a.querySelector('strong').innerText === %r); link.focus(); link.click() })()"""


@contextlib.contextmanager
def server(root: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with process("launch", "watch", root, "--port", port) as child:
        assert child.stdout is not None
        assert b"http://127.0.0.1:" in child.stdout.readline()
        yield child


def shows(page: Page, selector: str, wanted: str) -> None:
    """Wait for a text in an element, which may not be there yet."""
    text = f"document.querySelector('{selector}')?.innerText"
    wait_for(lambda: wanted in (page.evaluate(text) or ""), f"{selector}: {wanted}")


def assert_is_readable(page: Page) -> None:
    """On a desk and on a phone, in light and dark; it is left on a phone."""
    for width, dark in ((1280, False), (1280, True), (390, True), (390, False)):
        page.resize(width=width, height=900, dark=dark)
        assert page.evaluate(WIDTH) <= width
        assert page.evaluate(UNNAMED) == 0
        assert page.low_contrasts() == []
        pixels = num_pixels(page.screenshot(), PAGE_RGB[dark])
        assert pixels > 0.1 * width * 900


def test_a_run_is_killed_resumed_and_deleted_while_the_page_is_open(
    shards: Path, tmp_path: Path
) -> None:
    root, port = tmp_path / "root", free_port()
    run, address = root / "run", f"http://localhost:{port}/"
    root.mkdir()
    with browser_page(tmp_path / "profile") as page, server(root, port) as first:
        page.open(address, width=1280, height=900)
        shows(page, FOUND, "no run in the folder yet")
        with train(2, shards, run, *SAVING) as job:
            shows(page, WORD, "training")
            wait_for_step(run, 10)
            shows(page, FOUND, "val top-1")
            shows(page, FOUND, "checkpoint of step")
            shows(page, SENTENCE, "Training since")
            ranks = "document.querySelectorAll('#ranks li').length"
            wait_for(lambda: page.evaluate(ranks) == 2, "both ranks")
            assert_is_readable(page)
            job.kill()
        shows(page, WORD, "killed")
        shows(page, SENTENCE, "Was killed at")
        first.kill()
        first.wait()
        shows(page, LINK, "no answer since")
        shown = page.evaluate(CURVES)
        assert "L" in shown[0], "what was there stays"
        with server(root, port):
            shows(page, LINK, "live")
            with train(2, shards, run, *SAVING):
                shows(page, WORD, "training")
                wait_for_step(run, 16, attempt=2)
                shows(page, FOUND, "resumed from step")
                shows(page, "#goodput", "2 attempts")
                marks = "document.querySelectorAll('line.mark').length"
                wait_for(lambda: page.evaluate(marks) > 0, "where it was resumed")
                wait_for(lambda: page.evaluate(CURVES) != shown, "longer curves")
                assert_is_readable(page)
            shows(page, WORD, "killed")
            before, after, has_focus = page.evaluate(CURSOR)
            assert before != after
            assert after.startswith("epoch 0.1")
            assert has_focus
            shutil.rmtree(run)
            shows(page, FOUND, "no run in the folder yet")
        assert {request.split("?")[0].removeprefix(address) for request in page.requests} <= {
            *("", "page.css", "page.js", "icon.svg", "state.json")
        }


def test_a_run_is_chosen_and_readable_and_its_names_are_text(tmp_path: Path) -> None:
    root, port = tmp_path / "root", free_port()
    write_run(root, ["ant", "bee"])
    (root / "run").rename(root / EVIL)
    (root / EVIL / "logs").mkdir()
    (root / EVIL / "logs" / "a.log").write_text("\x1b[31m<script>alert(2)</script>\n")
    (root / "broken").mkdir()
    (root / "broken" / "events.jsonl").write_bytes(b'{"kind": "run", "format_version": 99}\n')
    (root / "linked").symlink_to("/etc")
    with server(root, port), browser_page(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/", width=390, height=900)
        page.evaluate("window.alert = () => { window.alerted = true }")
        for name in ("broken", EVIL):
            shows(page, "#runs", name)
            page.evaluate(FOLLOWED % name)
            shows(page, "#name", name)
            assert page.evaluate("document.activeElement.innerText").startswith(name)
        shows(page, FOUND, "<script>alert(2)</script>")
        assert page.evaluate("document.querySelectorAll('img, main script').length") == 0
        assert page.evaluate("window.alerted") is None
        assert_is_readable(page)
        page.evaluate("history.back()")
        shows(page, FOUND, "cannot be read")
        page.evaluate("document.querySelector('#rest').open = true")
        shows(page, "#others", "a link to /etc")
        assert_is_readable(page)


def test_a_page_of_an_older_version_loads_itself_again(tmp_path: Path) -> None:
    port = free_port()
    root = Root(tmp_path)
    with bind(root, port) as running, browser_page(tmp_path / "profile") as page:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        page.open(f"http://127.0.0.1:{port}/", width=390, height=900)
        shows(page, LINK, "live")
        page.evaluate("window.isOld = true")
        running.version = "newer"
        wait_for(lambda: page.evaluate("window.isOld") is None, "the page again")
        shows(page, LINK, "live")
        page.evaluate("window.isOld = true")
        num_asked = len(page.requests)
        wait_for(lambda: page.evaluate(WIDTH) and len(page.requests) > num_asked + 1, "answers")
        assert page.evaluate("window.isOld"), "once is enough"
        running.shutdown()
        thread.join()
