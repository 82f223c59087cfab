"""What the sealed ImageNet recipes came to: integers, PASS or FAIL, and a page to send back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LIMITS: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "alexnet_2012": {1: (0.429, 0.200), 10: (0.408, 0.185)},
    "alexnet_fast": {1: (0.429, 0.200)},
}
"""The largest top-1 and top-5 error that passes, by recipe and number of views.

The upper ends of what seven nets of 2012 and 2013 had (nets 145, 155, 156, 169, 170, 171 and 174 of
the released code); the recipes promise the same.
"""
BANDS: Mapping[int, tuple[tuple[float, float], tuple[float, float]]] = {
    1: ((0.423, 0.429), (0.194, 0.200)),
    10: ((0.404, 0.408), (0.180, 0.185)),
}
"""Where those nets were: top-1 and top-5 error, by number of views."""

FLOORS: Mapping[str, Mapping[int, float]] = {
    "alexnet_2012": {1: 0.02, 5: 0.20, 20: 0.33, 35: 0.48, 60: 0.54},
    "alexnet_fast": {2: 0.02, 10: 0.20, 45: 0.33, 80: 0.48},
}
"""Val top-1 that a sound run has after that many epochs. No curve of 2012 was published: these are
loose estimates, and only warn early. The first measured curve should replace them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How many of the val images one evaluation had right."""

    views: int
    num_images: int
    correct1: int
    correct5: int | None
    """None with five classes or fewer."""

    def errors(self) -> tuple[float, float | None]:
        """Top-1 and top-5 error."""
        five = None if self.correct5 is None else 1 - self.correct5 / self.num_images
        return 1 - self.correct1 / self.num_images, five


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a recipe came to."""

    recipe: str
    counts: tuple[Count, ...]
    curve: tuple[tuple[float, float], ...]
    """Epoch and val top-1 of each evaluation in training."""
    facts: Mapping[str, Any]

    def faults(self) -> list[str]:
        """What does not pass, one sentence each; none means PASS."""
        found = []
        by_views = {count.views: count for count in self.counts}
        for views, limits in LIMITS[self.recipe].items():
            if views not in by_views:
                found.append(f"{_views(views)} is not evaluated")
                continue
            count = by_views[views]
            rights = (count.correct1, count.correct5 or 0)
            for k, right, limit in zip((1, 5), rights, limits, strict=True):
                wrong, most = count.num_images - right, round(limit * count.num_images)
                if wrong > most:
                    found.append(
                        f"top-{k} of {_views(views)}: {wrong:,} of {count.num_images:,} are wrong, "
                        f"{wrong / count.num_images:.2%}; at most {most:,} may be, {limit:.1%}"
                    )
        return found

    def warnings(self) -> list[str]:
        """Epochs after which the curve was below its floor."""
        found = []
        for epoch, floor in FLOORS[self.recipe].items():
            reached = [top1 for at, top1 in self.curve if at <= epoch]
            if reached and self.curve[-1][0] >= epoch and reached[-1] < floor:
                found.append(
                    f"after epoch {epoch} val top-1 is {reached[-1]:.2%}, below {floor:.0%}"
                )
        return found


def _views(views: int) -> str:
    return "the middle view" if views == 1 else f"{views} views"


def page(outcomes: Sequence[Outcome], document: Mapping[str, Any]) -> str:
    """The result as one page of Markdown."""
    lines = ["# AlexNet on ILSVRC-2012", ""]
    if document["dry_run"]:
        lines += ["**Dry run: the figures mean nothing, and there is no verdict.**", ""]
    names = ("measured", "hardware", "git_revision", "shard_set", "manifest_sha256")
    lines += [f"- {name}: {document[name]}" for name in names]
    lines += [f"- {name}: {value}" for name, value in document["versions"].items()]
    for outcome in outcomes:
        faults = outcome.faults()
        verdict = "no verdict" if document["dry_run"] else "FAIL" if faults else "PASS"
        lines += ["", f"## {outcome.recipe}: {verdict}", "", *_table(outcome), ""]
        if not document["dry_run"]:
            lines += [f"- {text}" for text in (*faults, *outcome.warnings())]
        facts = (name for name in outcome.facts if name != "configuration")
        lines += [f"- {name}: {outcome.facts[name]}" for name in facts]
        curve = ", ".join(f"{epoch:g}: {top1:.2%}" for epoch, top1 in outcome.curve)
        lines += ["", f"Val top-1 by epoch: {curve or 'not evaluated in training'}."]
    return "\n".join(lines) + "\n"


def _table(outcome: Outcome) -> list[str]:
    lines = [
        "| views | top-1 right | top-1 error | 2012 | top-5 right | top-5 error | 2012 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count in outcome.counts:
        cells = [f"{count.views}"]
        rights = (count.correct1, count.correct5)
        for right, error, band in zip(rights, count.errors(), BANDS[count.views], strict=True):
            known = "–" if right is None else f"{right:,} of {count.num_images:,}"
            low, high = band
            cells += [known, "–" if error is None else f"{error:.2%}", f"{low:.1%} to {high:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
