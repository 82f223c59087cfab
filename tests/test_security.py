"""What the page on security says of the code holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.version import Version

from pipeline.config.schema import LOOPBACK
from pipeline.metrics.exporter import ExporterOptions
from pipeline.report.templates import environment
from tests.advisories import is_in, known, pinned
from tests.test_architecture import ROOT, SOURCES, module_name, parse

PAGE = ROOT / "docs/security.md"
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load"),
    *("pickle.loads", "marshal.load", "marshal.loads", "shelve.open", "yaml.load"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp", "joblib.load"),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "pandas.read_pickle"),
}
LISTENING = {
    *("ThreadingHTTPServer", "HTTPServer", "start_http_server", "make_server", "TCPServer"),
    *("create_server", "TCPStore"),
}


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def faults(source: str) -> list[str]:
    """What a module does that none may."""
    found = []
    for call in calls(source):
        name, options = ast.unparse(call.func), {each.arg: each.value for each in call.keywords}
        values = {key: ast.unparse(value) for key, value in options.items() if key is not None}
        if name in FORBIDDEN:
            found.append(name)
        if name == "torch.load" and values.get("weights_only") != "True":
            found.append("torch.load without weights_only")
        if values.get("allow_pickle", "False") != "False":
            found.append(f"{name} with allow_pickle")
        if values.get("shell", "False") != "False":
            found.append(f"{name} with a shell")
    return found


@pytest.mark.parametrize(
    "line",
    [
        *("eval(x)", "exec(x)", "pickle.loads(x)", "torch.load(x)", "yaml.load(x)", "os.system(x)"),
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=is_shell)",
    ],
)
def test_each_way_to_run_what_a_file_holds_is_seen(line: str) -> None:
    assert faults(f"def f(x):\n    return {line}")


@pytest.mark.parametrize("source", SOURCES, ids=module_name)
def test_nothing_runs_what_a_file_holds(source: Path) -> None:
    assert not faults(source.read_text())


def test_only_the_restricted_reader_of_cifar_unpickles() -> None:
    found = {
        module_name(source): ast.unparse(node)
        for source in SOURCES
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Attribute | ast.Name) and "Unpickler" in ast.unparse(node)
    }
    assert found.keys() == {"data_prep.sources.cifar"}
    importing = {
        module_name(source)
        for source in SOURCES
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Import) and any(name.name == "pickle" for name in node.names)
    }
    assert importing == {"data_prep.sources.cifar"}


def test_the_page_names_all_that_listens() -> None:
    listening = {
        module_name(source)
        for source in SOURCES
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Call | ast.ClassDef)
        for name in ([node.func] if isinstance(node, ast.Call) else node.bases)
        if ast.unparse(name).rpartition(".")[2] in LISTENING
    }
    section = PAGE.read_text().partition("## What listens where")[2].partition("\n## ")[0]
    assert set(re.findall(r"\| `([\w.]+)` \|", section)) == listening


def test_what_listens_does_so_on_loopback_by_default() -> None:
    assert ExporterOptions.__dataclass_fields__["address"].default == LOOPBACK
    assert LOOPBACK == "127.0.0.1"


def test_lines_for_people_are_written_by_one_function() -> None:
    """Of which no name makes two; others write their own text, or what is for programs."""
    writing = re.compile(r"print|sys\.(__)?std(out|err)(__)?(\.buffer)?\.write")
    written = {
        module_name(source)
        for source in SOURCES
        for call in calls(source.read_text())
        if writing.fullmatch(ast.unparse(call.func))
    }
    assert written == {
        "launch.alexnet",  # help
        "launch.torchrun",  # what the ranks have written
        "launch.manifests",  # YAML
        "launch.submit",  # scripts
        "pipeline.predict.__main__",  # over a progress bar
        "pipeline.start_ranks",  # of torchrun's end
    }


def test_pages_are_written_by_templates_that_escape_or_in_known_modules() -> None:
    written = {
        module_name(source)
        for source in SOURCES
        for node in ast.walk(parse(source))
        if isinstance(node, ast.JoinedStr) and re.search("<[a-z]+[ >]", ast.unparse(node))
    }
    assert written == {
        "data_prep.look.sheet",
        "pipeline.metrics.front_page",
        "pipeline.predict.figure",
        "pipeline.report.chart",
    }
    templates = [*(ROOT / "pipeline/report").glob("*.j2")]
    assert templates
    for template in templates:
        assert not re.search(r"\|\s*safe\b|autoescape", template.read_text()), template
    assert environment().autoescape is True


def test_no_pinned_version_has_a_known_vulnerability() -> None:
    """Known to the list that is here, which has its date; `make audit` asks for newer ones."""
    advisories = known()
    found = [
        f"{name} {version}: {advisory}"
        for name, version in pinned()
        for advisory, ranges in advisories.get(name, {}).items()
        if is_in(version, ranges)
    ]
    assert found == []


def test_the_list_of_vulnerabilities_knows_old_versions() -> None:
    torch, pillow = known()["torch"]["PYSEC-2022-43015"], known()["pillow"]["PYSEC-2023-227"]
    for version, ranges, is_known in (
        *(("1.13.0", torch, True), ("1.13.1", torch, False), ("2.13.0", torch, False)),
        *(("9.5.0", pillow, True), ("10.0.0", pillow, False)),
    ):
        assert is_in(Version(version), ranges) is is_known
    assert is_in(Version("7"), [["5", "6"], ["6.5", None]])
    assert {name for name, _ in pinned()} >= known().keys() >= {"torch", "pillow", "pyarrow"}
