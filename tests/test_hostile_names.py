"""Names of any kind stay names at every door: no shell, terminal, page, path or row obeys them."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import markdown
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from data_prep.__main__ import main as data_prep
from data_prep.shard_set.files import as_command, as_text, printable
from data_prep.shard_set.manifest import read_manifest
from launch.__main__ import main as launch
from launch.prometheus import render_config
from launch.slurm import TrainingCommand, render_merge, render_prepare, render_train
from launch.spec import JobSpec, PrepareSpec, TrainSpec
from pipeline.data.cache.remote import command_of, location_of
from pipeline.evaluate.__main__ import main as evaluate
from pipeline.export.__main__ import main as export
from pipeline.metrics.declared import HEARTBEAT
from pipeline.metrics.discovery import Target, drop_unanswered
from pipeline.metrics.front_page import render_page
from pipeline.metrics.outcomes import RootOutcomes, read_run_status
from pipeline.metrics.pages import Identity
from pipeline.metrics.rank_file import Writer, rank_file_name, read_rank_file, render_rank_file
from pipeline.predict.__main__ import main as predict
from pipeline.report.comparison_page import render_comparison
from pipeline.report.page import render
from pipeline.run import checkpoint
from pipeline.run.directory import ForkSource, RunDirectory
from pipeline.run.event_log import read_rows
from pipeline.run.events import EndEvent, Straggler
from pipeline.trained.network import open_trained
from pipeline.watch.root import Root
from pipeline.watch.text import shown
from tests.data_prep.raw_data import make_pixels
from tests.hostile import ALL_KINDS, NAMES, TEXTS, VISIBLE, assert_plain, each_name, is_shown
from tests.integration.training import make_shards, rows, train_here, training
from tests.machine import DEADLINE_SECONDS
from tests.pipeline.explain.scenes import Scene
from tests.pipeline.fake_run import (
    RunHistory,
    checkpoint_fields,
    eval_fields,
    start_fields,
    train_fields,
    write_run,
)
from tests.pipeline.follow.test_exports import records_of
from tests.pipeline.monitoring import REPOSITORY
from tests.pipeline.report.html_tree import parse
from tests.pipeline.trained_run import SHARDS, unpack_usable_run
from tests.pipeline.watch.test_server import ask, serving

Captured = pytest.CaptureFixture[str]

PARTS = [[*TEXTS.values()][start : start + 10] for start in (0, 10, len(TEXTS) - 10)]
"""Ten names each, all together."""


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, in which commands in names would leave a file."""
    monkeypatch.chdir(tmp_path)


@given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_a_command_to_copy_is_a_line_that_a_shell_takes_apart_again(words: list[str]) -> None:
    words = [os.fsdecode(word.encode("utf-8", "replace")) for word in (*words, *NAMES.values())]
    text = as_command("printf", "%s\\0", *words)
    assert text.isprintable()
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


def test_a_path_to_copy_is_no_option_and_no_home() -> None:
    assert as_command(Path("-rf")) == "./-rf"
    assert as_command(Path("~root")) == "'./~root'"
    assert as_command("-x", Path("a/-b")) == "-x a/-b"


@given(st.text())
def test_a_shown_name_stays_on_its_line(name: str) -> None:
    shown = printable(name)
    assert shown.isprintable()
    if name.isprintable():
        assert shown == name


SAYING = """
import logging, os, sys
from data_prep.shard_set.streams import open_streams, say
open_streams()
logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stdout)
for name in map(os.fsdecode, os.read(0, 1 << 20).split(b"\\0")):
    say(f"name {name}")
    logging.warning("name %s of %d", name, 7)
    logging.warning("error %s", ValueError(name))
"""


def test_lines_and_logs_hold_one_name_each() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAYING],
        input=b"\0".join(map(os.fsencode, NAMES.values())),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"},
        check=True,
    )
    expected = [
        line.format(printable(name))
        for name in NAMES.values()
        for line in ("name {}", "WARNING: name {} of 7", "WARNING: error {}")
    ]
    assert done.stdout.decode().split("\n") == [*expected, ""]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run."""
    folder = tmp_path_factory.mktemp("plain")
    return write_run(folder, ["ant", "bee"], samples_per_class=1).config


def hostile_run(root: Path, name: str) -> RunDirectory:
    """A run that is called `name`, and has it wherever an event has text of others."""
    run = RunDirectory(root / name)
    run.logs.mkdir(parents=True)
    (run.logs / "a.log").write_bytes(b"\x1b]0;x\x07log\rdrawn\terror\n" + os.fsencode(name) + b"\n")
    history = RunHistory(run)
    history.write("run", 0, **start_fields() | {"shard_set": name, "forked_from": name})
    history.write("train", 10, **train_fields(10))
    history.write("eval", 10, **eval_fields(1, 2, 10, 10) | {"shard_set": name, "split": name})
    history.write("checkpoint", 10, **checkpoint_fields("best") | {"path": f"/x/{name}"})
    where = {"rank": 1, "host": name}
    history.write("alarm", 10, reason="damaged_image", rank=1, sample=3, shard=name, what=name)
    history.write(
        "alarm", 10, reason="straggler", slow="rank", phase="h2d", lag_seconds=1.0, **where
    )
    history.write("alarm", 10, reason="replicas_differ", tensor=name, what=name, **where)
    history.write("signal", 10, source=name)
    history.write("end", 10, outcome="failed", error=f"rank 1 on {name}: {name}")
    history.close()
    return run


@each_name
def test_what_is_said_of_a_run(name: str, tmp_path: Path, capsys: Captured) -> None:
    run = hostile_run(tmp_path, name)
    for command in ("status", "explain"):
        assert launch([command, str(run.path)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert_plain(out)
        assert is_shown(name, out)
    assert launch(["explain", "--json", str(run.path)]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "failed"
    assert launch(["stop", str(run.path)]) == 1
    assert launch(["explain", f"{run.path}-none"]) == 1
    err = capsys.readouterr().err
    assert [line[:7] for line in err.splitlines()] == ["error: "] * 2
    assert_plain(err)


@each_name
def test_rows_of_events_are_one_line_each(name: str, tmp_path: Path) -> None:
    run = hostile_run(tmp_path, name)
    assert run.events.read_bytes().count(b"\n") == 9
    rows = list(read_rows(run.events))
    assert len(rows) == 9
    assert [row.host for row in rows if isinstance(row, Straggler)] == [name]
    assert [row.error for row in rows if isinstance(row, EndEvent)] == [f"rank 1 on {name}: {name}"]


def on_terminal(*words: str, code: str = "", path: Path = REPOSITORY) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", *words]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"PYTHONPATH": f"{path}:{REPOSITORY}", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)
    written = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal, child:
        try:
            while block := terminal.read(1 << 16):
                written += block
        except OSError:  # how Linux says that nobody has the other end
            pass
    assert child.returncode == 0, written
    return written.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_no_log_or_name_gives_orders_to_a_terminal(tmp_path: Path) -> None:
    run = hostile_run(tmp_path, NAMES["title"] + NAMES["return"] + NAMES["c1"])
    for command in ("status", "explain"):
        said = on_terminal("launch", command, str(run.path))
        assert_plain(said)
        assert is_shown(run.name, said)
    lines = on_terminal("launch", "logs", str(run.path)).split("\n")
    assert [line for line in lines if not line.isprintable()] == []
    assert lines[1] == "drawn   error", "of a line that was drawn over again, the last"


RANKS = """
import sys
from pathlib import Path
from data_prep.shard_set.streams import open_streams
from launch.torchrun import run_torchrun
open_streams()
words = [sys.executable, "-c", r"import os; os.write(1, b'\\x1b]0;x\\x07of a rank \\xff\\n')"]
run_torchrun(lambda: words, Path("log"), Path("events"))
"""


@pytest.mark.slow
def test_output_of_ranks_gives_no_orders_to_a_terminal(tmp_path: Path) -> None:
    assert on_terminal(code=RANKS) == "\\x1b]0;x\\x07of a rank \\xff\n"
    assert (tmp_path / "log").read_bytes() == b"\x1b]0;x\x07of a rank \xff\n", "as it came"


@pytest.mark.slow
def test_compared_runs_and_those_of_a_live_page(
    config: Path, tmp_path: Path, capsys: Captured
) -> None:
    runs = [hostile_run(tmp_path / "runs", name) for name in NAMES.values()]
    for run in runs:
        shutil.copy(config, run.config)
    assert launch(["compare", *(f"{run.path}" for run in runs)]) == 0
    out, err = capsys.readouterr()
    assert_plain(out + err)
    assert all(is_shown(name, out) for name in NAMES.values())
    root = Root(tmp_path / "runs")
    root.refresh()
    summaries = root.state("", 0.0)["runs"]
    assert {summary["name"] for summary in summaries} == {*map(printable, VISIBLE)}
    for summary in summaries:
        state = json.dumps(shown(root.state(summary["key"], 0.0)), ensure_ascii=False)
        assert state.isprintable()
    page = parse(render_comparison(runs[:8]))
    assert page.all("script") == page.all("img") == []


@pytest.mark.slow
@pytest.mark.parametrize("classes", PARTS)
def test_class_names_in_the_report(classes: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path, classes, samples_per_class=2)
    moved = RunDirectory(run.path.rename(tmp_path / NAMES["attribute"]))
    page = parse(render(moved))
    assert page.all("script") == []
    assert {image.attributes["src"][:5] for image in page.all("img")} <= {"data:"}
    assert not [name for each in page.everything() for name in each.attributes if name[:2] == "on"]
    rows = page.with_id("confusion").one("tbody").all("tr")
    assert [row.one("th").text for row in rows] == [" ".join(name.split()) for name in classes]


def test_metrics_of_runs_and_ranks(tmp_path: Path) -> None:
    for name in NAMES.values():
        hostile_run(tmp_path, name)
    registry = CollectorRegistry()
    registry.register(RootOutcomes(tmp_path, "here"))
    text = generate_latest(registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    runs = {sample.labels["run"] for sample in families["alexnet_run_outcome"].samples}
    assert runs == {as_text(name) for name in NAMES.values()}
    if shutil.which("promtool"):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert done.returncode != 1, done.stderr  # 3: style


@each_name
def test_hosts_of_ranks(name: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.metrics.mkdir(parents=True)
    writer = Writer(
        rank=0, local_rank=0, host=name, pid=1, start_ticks=1, since=1.0, interval_seconds=1.0
    )
    exposition = f"{HEARTBEAT.name} 5.0\n".encode()
    path = run.metrics / rank_file_name(0)
    path.write_bytes(render_rank_file(writer, exposition))
    assert path.read_bytes().count(b"\n") == 3
    assert read_rank_file(path).writer.host == name
    identity = Identity(run=name, run_dir=f"/{name}", node=name)
    page = render_page(str(identity), read_run_status(run, "here", 6.0), "here", 6.0)
    assert page.encode()
    tags = {*("html", "meta", "title", "h1", "p", "b", "a", "table", "tr", "th", "td")}
    assert {*re.findall(r"<(\w+)", page)} <= tags
    assert html.escape(as_text(name)) in page
    target = Target.of(tmp_path / "t.json", identity, address="127.0.0.1:1", scheme="http")
    ((entry),) = json.loads(target.content)
    assert entry["labels"]["run"] == as_text(name)
    target.announce()
    (line,) = drop_unanswered(tmp_path, ("run_dir", f"/{name}"))
    assert line.startswith(f"removed {target.path}: ")


@each_name
def test_paths_in_the_configuration_of_prometheus(name: str, tmp_path: Path) -> None:
    targets, rules = tmp_path / name / "targets", tmp_path / name / "rules.yml"
    try:
        text = render_config(targets, rules, "/outcomes/0", 9752, "15s")
    except ValueError as error:
        assert set("*?[\\") & set(name) or as_text(name) != name
        assert_plain(printable(str(error)))
        return
    found = yaml.safe_load(text)
    assert found["rule_files"] == [str(rules)]
    assert f"{targets}/*.json" in str(found["scrape_configs"]) or f"{targets}/*.json" in [
        file
        for job in found["scrape_configs"]
        for files in job.get("file_sd_configs", [])
        for file in files["files"]
    ]


STANDING_IN = '#!/bin/bash\nprintf "%s\\0" "$@" >> "$CALLED"\nexit 1\n'


def be_job(script: str, folder: Path) -> list[str]:
    """Run a script of SLURM with stand-ins for its programs; returns the words that these get."""
    programs = folder / "programs"
    programs.mkdir()
    for program in ("srun", "scontrol", "python", "sleep"):
        (programs / program).write_text(STANDING_IN)
        (programs / program).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1", "HOME": "/root"}
    job |= {"SLURM_CPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_ARRAY_TASK_ID": "0"}
    job |= {"SLURM_ARRAY_TASK_COUNT": "1", "PATH": f"{programs}:/usr/bin:/bin"}
    called = folder / "called"
    subprocess.run(
        ["bash", "-s"],
        input=os.fsencode(script),
        env=job | {"CALLED": str(called)},
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    return [os.fsdecode(word) for word in called.read_bytes().split(b"\0")]


@pytest.mark.slow
@each_name
@pytest.mark.parametrize("kind", ["train", "prepare", "merge"])
def test_words_of_a_job_in_slurm(name: str, kind: str, tmp_path: Path) -> None:
    words = ["--data.shards", name, "--run-dir", name]
    match kind:
        case "train":
            command = TrainingCommand(arguments=words, run_dir=name, doctor_arguments=words)
            script = render_train(TrainSpec(doctor=False, python="python"), command)
        case "prepare":
            script = render_prepare(PrepareSpec(python="python"), words)
        case _:
            script = render_merge(JobSpec(python="python"), name)
    found = be_job(script, tmp_path)
    assert found.count(name) >= (1 if kind == "merge" else 2)
    assert not list(tmp_path.rglob("HACKED"))


@each_name
def test_directives_of_a_job_in_slurm(name: str, capsys: Captured) -> None:
    words = ["alexnet_fast", "--data.shards", f"/data/{name}", f"--run-dir=/runs/{name}"]
    code = launch(["slurm", "train", "--dry-run", "--python", sys.executable, *words])
    out, err = capsys.readouterr()
    if code:
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        assert_plain(err)
        assert ("no UTF-8: rename what" in err) == (as_text(name) != name)
        return
    directives = re.findall("^#SBATCH (--[a-z-]+)", out, re.MULTILINE)
    assert len(directives) == len({*directives}) == out.count("#SBATCH")
    assert re.findall("^#SBATCH --output=(.*)$", out, re.MULTILINE) == [
        f"/runs/{name.replace('%', '%%')}/logs/slurm-%j.log"
    ]


@each_name
def test_files_that_a_command_fetches(name: str) -> None:
    location = location_of("pipe:printf '%s' {}", name)
    done = subprocess.run(command_of(location, 1.0), capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)
    if as_text(name) == name:
        url = command_of(location_of("https://host/shards", name), 1.0)[-1]
        assert re.fullmatch(r"https://host/shards/[\w.~%-]+", url, re.ASCII)


def images_of(root: Path, classes: Sequence[str], file: str = "a.png") -> None:
    for split in ("train", "val"):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.fromarray(make_pixels(number)).resize((32, 32)).save(folder / "a.png")
            (folder / "a.png").rename(folder / file)


@pytest.mark.slow
@each_name
def test_classes_and_files_of_a_folder(name: str, tmp_path: Path, capsys: Captured) -> None:
    images_of(tmp_path / "raw", ["cat", name])
    output = tmp_path / "shards"
    words = ["shard", "folder", "--input", str(tmp_path / "raw"), "--output", str(output)]
    code = data_prep([*words, "--size", "32"])
    out, err = capsys.readouterr()
    assert_plain(out)
    assert code == (0 if name.isprintable() else 1)
    if code:
        assert len(re.findall("^error: ", err, re.MULTILINE)) == 1
        return
    assert {*read_manifest(output).class_names} == {"cat", name} & {"cat", *VISIBLE}
    for command in (["verify"], ["look", "--html", "look.html"]):
        assert data_prep([command[0], str(output), *command[1:]]) == 0
        assert_plain(capsys.readouterr().out)
    page = parse(Path("look.html").read_text())
    assert page.all("script") == []
    assert {image.attributes["src"][:5] for image in page.all("img")} == {"data:"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        *("look.html", "raw", "shards", "shards.inputs.npz")
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with ten classes."""
    return unpack_usable_run(tmp_path_factory.mktemp("trained"))


@pytest.mark.slow
@pytest.mark.parametrize("classes", PARTS)
def test_classes_and_files_that_are_predicted(
    classes: list[str], trained: Path, tmp_path: Path, capsys: Captured
) -> None:
    run, images = tmp_path / NAMES["attribute"], tmp_path / "images"
    shutil.copytree(trained, run)
    write_classes(run, classes)
    images.mkdir()
    for number, name in enumerate(NAMES.values()):
        Image.fromarray(make_pixels(number)).save(images / "a.png")
        (images / "a.png").rename(images / name)
    words = [str(run), str(images), "--top", "10"]
    assert predict([*words, "--figure", "page.html"]) == 0
    out, err = capsys.readouterr()
    assert_plain(out + err)
    assert all(is_shown(name, out) for name in (*classes, *VISIBLE))
    page = parse(Path("page.html").read_text())
    assert page.all("script") == []
    assert {image.attributes["src"][:5] for image in page.all("img")} == {"data:"}
    assert not [name for each in page.everything() for name in each.attributes if name[:2] == "on"]
    assert predict([*words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert {row["image"] for row in rows} == {as_text(f"{images}/{name}") for name in VISIBLE}
    assert {each["class"] for row in rows for each in row["predictions"]} == {*classes}


def write_classes(run: Path, classes: Sequence[str]) -> None:
    """Give the classes of a run, and all else that its `data.json` has as text, other names."""
    content = json.loads((run / "data.json").read_text())
    content |= {"class_names": list(classes), "title": classes[0], "source": classes[1]}
    content["options"] = {classes[2]: classes[3]}
    (run / "data.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("classes", PARTS)
def test_the_card_of_an_export(classes: list[str], trained: Path, tmp_path: Path) -> None:
    run, folder = tmp_path / NAMES["markdown"], tmp_path / "exported"
    shutil.copytree(trained, run)
    write_classes(run, classes)
    assert export([str(run), "--to", str(folder), "--format", "safetensors"]) == 0
    card = (folder / "README.md").read_text()
    assert_plain(card)
    _, front, body = card.split("---\n", 2)
    yaml.safe_load(front)
    page = parse(markdown.markdown(body))
    assert {element.tag for element in page.everything()} <= {
        *("", "h1", "h2", "p", "ul", "li", "code", "pre", "strong", "img")
    }
    assert [image.attributes["src"] for image in page.all("img")] == ["curve.png"]
    text = page.text
    for name in classes:
        assert " ".join(printable(name).split()) in text
    saved = json.loads((folder / "config.json").read_text())
    assert saved["dataset"]["class_names"] == classes


def refused_or_plain(capsys: Captured, code: int) -> str:
    """What a command has said: lines, of which one names the error if there is one."""
    out, err = capsys.readouterr()
    assert_plain(out)
    assert code in (0, 1)
    errors = re.findall("^error: .*", err, re.MULTILINE)
    assert len(errors) == code, err
    assert "Traceback" not in err
    return out + err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("csv", name) for name in NAMES.values()),
        *(("parquet", NAMES[kind]) for kind in ("title", "line", "script")),
    ],
)
def test_labels_and_paths_of_a_table(
    name: str, kind: str, tmp_path: Path, capsys: Captured
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, file in enumerate(("a.png", "b.png", name)):
        Image.fromarray(make_pixels(number)).resize((32, 32)).save(images / "new.png")
        (images / "new.png").rename(images / file)
    columns = {"path": ["a.png", "b.png", name], "label": ["cat", "cat", name]}
    columns["split"] = ["train", "val", "train"]
    table = tmp_path / f"t.{kind}"
    if kind == "parquet":
        texts = {key: [*map(as_text, words)] for key, words in columns.items()}
        pq.write_table(pa.table(texts), table)
    else:
        with table.open("w", newline="", errors="surrogateescape") as out:
            csv.writer(out).writerows([[*columns], *zip(*columns.values(), strict=True)])
    words = ["--input", str(table), "--root", str(images), "--output", str(tmp_path / "shards")]
    code = data_prep(["shard", "table", *words, "--size", "32"])
    refused_or_plain(capsys, code)
    made = {"shards", "shards.inputs.npz"} if code == 0 else set()
    assert {entry.name for entry in tmp_path.iterdir()} - made <= {"images", table.name, "shards"}
    if code == 0:
        assert {*read_manifest(tmp_path / "shards").class_names} == {"cat", name.strip()}
        assert data_prep(["look", str(tmp_path / "shards")]) == 0
        assert_plain(capsys.readouterr().out)


OUTSIDE = {"up": "../x", "absolute": "/tmp/hostile-x", "deep": "a/../../x", "here": "./x"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES.values(), *OUTSIDE.values()], ids=[*NAMES, *OUTSIDE])
def test_members_of_a_tar(name: str, tmp_path: Path, capsys: Captured) -> None:
    """Nothing is unpacked: members that lead out of a folder are only names."""
    tars = tmp_path / "tars"
    tars.mkdir()
    image = io.BytesIO()
    Image.fromarray(make_pixels(1)).resize((32, 32)).save(image, "PNG")
    with tarfile.open(tars / "train-0.tar", "w", errors="surrogateescape") as tar:
        for key in ("plain", "other", "third", name):
            for end, content in (("png", image.getvalue()), ("cls", b"0")):
                member = tarfile.TarInfo(f"{key}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(f"link{name}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    words = ["--input", str(tars), "--output", str(tmp_path / "shards")]
    code = data_prep(["shard", "webdataset", *words, "--size", "32", "--val-ratio", "0.5"])
    refused_or_plain(capsys, code)
    assert {entry.name for entry in tars.iterdir()} == {"train-0.tar"}
    assert {entry.name for entry in tmp_path.iterdir()} <= {"tars", "shards", "shards.inputs.npz"}
    if code == 0:
        with tarfile.open(next((tmp_path / "shards").glob("*.tar"))) as made:
            assert all(re.fullmatch(r"[\w-]+\.\w+", member, re.ASCII) for member in made.getnames())
    adopted = data_prep(["adopt", str(tars), "--output", str(tmp_path / "adopted")])
    refused_or_plain(capsys, adopted)
    assert not Path("/tmp/hostile-x").exists()


@pytest.mark.slow
def test_followed_runs(config: Path, tmp_path: Path, capsys: Captured) -> None:
    for name in NAMES.values():
        run = hostile_run(tmp_path / "runs", name)
        shutil.copy(config, run.config)
        before = {*run.path.parent.iterdir()}
        assert launch(["follow", str(run.path), "--to", "tensorboard", "--once"]) == 0
        assert_plain(capsys.readouterr().out)
        assert {*run.path.parent.iterdir()} == before
        assert any((run.path / "tensorboard").rglob("*tfevents*"))


HOST = NAMES["title"] + NAMES["line"]


@pytest.mark.slow
def test_a_host_of_any_name_trains(tmp_path: Path) -> None:
    """And says so on a terminal, in events, in metrics and in its log."""
    patch = f"import socket\nsocket.gethostname = lambda: {HOST!r}\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    shards = make_shards(tmp_path / "shards")
    run = RunDirectory(tmp_path / ALL_KINDS)
    words = ["launch", "local", "--nproc", "1", *training(shards, run.path, "--max-steps", 2)]
    said = on_terminal(*words, path=tmp_path)
    assert_plain(said)
    assert is_shown(run.name, said)
    assert f"report      {as_command('python', '-m', 'pipeline.report', run.path)}\n" in said
    assert read_rank_file(run.metrics / rank_file_name(0)).writer.host == HOST
    faults: list[str] = []
    assert [*read_rows(run.events, faults)]
    assert faults == []
    assert_plain(run.newest_log.read_text() if run.newest_log else "\x1b")
    assert not list(tmp_path.rglob("HACKED"))


@each_name
def test_a_fork_s_source_is_read_as_it_is_written(name: str) -> None:
    for checkpoint_name in ("newest", "best", "12"):
        source = ForkSource.parsed(f"./{name}@{checkpoint_name}")
        assert (source.run.name, source.checkpoint) == (name, checkpoint_name)
        assert ForkSource.parsed(str(source)) == source


@pytest.mark.slow
def test_a_fork_of_a_run_of_any_name_is_evaluated(tmp_path: Path, capsys: Captured) -> None:
    shards = shutil.copytree(SHARDS, tmp_path / ALL_KINDS)
    source, run = tmp_path / f"{ALL_KINDS}@best", tmp_path / f"~{ALL_KINDS}"
    forking = ("--fork-from", f"{source}@2")
    assert train_here(shards, source, "--max-steps", 2) == 0
    for _ in range(2):  # the second one finds that it is the same run
        assert train_here(shards, run, *forking, "--max-steps", 3) == 0
    path = checkpoint.path_of(RunDirectory(source).checkpoints, 2)
    assert [row["forked_from"] for row in rows(run, "run")] == [str(path)]
    saved = json.loads((run / "config.json").read_bytes())
    assert saved["forked_from"] == {"source": f"{source}@2", "checkpoint": str(path)}
    assert evaluate(["--run-dir", str(run)]) == 0
    out, err = capsys.readouterr()
    assert_plain(out + err)
    assert out.count(f"{printable(str(run))}/checkpoints/step-00000003, step 3\n") == 1
    assert evaluate(["--run-dir", str(run), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["checkpoint"] == str(checkpoint.path_of(RunDirectory(run).checkpoints, 3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # of MLflow
def test_followed_runs_in_one_store_of_mlflow(
    config: Path, tmp_path: Path, capsys: Captured
) -> None:
    """That of the first one."""
    from mlflow.tracking import MlflowClient

    kinds = ("line", "long", "hidden", "no UTF-8", "pattern")
    store = f"sqlite:///{tmp_path}/runs/{NAMES[kinds[0]]}/mlflow.db"
    for number, kind in enumerate(kinds):
        run = hostile_run(tmp_path / "runs", NAMES[kind])
        shutil.copy(config, run.config)
        uri = ["--tracking-uri", store] if number else []
        assert launch(["follow", str(run.path), "--to", "mlflow", "--once", *uri]) == 0
        assert_plain(capsys.readouterr().out)
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("alexnet")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    names = {as_text(NAMES[kind]) for kind in kinds}
    assert {run.info.run_name for run in found} == names
    folders = {run.data.tags["alexnet.run_dir"] for run in found}
    assert folders == {f"{tmp_path}/runs/{name}" for name in names}
    assert {run.info.status for run in found} == {"FAILED"}
    assert [*tmp_path.iterdir()] == [tmp_path / "runs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pattern", "reserved", "no UTF-8"])
def test_no_store_of_mlflow_is_made_in_another_folder(
    kind: str, config: Path, tmp_path: Path, capsys: Captured
) -> None:
    run = hostile_run(tmp_path / "runs", NAMES[kind])
    shutil.copy(config, run.config)
    code = launch(["follow", str(run.path), "--to", "mlflow", "--once"])
    refused_or_plain(capsys, code)
    assert code == 1
    assert not [*tmp_path.rglob("*mlflow.db*")]
    assert [*run.path.parent.iterdir()] == [run.path]


@pytest.mark.slow
def test_a_run_that_is_exported_to_wandb(config: Path, tmp_path: Path) -> None:
    """By a process of its own: W&B keeps the words of its command, too."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = hostile_run(tmp_path, ALL_KINDS)
    shutil.copy(config, run.config)
    done = subprocess.run(
        [sys.executable, "-m", "launch", "follow", str(run.path), "--to", "wandb"],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    assert_plain(done.stdout.decode())
    (path,) = run.path.glob("wandb/*/*.wandb")
    records = [Record.FromString(content) for content in records_of(path.read_bytes())]
    assert {record.run.display_name for record in records} - {""} == {as_text(ALL_KINDS)}
    assert [*tmp_path.iterdir()] == [run.path]


@pytest.mark.slow
def test_formats_of_an_export(trained: Path, tmp_path: Path, capsys: Captured) -> None:
    import onnx

    from tests.pipeline.export.test_formats import run_onnx

    run, folder = tmp_path / ALL_KINDS, tmp_path / NAMES["line"]
    shutil.copytree(trained, run, symlinks=True)
    write_classes(run, PARTS[0])
    formats = "safetensors,torch,onnx,pt2"
    assert export([str(run), "--to", str(folder), "--format", formats]) == 0
    out, err = capsys.readouterr()
    assert_plain(out + err)
    network = open_trained(str(folder))
    assert network.dataset.class_names == tuple(PARTS[0])
    assert network.origin.run == as_text(run.name)
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)
    images = torch.rand(2, 3, *network.input_size)
    found = run_onnx((folder / "model.onnx").read_bytes(), images=images.numpy())
    with torch.inference_mode():
        logits = torch.export.load(folder / "model.pt2").module()(images).numpy()
    assert np.array_equal(found.argmax(1), logits.argmax(1))
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert weights.keys() == network.model.state_dict().keys()


def test_the_live_page_over_http(tmp_path: Path) -> None:
    for name in NAMES.values():
        hostile_run(tmp_path / "runs" / ALL_KINDS, name)
    with serving(Root(tmp_path / "runs" / ALL_KINDS)) as port:
        status, _, content = ask(port, "/state.json")
        runs = json.loads(content)["runs"]
        assert (status, len(runs)) == (200, len(VISIBLE))
        for run in runs:
            status, headers, content = ask(port, f"/state.json?{run['key']}")
            state = json.loads(content)
            assert (status, headers["Content-Type"]) == (200, "application/json")
            assert json.dumps(state, ensure_ascii=False).isprintable()
            assert (state["key"], state["run"]["name"]) == (run["key"], run["name"])


def test_logs_that_are_explained(tmp_path: Path, capsys: Captured) -> None:
    """They may say of a run what they like, but nothing else comes of it."""
    scene = Scene(tmp_path / "run")
    scene.begin()
    scene.row("submit", 0, to="slurm", job="9" * 5000)
    scene.train(5, 10, 15)
    for rank in (0, 1):
        scene.rank(rank)
    scene.run.hangs.mkdir()
    os.mkfifo(scene.run.hangs / "rank-00000.txt")
    many = "9" * 5000
    lines = ["error: {}", "error: rank 1 on {}: {}.tar could not be fetched in 3 attempts"]
    lines += ["error: rank 1 on {} hangs, computing after step 3", "error: {}: CUDA out of memory"]
    begins = "error: rank {} was killed by SIGKILL", "error: rank {} on a hangs"
    logged = [line.replace("{}", name) for line in lines for name in TEXTS.values()]
    logged += [line.replace("{}", many) for line in (*begins, "error: rank {} on a: b")]
    for line in [*logged, f"error: {'x' * 200_000} could not be fetched in 3 attempts"]:
        scene.log("cifar10 → run", line)
        assert launch(["explain", str(scene.run.path)]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert_plain(out)
