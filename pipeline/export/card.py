"""What an export says of itself: `config.json`, and the model card `README.md` with its curve."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

from data_prep.shard_set.files import as_command, as_text, write_atomically
from pipeline.config.marks import show
from pipeline.config.recipes import RECIPES
from pipeline.config.schema import is_operational, values_of
from pipeline.export.curve import draw_curve
from pipeline.export.formats import Format, file_name
from pipeline.export.markdown import code, prose, quoted
from pipeline.export.onnx_model import GraphOptions
from pipeline.run.dataset import MEAN_IMAGE
from pipeline.run.events import EvalEvent
from pipeline.trained.exported import CONFIG, to_json
from pipeline.trained.network import TrainedNetwork

CARD, CURVE = "README.md", "curve.png"
_MOST_CLASSES = 20
"""More are not listed in the card."""


def write_card(
    network: TrainedNetwork, folder: Path, formats: Sequence[Format], graph: GraphOptions
) -> None:
    """Write `config.json`, `README.md` and, with matplotlib, the curve. Raises `OSError`."""
    content = to_json(network.config, network.dataset, network.origin, folder)
    content["preprocessing"] = preprocessing_of(network)
    text = as_text(json.dumps(content, indent=1, ensure_ascii=False))
    write_atomically(folder / CONFIG, text.encode() + b"\n")
    curve = draw_curve(network)
    if curve is not None:
        write_atomically(folder / CURVE, curve)
    sections = (
        *(_front_matter(network), _summary(network), _accuracy(network, formats)),
        *("" if curve is None else f"![Accuracy over epochs]({CURVE})\n",),
        *(_use(network, formats, graph), _training(network), _data(network)),
    )
    write_atomically(folder / CARD, "\n".join(filter(None, sections)).encode())


def preprocessing_of(network: TrainedNetwork) -> dict[str, Any]:
    """From a decoded RGB image, 0–255, to what the network takes: scale, crop, (x - mean) / std."""
    normalizer = network.normalizer()
    std = (1 / normalizer.scale.cpu().double()).tolist()
    mean: Any = MEAN_IMAGE
    if not network.config.augment.subtracts_mean_image:
        shift = normalizer.shift.cpu().double().tolist()
        mean = [-one * deviation for one, deviation in zip(shift, std, strict=True)]
    return {
        "colors": "RGB, 0 to 255",
        "middle_square_scaled_to": list(network.evaluated_size),
        "middle_crop": list(network.input_size),
        "mean": mean,
        "std": std,
        "layout": "float32 N×3×H×W",
    }


def _front_matter(network: TrainedNetwork) -> str:
    """Metadata of the Hugging Face Hub, as YAML; JSON's texts are YAML's, too."""
    name, origin = network.config.model.name, network.origin
    lines = [
        *("---", "pipeline_tag: image-classification", "library_name: pytorch"),
        *("tags:", "- alexnet", f"- {name}"),
    ]
    results = list(_evaluations(network))
    if results:
        lines += ["model-index:", f"- name: {quoted(origin.run)}", "  results:"]
    for event in results:
        title = quoted(event.shard_set or network.dataset.title)
        lines += [
            "  - task: {type: image-classification}",
            f"    dataset: {{type: {title}, name: {title}, split: {quoted(event.split)}}}",
            *("    metrics:", f"    - {{type: accuracy, name: top-1, value: {event.top1:.6f}}}"),
        ]
        if event.top5 is not None:
            lines.append(f"    - {{type: accuracy, name: top-5, value: {event.top5:.6f}}}")
    return "\n".join([*lines, "---", ""])


def _evaluations(network: TrainedNetwork) -> Iterator[EvalEvent]:
    """Of these weights, the last of each kind; those on other shard sets come last."""
    found = {(row.split, row.views, row.manifest_sha256): row for row in network.origin.evaluations}
    yield from sorted(found.values(), key=lambda row: not row.own_shards)


def _summary(network: TrainedNetwork) -> str:
    name, origin, dataset = network.config.model.name, network.origin, network.dataset
    count = sum(parameter.numel() for parameter in network.model.parameters())
    began = "" if origin.began is None else f" It began with the weights of {_named(origin.began)}."
    return (
        f"# {name}, trained on {prose(dataset.title)}\n\n"
        f"`{name}`, {count:,} parameters, {dataset.num_classes:,} classes: the weights after step "
        f"{origin.step:,} of the run {code(origin.run)}, of the recipe "
        f"{code(origin.recipe)}.{began}\n"
        f"The hash of the weights is {code(origin.weights_sha256)}.\n"
    )


def _named(began: Mapping[str, Any]) -> str:
    """What `Settings` keeps of the weights that a run began with, without places of its host."""
    place = began.get("checkpoint") or began.get("path")
    name = code(Path(str(place)).name)
    if (sha256 := began.get("weights_sha256")) is not None:
        name += f", whose hash is {code(str(sha256))}"
    if (layer := began.get("new_layer")) is not None:
        name += f", and a new last layer {code(str(layer))}"
    return name


def _accuracy(network: TrainedNetwork, formats: Sequence[Format]) -> str:
    rows = list(_evaluations(network))
    lines = ["## Accuracy", ""]
    for row in rows:
        top5 = "" if row.correct5 is None else f", top-5 {_share(row.correct5, row.seen)}"
        title = prose(row.shard_set or network.dataset.title)
        if not row.own_shards:
            title += f" (another shard set, with the hash {code(str(row.manifest_sha256))})"
        lines.append(
            f"- {code(row.split)} of {title}, views of an image: {row.views or 1}. "
            f"Top-1 **{_share(row.correct1, row.seen)}**{top5}."
        )
    views = rows[0].views if rows else network.config.evaluation.views
    split = rows[0].split if rows else "val"
    source, what = f"RUN --checkpoint {network.origin.step}", "RUN is the directory of the run"
    place = "that is described below" if not rows or rows[0].own_shards else "with the hash above"
    if "safetensors" in formats:
        source, what = "EXPORT", "EXPORT is the folder of this file"
    command = (
        f"    python -m pipeline.evaluate --run-dir {source} --split {as_command(split)} "
        f"--views {views or 1} --shards SHARDS"
    )
    if not rows:
        return "\n".join(
            [*lines, "These weights were not evaluated. This does it:", "", command, ""]
        )
    return "\n".join(
        (
            *(*lines, ""),
            "Each image of the split was counted once and none was left out; arithmetic is "
            "float32; the answer is the class with the largest mean of the views' probabilities, "
            "the first one of equals. This repeats the count, with the same integers on any number "
            "of ranks:",
            *("", command, ""),
            f"{what}, and SHARDS the shard set {place}.",
            "",
        )
    )


def _share(correct: int, seen: int) -> str:
    return f"{correct:,} of {seen:,} ({correct / seen:.2%})"


def _use(network: TrainedNetwork, formats: Sequence[Format], graph: GraphOptions) -> str:
    (height, width), whole = network.input_size, network.evaluated_size
    found = preprocessing_of(network)
    mean = found["mean"]
    if not isinstance(mean, str):
        mean = ", ".join(f"{value:.6g}" for value in mean)
    std = ", ".join(f"{value:.6g}" for value in found["std"])
    lines = [
        *("## Use", ""),
        "An image is decoded to upright RGB, 0 to 255. Its middle square is scaled to "
        f"{whole[0]}×{whole[1]} if it has not that size, the middle {height}×{width} of it is "
        "taken, and each channel becomes (x - mean) / std:",
        *("", f"- mean: {mean}", f"- std: {std}", ""),
        f"`{CONFIG}` has these numbers in full, the names of the classes in the order of the "
        "logits, and the whole configuration of the training.",
        "",
        *(_use_of(form, network, graph) for form in formats),
        "",
    ]
    return "\n".join(lines)


def _use_of(form: Format, network: TrainedNetwork, graph: GraphOptions) -> str:
    """One line on a file."""
    (height, width), whole = network.input_size, network.evaluated_size
    images = f"float32 N×3×{height}×{width}"
    name = f"- `{file_name(form)}`:"
    match form:
        case "safetensors":
            return f"{name} the weights; `safetensors.torch.load_file` reads them."
        case "torch":
            return f"{name} the weights; `torch.load(…, weights_only=True)` reads them."
        case "pt2":
            return (
                f"{name} `torch.export.load(…).module()` takes {images} and gives logits; plain "
                "torch runs it."
            )
        case "onnx":
            what = f"{images} `images` and gives `logits`"
            if graph.preprocessing:
                what = f"uint8 N×{whole[0]}×{whole[1]}×3 `images` and gives `probabilities`"
            return f"{name} takes {what}; opset {graph.opset}, standard operators only."
        case unknown:
            assert_never(unknown)


def _training(network: TrainedNetwork) -> str:
    origin, values = network.origin, values_of(network.config)
    words = [f"    python -m pipeline.train {as_command(origin.recipe)}"]
    if origin.recipe in RECIPES:
        usual = values_of(RECIPES[origin.recipe]())
        words += [
            f"--{name} {as_command(show(value))}"
            for name, value in values.items()
            if value != usual[name] and not is_operational(name)
        ]
    words += ["--data.shards SHARDS", "--run-dir RUN"]
    return "\n".join(("## Training", "", " ".join(words), ""))


def _data(network: TrainedNetwork) -> str:
    dataset = network.dataset
    splits = ", ".join(f"{count:,} of {code(name)}" for name, count in dataset.num_samples.items())
    given = ((name, value) for name, value in sorted(dataset.options.items()) if value is not None)
    options = prose(", ".join(f"{name} {value}" for name, value in given))
    lines = [
        *("## Data", ""),
        f"{prose(dataset.title)}, source {code(dataset.source)}, encoding "
        f"{code(dataset.encoding)}; images: "
        f"{splits}. Options of the conversion: {options or 'none'}. The SHA-256 of the shard set's "
        f"manifest `_info.json` is `{dataset.manifest_sha256}`; through the hashes in it, it is "
        "that of every image.",
        "",
    ]
    if dataset.num_classes <= _MOST_CLASSES:
        lines += [f"Classes: {', '.join(map(prose, dataset.class_names))}.", ""]
    return "\n".join(lines)
