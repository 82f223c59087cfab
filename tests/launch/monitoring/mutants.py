"""Rules that are wrong in one place each, which the cases should find out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from launch.monitoring.rules import divided
from tests.launch.monitoring.promtool import Rule, name_of

_COMPARISON = re.compile(r" (==|>|<) ")
_OPPOSITE = {"==": "!=", ">": "<", "<": ">"}
_NUMBER = re.compile(r"(?<![\w.:\"])\d+(?:\.\d+)?(?![\w.:\"])")
_MATCHER = re.compile(r"([a-z_]+)(!=|=~|!~|=)\"([^\"]*)\"(, )?")
_NEGATED = {"=": "!=", "!=": "=", "=~": "!~", "!~": "=~"}
_YIELDS = "unless on (run) max_over_time(ALERTS{"
"""How the last line of an alert begins that others explain."""
_WINDOW = re.compile(r"(?<=\[)\d+[smhd](?=\])|(?<=offset )\d+[smhd]\b")


class Mutant(NamedTuple):
    """What was changed, and the rule as it is then."""

    change: str
    rule: Rule


def mutants(rule: Rule) -> Iterator[Mutant]:
    """Each threshold, comparison, label matcher, window, `for` and part of a rule, changed.

    All but what explains it.
    """
    expression = str(rule["expr"])
    own, yields, explained = expression.partition(f"\n{_YIELDS}")
    for change, changed in _changed(own):
        yield Mutant(f"{name_of(rule)}: {change}", rule | {"expr": changed + yields + explained})
    if "for" in rule:
        hold = str(rule["for"])
        for other in ("5m",) if hold == "0s" else ("0s", divided(hold, 2), divided(hold, 0.5)):
            yield Mutant(f"{name_of(rule)}: for {other}, not {hold}", rule | {"for": other})


def with_change(mutant: Mutant, rules: Sequence[Rule], name: str) -> Iterator[Rule]:
    """The alert that ends `rules` under another name, as it is with the mutant.

    Recording rules in between get names of their own, too.
    """
    suffix = re.sub(r"\W", "_", name)
    renamed: dict[str, str] = {}
    for rule in rules:
        changed = mutant.rule if name_of(rule) == name_of(mutant.rule) else rule
        expression = str(changed["expr"])
        for old, new in renamed.items():
            expression = re.sub(rf"(?<![\w:]){old}(?![\w:])", new, expression)
        if changed is mutant.rule or expression != changed["expr"]:
            own = {"alert": name} if "alert" in rule else {"record": f"{name_of(rule)}_{suffix}"}
            renamed[name_of(rule)] = next(iter(own.values()))
            yield changed | own | {"expr": expression}


def explained_by(rule: Rule, cause: str | None) -> Rule:
    """The rule that knows only this explanation, or none."""
    own, yields, rest = str(rule["expr"]).partition(f"\n{_YIELDS}")
    if cause is None or not yields:
        return rule | {"expr": own}
    begin, _, end = rest.partition('"')[0], *rest.partition('"')[2].partition('"')[1:]
    return rule | {"expr": f'{own}{yields}{begin}"{cause}"{end}'}


def mutants_of_explanation(rule: Rule) -> Iterator[Mutant]:
    """The matchers and the window of what explains it, changed, and the rule without it."""
    own, yields, rest = str(rule["expr"]).partition(f"\n{_YIELDS}")
    yield Mutant(f"{name_of(rule)}: never explained", rule | {"expr": own})
    for change, changed in _changed(yields.strip() + rest):
        yield Mutant(f"{name_of(rule)}: {change}", rule | {"expr": f"{own}\n{changed}"})


def _changed(expression: str) -> Iterator[tuple[str, str]]:
    for match in _COMPARISON.finditer(expression):
        yield _replaced(expression, match, f" {_OPPOSITE[match[1]]} ")
    for match in _NUMBER.finditer(expression):
        value = float(match[0])
        others = {0.0: (-1.0, 2.0), 1.0: (0.0, 2.0)}.get(value, (value / 1.5, value * 1.5))
        for other in others:
            yield _replaced(expression, match, f"{other:g}")
    for match in re.finditer(r"\bmin by\b", expression):
        yield _replaced(expression, match, "max by")
    for match in _MATCHER.finditer(expression):
        yield from _other_matchers(expression, match)
    for match in _WINDOW.finditer(expression):
        for factor in (0.5, 2):
            yield _replaced(expression, match, divided(match[0], factor))
    lines = expression.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"(and|or|unless) ", line):
            rest = "\n".join(lines[:number] + lines[number + 1 :])
            yield f"without {line!r}", rest


def _other_matchers(expression: str, match: re.Match[str]) -> Iterator[tuple[str, str]]:
    name, operator, value, comma = match[1], match[2], match[3], match[4] or ""
    yield _replaced(expression, match, "")
    yield _replaced(expression, match, f'{name}{_NEGATED[operator]}"{value}"{comma}')
    yield _replaced(expression, match, f'{name}{operator}"{value}x"{comma}')
    names = value.split("|")
    for left_out in names if len(names) > 1 else ():
        rest = "|".join(each for each in names if each != left_out)
        yield _replaced(expression, match, f'{name}{operator}"{rest}"{comma}')


def _replaced(expression: str, match: re.Match[str], text: str) -> tuple[str, str]:
    begin, end = match.span()
    around = expression[max(0, begin - 30) : begin], expression[end : end + 10]
    change = f"…{around[0]}[{match[0]} → {text}]{around[1]}…".replace("\n", " ")
    return change, expression[:begin] + text + expression[end:]
