"""What an exporter shows at `/` to people: whose run it serves, and how its ranks stand."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator

from data_prep.shard_set.files import as_text
from pipeline.metrics.outcomes import RunStatus

_HEAD = "<tr><th>rank<th>node<th>stands<th>since (UTC)<th>last published\n"


def render_page(whose: str, status: RunStatus, host: str, now: float) -> str:
    """A page in HTML, without scripts or styles; `whose` names the run, and the node `host`."""
    title, parts = html.escape(f"Metrics of {whose}"), [_standing(status)]
    if status.ranks:
        parts.append("<table border>\n" + _HEAD + "".join(_rows(status, host, now)) + "</table>")
    if status.num_damaged:
        parts.append(f"<p>Files of ranks that cannot be read: {status.num_damaged}")
    return (
        "<!DOCTYPE html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>{title}</title>\n<h1>{title}</h1>\n" + "\n".join(parts) + "\n"
        '<p><a href="/metrics">/metrics</a>: all values, as Prometheus reads them; '
        '<a href="/healthz">/healthz</a>: whether they can be read\n'
    )


def _standing(status: RunStatus) -> str:
    """How the run stands."""
    if status.outcome is None:
        return "<p>The run has not begun."
    since = min((rank.writer.since for rank in status.ranks), default=None)
    begin = "" if since is None else f"; this attempt began at {_clock(since)}"
    end = "" if status.ended is None else f", and ended at {_clock(status.ended)}"
    return f"<p>The run is <b>{status.outcome}</b>{begin}{end} (UTC)."


def _rows(status: RunStatus, host: str, now: float) -> Iterator[str]:
    for rank in sorted(status.ranks, key=lambda file: file.writer.rank):
        writer = rank.writer
        cells = (
            *(str(writer.rank), html.escape(as_text(writer.host)), rank.outcome(host, now)),
            *(_clock(writer.since), f"{max(0, now - rank.heartbeat):,.0f} s ago"),
        )
        yield f"<tr><td>{'<td>'.join(cells)}\n"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
