"""A copy of the project, to which tests add what "Where do I add …" of the map names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.test_architecture import PACKAGES, ROOT


class Scratch:
    """The product with its tests and documents, in a folder of its own."""

    def __init__(self, folder: Path, original: Path = ROOT) -> None:
        self.folder = folder
        left_out = shutil.ignore_patterns("__pycache__", "formats", "integration")
        for name in (*PACKAGES, "tests", "docs"):
            shutil.copytree(original / name, folder / name, ignore=left_out)
        shutil.copy(original / "pyproject.toml", folder)

    def insert(self, path: str, after: str, text: str) -> None:
        """Insert `text` behind the one line that has `after` in it."""
        lines = (self.folder / path).read_text().splitlines(keepends=True)
        (line,) = self._found(path, after, [line for line in lines if after in line])
        self.replace(path, line, line + text)

    def replace(self, path: str, old: str, new: str) -> None:
        """Replace the one place where `old` stands."""
        content = (self.folder / path).read_text()
        self._found(path, old, [old] * content.count(old))
        (self.folder / path).write_text(content.replace(old, new))

    def add_name(self, path: str, literal: str, name: str) -> None:
        """Add a name to those that a `Literal` allows."""
        self.replace(path, f"\n{literal} = Literal[", f'\n{literal} = Literal["{name}", ')

    @staticmethod
    def _found(path: str, what: str, places: list[str]) -> list[str]:
        number = len(places)
        assert number == 1, f"{path} has {what!r} {number} times, not once: see its addition"
        return places

    def add_module(self, path: str) -> None:
        """Add the module of that name beside this one as `path`, which must be new."""
        assert not (self.folder / path).exists(), f"{path} is there already: see the addition"
        shutil.copy(Path(__file__).with_name(Path(path).name), self.folder / path)

    def product(self) -> dict[str, bytes]:
        """The files of the product."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for package in PACKAGES
            for path in (self.folder / package).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }

    def python(self, *words: object) -> str:
        """What Python writes there, called with `words`."""
        done = self._run(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fail(self, *words: object, code: int = 1) -> str:
        """The same of a call that ends with `code`, standard error included."""
        done = self._run(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def _run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=self.folder,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
