"""Deliberate bugs in the product's protocols: the simulator must find every one of them.

A bug is an edit of a module's source. The functions of the edited copy take the place of the real
ones for the length of a block, wherever they were imported to.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Bug:
    """One wrong line."""

    name: str
    why: str
    """What it does to a run."""
    module: str
    right: str
    wrong: str
    seed: int
    """One that finds it."""

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Until the block ends the product has this bug."""
        module = importlib.import_module(self.module)
        source = inspect.getsource(module)
        assert source.count(self.right) == 1, f"{self.name}: its line is not there once"
        twin = types.ModuleType(self.module)
        twin.__file__ = module.__file__
        code = compile(source.replace(self.right, self.wrong), str(module.__file__), "exec")
        sys.modules[self.module] = twin  # dataclasses look their module up
        try:
            exec(code, twin.__dict__)  # noqa: S102 - of a mutated copy of our code
        finally:
            sys.modules[self.module] = module
        real, copy = functions_of(module), functions_of(twin)
        before = {name: function.__code__ for name, function in real.items()}
        changed = [name for name in real if real[name].__code__.co_code != _code(copy, name)]
        for name in real:
            real[name].__code__ = copy[name].__code__
        assert changed or self._is_of_constants(before, copy), f"{self.name} changes nothing"
        try:
            yield
        finally:
            for name, function in real.items():
                function.__code__ = before[name]

    def _is_of_constants(self, before: dict[str, Any], copy: dict[str, Any]) -> bool:
        return any(before[name] != copy[name].__code__ for name in before)


def _code(functions: dict[str, Any], name: str) -> bytes:
    code: bytes = functions[name].__code__.co_code
    return code


def functions_of(module: types.ModuleType) -> dict[str, Any]:
    """The module's own functions and methods, as they are below their decorators."""
    found: dict[str, Any] = {}
    classes = [one for one in vars(module).values() if inspect.isclass(one)]
    own = [one for one in classes if one.__module__ == module.__name__]
    owners: list[tuple[str, Any]] = [("", module), *((one.__qualname__, one) for one in own)]
    for owner_name, owner in owners:
        for name, value in vars(owner).items():
            for part in _parts(value):
                inner = inspect.unwrap(part)
                if (
                    inspect.isfunction(inner)
                    and inner.__module__ == module.__name__
                    and inner.__code__.co_filename == module.__file__
                ):
                    found[f"{owner_name}.{name}"] = inner
    return found


def _parts(value: Any) -> list[Any]:
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, classmethod | staticmethod):
        return [value.__func__]
    return [value]
