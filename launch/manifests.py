"""`python -m launch kubernetes KIND …`: renders the objects of jobs, and asks no cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.shard_set.files import as_command
from data_prep.shard_set.options import made
from data_prep.shard_set.streams import say
from launch.kubernetes import render_conversion, render_training
from launch.kubernetes_spec import KubernetesSpec, PreparePods, TrainPods
from launch.options import (
    add_kind,
    parse_sharding,
    paths_of,
    refuse_misplaced,
    refuse_script_options,
    warn_of_waits,
    without_tilde,
    write_own,
)
from pipeline.config.order import Surroundings
from pipeline.config.schema import AUTO_ADDRESS, MetricsConfig
from pipeline.metrics.addresses import is_loopback
from pipeline.train.command import asks_for_help, help_text, parse_command

_ADDRESS = "metrics.exporter_address"
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - a pod's network is its own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for name, plan, spec, command, text in (
        ("train", _plan_training, TrainPods, "RECIPE …", "train a recipe"),
        ("prepare", _plan_conversion, PreparePods, "SOURCE …", "make a shard set by an array"),
    ):
        add_kind(kinds, name, command, text, (spec,), run=run, plan=plan)


def run(options: argparse.Namespace) -> None:
    """Raises `ValueError` or `OSError`, with nothing written, if a part of it cannot work."""
    refuse_misplaced(options.program, options.specs, options.command)
    (kind,) = options.specs
    spec: KubernetesSpec = made(kind, vars(options))
    objects: list[str] = options.plan(spec, options.command)
    text = "---\n".join([f"# Written by `{options.program}`.\n", *objects])
    if spec.file is None:
        sys.stdout.write(text)
    else:
        write_own(spec.file, text, "--to")
        command = as_command("kubectl", "apply", "-f", spec.file)
        say(f"wrote {spec.file}; to start the job: {command}")


def _plan_training(spec: TrainPods, arguments: Sequence[str]) -> list[str]:
    if asks_for_help(arguments):
        say(*help_text(arguments).splitlines())
        raise SystemExit(0)  # as the parsers of other options do
    command = parse_command(arguments)
    for option, path in paths_of(command).items():
        spec.check_is_mounted(option, path)
    around = Surroundings(shutdown=spec.shutdown_seconds, grace=spec.signal_lead_seconds)
    warn_of_waits(command, around)
    words = without_tilde(arguments)
    metrics = command.config.metrics
    if not (metrics.enabled and metrics.exporter):
        return render_training(spec, words, command.run, None)
    if spec.pod_monitor:
        _check_is_scraped(metrics)
    if metrics.exporter_address == AUTO_ADDRESS:  # a pod alone would listen on loopback
        words += [f"--{_ADDRESS}={_EVERYWHERE}"]
    return render_training(spec, words, command.run, metrics.exporter_port)


def _check_is_scraped(metrics: MetricsConfig) -> None:
    """Raise `ValueError` if what a PodMonitor says would not lead to the exporters."""
    why = ""
    if metrics.exporter_address != AUTO_ADDRESS and is_loopback(metrics.exporter_address):
        why = f"{_ADDRESS} is {metrics.exporter_address}, which no other pod reaches"
    elif metrics.exporter_port == 0:
        why = "metrics.exporter_port is 0, any free port"
    elif metrics.exporter_certfile:
        why = "metrics.exporter_certfile is given, and the monitor knows none of its authorities"
    if why:
        raise ValueError(f"{why}: leave that out, or give --no-pod-monitor and a monitor of yours")


def _plan_conversion(spec: PreparePods, arguments: Sequence[str]) -> list[str]:
    shards: Path = parse_sharding(["shard", *arguments]).shards
    words = without_tilde(arguments)
    refuse_script_options(words)
    spec.check_is_mounted("--output", shards)
    return render_conversion(spec, words, str(shards))
