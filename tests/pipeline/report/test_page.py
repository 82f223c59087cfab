"""The report's numbers and pictures against independent computation from its inputs."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.shard_set.manifest import Encoding
from pipeline.report.images import png_uri
from pipeline.report.page import render
from pipeline.run.directory import RunDirectory
from tests.pipeline.fake_run import encode, make_images, write_run
from tests.pipeline.report.html_tree import parse
from tests.pipeline.report.report_page import (
    NAMES,
    SECTIONS,
    bars_of,
    image_of,
    page_of,
    saved_predictions,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path, NAMES)


def test_headline_counts(run: RunDirectory) -> None:
    rows = [json.loads(line) for line in run.events.read_text().splitlines()]
    evals = [row for row in rows if row["kind"] == "eval"]
    final, best = evals[-1], max(evals, key=lambda row: row["correct1"])
    assert best is not final
    page = page_of(run)
    top1, top5, speed, wait = (tile.text for tile in page.with_id("headline").all("div", "tile"))
    assert f"{100 * final['correct1'] / final['seen']:.2f} %" in top1
    assert f"{final['correct1']} / {final['seen']} correct" in top1
    assert f"best {100 * best['correct1'] / 84:.2f} %, {best['correct1']} / 84, at epoch 9" in top1
    assert f"{final['correct5']} / {final['seen']} correct" in top5
    trains = [row for row in rows if row["kind"] == "train"]
    assert f"{np.median([row['images_per_second'] for row in trains]):,.0f} " in speed
    waited = sum(row["phase_seconds"]["data_wait"] for row in trains)
    total = sum(sum(row["phase_seconds"].values()) for row in trains)
    assert f"{100 * waited / total:.2f} %" in wait
    for word in (
        "alexnet_cifar on generated shapes",
        "cifar10",
        "completed",
        "bf16",
        "2 × 64",
        "cpu",
    ):
        assert word in page.with_id("headline").text
    rows_shown = page.with_id("configuration").all("tr")
    shown = {row.one("th").text: row.one("td").text for row in rows_shown}
    assert shown["seed"] == "7"
    assert shown["model.name"] == "alexnet_cifar"
    assert shown["torch"] == "2.13.0"
    assert shown["git_revision"] == "–"
    assert len(shown["manifest_sha256"]) == 64


def test_confusion_matrix_counts(run: RunDirectory) -> None:
    saved = saved_predictions(run)
    pairs = zip(saved["labels"].tolist(), saved["topk_classes"][:, 0].tolist(), strict=True)
    expected = Counter(pairs)
    table = page_of(run).with_id("confusion").one("table", "matrix")
    rows = table.one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == list(NAMES)
    for label, row in enumerate(rows):
        *counts, recall = [cell.text for cell in row.all("td")]
        assert [int(text) for text in counts] == [expected[label, c] for c in range(len(NAMES))]
        assert recall == f"{100 * expected[label, label] / 12:.1f} %"
        assert [c for c, cell in enumerate(row.all("td")) if "hit" in cell.classes] == [label]


def test_bars_of_each_class(run: RunDirectory) -> None:
    saved = saved_predictions(run)
    cards = page_of(run).with_id("classes").all("li", "taken")
    assert [card.one("h3").text for card in cards] == list(NAMES)
    for label, card in enumerate(cards):
        taken_for = Counter(saved["topk_classes"][saved["labels"] == label, 0].tolist())
        assert bars_of(card) == [
            (name, c == label, round(taken_for[c] / 12, 4), str(taken_for[c]))
            for c, name in enumerate(NAMES)
        ]
        first = int(np.flatnonzero(saved["labels"] == label)[0])
        np.testing.assert_array_equal(image_of(card), make_images(saved["labels"])[first])


def test_top5_bars_of_examples(run: RunDirectory) -> None:
    saved = saved_predictions(run)
    cards = page_of(run).with_id("examples").all("li", "guess")
    kinds = []
    for card in cards:
        sample = int(card.one("img", "photo").attributes["alt"].split()[-1])
        label = int(saved["labels"][sample])
        classes = saved["topk_classes"][sample].tolist()
        assert card.one("h3").text == NAMES[label]
        assert [(name, right) for name, right, _, _ in bars_of(card)] == [
            (NAMES[c], c == label) for c in classes
        ]
        np.testing.assert_allclose(
            [share for _, _, share, _ in bars_of(card)],
            saved["topk_probabilities"][sample],
            atol=5e-5,
        )
        kinds.append("first" if classes[0] == label else label in classes)
        np.testing.assert_array_equal(image_of(card), make_images(saved["labels"])[sample])
    found = np.where(
        saved["topk_classes"][:, 0] == saved["labels"],
        "first",
        np.where((saved["topk_classes"] == saved["labels"][:, None]).any(axis=1), "topk", "no"),
    )
    wrong = min(2, int((found == "no").sum()))
    assert Counter(kinds)[False] == wrong
    assert len(cards) == 8
    assert Counter(kinds)["first"] >= 3
    assert Counter(kinds)[True] == 3


@pytest.mark.parametrize(("field", "variable"), [("top1", "--right"), ("top5", "--right-soft")])
def test_accuracy_curve_goes_through_the_evaluations(
    run: RunDirectory, field: str, variable: str
) -> None:
    rows = [json.loads(line) for line in run.events.read_text().splitlines()]
    shares = [row[field] for row in rows if row["kind"] == "eval"]
    chart = page_of(run).with_id("curves").all("svg")[0]
    (line,) = (
        path.attributes["d"]
        for path in chart.all("path")
        if "fill: none" in path.attributes["style"]
        and f"stroke: var({variable});" in path.attributes["style"]
    )
    numbers = [float(number) for number in re.findall(r"[\d.]+", line)]
    assert len(numbers) == 2 * len(shares)
    # The axis runs from 0 to 1 over 82.5 % of a height of 250, downwards.
    drawn = (250 * (1 - 0.145) - np.array(numbers[1::2])) / (250 * 0.825)
    np.testing.assert_allclose(drawn, shares, atol=1e-4)


def test_epochs_begin_at_0_in_every_chart(run: RunDirectory) -> None:
    accuracy, _, speed, phases = page_of(run).all("svg")
    assert [chart.all("text")[0].text for chart in (accuracy, speed, phases)] == ["0"] * 3


def test_throughput_has_ticks_at_equal_distances_that_say_what_they_are(
    run: RunDirectory,
) -> None:
    """Also where there are few images a second: 2.5, and not 2."""
    rows = [json.loads(line) for line in run.events.read_text().splitlines()]
    for row in rows:
        if row["kind"] == "train":
            row["images_per_second"] = 11.4
    run.events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chart = page_of(run).with_id("time").all("svg")[0]
    texts = [text.text for text in chart.all("text")]
    ticks = [float(text) for text in texts[texts.index("epoch") + 1 :]]
    assert len(ticks) >= 4
    assert np.ptp(np.diff(ticks)) < 1e-9


@pytest.mark.slow
def test_phases_have_plain_names(run: RunDirectory) -> None:
    legend = page_of(run).with_id("time").all("ul", "legend")[1]
    names = [key.text.rstrip(" %.0123456789") for key in legend.all("li")]
    assert names == [
        "waiting for data",
        "copying to the device",
        "forward and backward",
        "waiting for other ranks",
        "optimizer",
        "other",
    ]


@pytest.mark.parametrize("encoding", ["rgb", "jpeg"])
def test_images_come_from_the_shards(tmp_path: Path, encoding: Encoding) -> None:
    run = write_run(tmp_path, NAMES, encoding=encoding)
    labels = saved_predictions(run)["labels"]
    cards = page_of(run).with_id("classes").all("li", "taken")
    for label, card in enumerate(cards):
        pixels = make_images(labels)[label]
        if encoding == "jpeg":
            with Image.open(io.BytesIO(encode(pixels, "jpeg"))) as image:
                pixels = np.asarray(image)
        np.testing.assert_array_equal(image_of(card), pixels)


def test_many_classes_show_the_worst(tmp_path: Path) -> None:
    names = [f"kind-{label}" for label in range(40)]
    run = write_run(tmp_path, names, samples_per_class=6, skill=2.0)
    saved = saved_predictions(run)
    page = page_of(run)
    mistakes = Counter(
        (int(label), int(taken_for))
        for label, taken_for in zip(saved["labels"], saved["topk_classes"][:, 0], strict=True)
        if label != taken_for
    )
    rows = page.with_id("confusion").one("tbody").all("tr")
    counts = [int(row.one("td", "number").text.split(" of 6")[0]) for row in rows]
    assert counts == sorted(mistakes.values(), reverse=True)[:20]
    for row, count in zip(rows, counts, strict=True):
        right = int(row.one("th").text.removeprefix("kind-"))
        taken_for = int(row.all("td")[0].text.removeprefix("kind-"))
        assert mistakes[right, taken_for] == count
    recall = [
        float(np.mean(saved["topk_classes"][saved["labels"] == label, 0] == label))
        for label in range(40)
    ]
    worst = sorted(range(40), key=lambda label: (recall[label], label))[:10]
    cards = page.with_id("classes").all("li", "taken")
    assert [card.one("h3").text for card in cards] == [names[label] for label in worst]
    for label, card in zip(worst, cards, strict=True):
        taken_for = saved["topk_classes"][saved["labels"] == label, 0].tolist()
        assert {name: int(value) for name, _, _, value in bars_of(card)} == {
            names[label]: 0,
            **{names[other]: count for other, count in Counter(taken_for).items()},
        }


def test_the_most_confused_pairs_are_pictures(run: RunDirectory) -> None:
    saved = saved_predictions(run)
    labels, answers = saved["labels"], saved["topk_classes"][:, 0]
    confidence, images = saved["topk_probabilities"][:, 0], make_images(labels)
    mistakes = Counter(
        (int(label), int(answer))
        for label, answer in zip(labels, answers, strict=True)
        if label != answer
    )
    cards = page_of(run).with_id("confusion").all("li", "pair")
    assert len(cards) == min(8, len(mistakes))
    counts = sorted(mistakes.values(), reverse=True)
    for card, count in zip(cards, counts, strict=False):
        right, taken_for = (NAMES.index(strong.text) for strong in card.all("strong"))
        assert card.one("p").text.endswith(f": {count} of 12")
        assert mistakes[right, taken_for] == count
        pictures = card.all("img", "photo")
        for picture, wanted in zip(pictures, (right, taken_for), strict=True):
            sample = int(picture.attributes["alt"].split()[-1])
            assert labels[sample] == wanted
            assert answers[sample] == taken_for
            alike = (labels == wanted) & (answers == taken_for)
            assert confidence[sample] == confidence[alike].max()
            assert picture.attributes["src"] == png_uri(Image.fromarray(images[sample]))


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = ('<script>alert("x")</script>', "a'\"><img src=http://x.test/>", "{{ 7 * 7 }}", "ü&$x$")
    run = write_run(tmp_path, names)
    page = page_of(run)
    assert page.all("script") == []
    assert {e.attributes["src"][:5] for e in page.all("img")} == {"data:"}
    rows = page.with_id("confusion").one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == list(names)


def test_page_refers_to_nothing_outside(run: RunDirectory) -> None:
    text = render(run)
    page = parse(text)
    for element in page.everything():
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#")), (element.tag, name, value)
            if name.startswith("xmlns"):
                continue
            assert "://" not in value, (element.tag, name, value)
    style = page.one("style").text
    assert "@import" not in style
    assert "url(" not in style
    assert all(element.tag != "link" for element in page.everything())
    policy = page.one("head").all("meta")[-1].attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_ids_are_unique_and_figures_named(run: RunDirectory) -> None:
    page = page_of(run)
    ids = Counter(e.attributes["id"] for e in page.everything() if "id" in e.attributes)
    assert {name: n for name, n in ids.items() if n > 1} == {}
    assert set(SECTIONS) <= set(ids)
    charts = page.all("svg")
    assert len(charts) == 4
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in charts)
    assert len(page.all("img")) > len(NAMES)
    assert all(image.attributes["alt"] for image in page.all("img"))


def test_same_run_gives_same_page(run: RunDirectory) -> None:
    assert render(run) == render(run)
