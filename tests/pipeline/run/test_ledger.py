"""The ledger against histories whose every second is known, and against histories of any kind."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.event_log import history_of, of_type
from pipeline.run.event_rows import event_of, row_of
from pipeline.run.events import Event, TrainEvent
from pipeline.run.ledger import SECOND_CLASSES, Ledger, LedgerBuilder, SecondClass, ledger_of
from pipeline.run.phase import PHASE_LABELS
from tests.pipeline.fake_run import (
    checkpoint_fields,
    eval_fields,
    event,
    start_fields,
    train_fields,
)

BEGIN = 1_700_000_000
ALL_PHASES = dict.fromkeys(PHASE_LABELS, 0.0)


class Life:
    """Lives through a run second by second: what each was spent on, and the rows it leaves.

    This is the reference: it knows at each second what happens then, and when work is done again it
    goes over all seconds so far.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.rows: list[Event] = []
        self.seconds: list[tuple[SecondClass, int]] = []
        """The class of each second, and the steps done after its log interval; 0: keeps it."""
        self.attempts = self.preemptions = self.lost_steps = 0
        self.is_queue_known = False
        self.step = 0
        self.logged: list[tuple[int, int]] = []
        """Of each log interval the last step, and how many there were."""
        self.saved: list[int] = []
        self.heard: float | None = None
        """Of a killed attempt: when it died."""
        self.is_in_queue = False
        num_old = self.dice.choice([0, 0, 2])
        for number in range(self.dice.randint(1, 6)):
            self.live(is_first=number == 0, is_old=number < num_old)

    @property
    def now(self) -> float:
        return float(BEGIN + len(self.seconds))

    def spend(self, name: SecondClass, seconds: int | None = None, step: int = 0) -> int:
        seconds = self.dice.randint(0, 4) if seconds is None else seconds
        self.seconds += [(name, step)] * seconds
        return seconds

    def write(self, kind: str, **fields: Any) -> None:
        self.rows.append(event(kind, self.step, self.now, **fields))
        if self.dice.random() < 0.1:
            evaluation = eval_fields(1, 2, 3, 3) | {"by": "evaluate"}
            step, later = self.dice.randint(0, 50), self.now + self.dice.randint(0, 9)
            if kind not in ("submit", "alarm"):
                self.rows.insert(-1, event("eval", step, later, **evaluation))

    def live(self, *, is_first: bool, is_old: bool) -> None:
        """An attempt, by an old version or this one, and what comes before it."""
        if is_old and self.heard is not None:  # no row says when
            begin, end = (int(when - BEGIN) for when in (self.rows[-1].time, self.heard))
            self.seconds[begin:end] = [("down", 0)] * (end - begin)
        self.wait(is_first=is_first, is_old=is_old)
        self.attempts += 1
        if not is_old and self.dice.random() < 0.15 and (is_first or self.heard is None):
            began = self.now
            self.spend("starting")
            self.write("end", outcome="failed", error="no room", began=began)
            return
        loading = compiling = None
        if not is_old:
            began = self.now
            self.spend("starting")
            self.write("start", began=began, heard=self.heard)
            if self.dice.random() < 0.1:
                self.spend("starting")
                self.die()
                return
            loading, compiling = self.spend("loading"), self.spend("compiling")
            self.spend("starting")
        self.heard = None
        start = self.dice.choice([*self.saved[-2:], *self.saved[-1:]]) if self.saved else None
        self.go_back(start or 0)
        fields = {} if is_old else {"loading_seconds": loading, "compiling_seconds": compiling}
        self.write("run", **start_fields(start) | fields)
        self.spend("loading")
        self.train()
        self.leave(is_old=is_old)

    def wait(self, *, is_first: bool, is_old: bool) -> None:
        if self.is_in_queue:  # was submitted while the attempt before was there
            self.spend("queued")
            self.is_in_queue = False
            return
        if not is_first:
            self.spend("down")
        to = self.dice.choice(["slurm", "local", "kubernetes", None])
        if is_old:
            to = None
        if to is not None:
            self.is_queue_known |= is_first and to != "kubernetes"
            self.write("submit", to=to, job=None)
            self.spend("queued" if to == "slurm" else "starting")

    def go_back(self, step: int) -> None:
        """All that was done after `step` is lost."""
        self.seconds = [
            ("lost", 0) if was_step > step else (name, was_step) for name, was_step in self.seconds
        ]
        self.lost_steps += sum(num for last, num in self.logged if last > step)
        self.logged = [(last, num) for last, num in self.logged if last <= step]
        self.saved = [saved for saved in self.saved if saved <= step]
        self.step = step

    def train(self) -> None:
        copied, num_intervals = 0, self.dice.randint(1, 4)
        for number in range(num_intervals):
            before = self.step
            steps = self.dice.randint(1, 9)
            self.step += steps
            self.logged.append((self.step, steps))
            phases = ALL_PHASES | {
                label: float(self.dice.randint(number == 0, 5)) for label in PHASE_LABELS
            }
            ends_in = self.dice.choice([*PHASE_LABELS, None]) if copied else None
            for label, seconds in phases.items():
                match label:
                    case "data_wait":
                        self.spend("data_wait", int(seconds), self.step)
                    case "sync_wait":
                        self.spend("rank_wait", int(seconds), self.step)
                    case _:
                        self.spend("steps", int(seconds), self.step)
                if label == ends_in:
                    fields = checkpoint_fields("periodic") | {"waited_seconds": float(copied)}
                    self.rows.append(event("checkpoint", before, self.now, **fields))
                    self.saved.append(before)
            fields = train_fields(self.step) | {"phase_seconds": phases}
            self.write("train", **fields | ({"saving_seconds": float(copied)} if copied else {}))
            copied = 0
            if self.dice.random() < 0.4:
                self.spend("evaluation", step=self.step)
                self.write("eval", **eval_fields(5, 9, 10, 10))
            if self.dice.random() < 0.4:
                self.save("periodic")
            elif self.dice.random() < 0.4 and number + 1 < num_intervals:  # in the background
                copied = self.spend("saving", step=self.step)

    def save(self, reason: str) -> None:
        self.spend("saving", step=self.step)
        self.write("checkpoint", **checkpoint_fields(reason))
        self.saved.append(self.step)

    def leave(self, *, is_old: bool) -> None:
        if self.dice.random() < 0.2 and not is_old:
            self.write("submit", to="slurm", job="7")
            self.is_in_queue = True
        how = self.dice.choice(["killed", "killed", "preempted", "stopped", "failed", "cut off"])
        if how == "failed":
            self.spend("lost")
            self.write("end", outcome="failed", error="it broke")
        elif how == "killed":
            self.spend("lost")
            if self.dice.random() < 0.5:
                self.write("alarm", reason="damaged_image", what="a flipped bit")
            self.die("lost")
        else:
            source = "STOP file" if how == "stopped" else "SIGTERM"
            self.spend("stopping")
            self.write("signal", source=source)
            self.preemptions += how != "stopped"
            if how == "cut off":
                self.spend("stopping")
                self.die("stopping")
                return
            self.save("preempt")
            self.spend("stopping")
            self.write("end", outcome="stopped")

    def die(self, name: SecondClass = "starting") -> None:
        """Somebody heard of it for some seconds, which are `name`; nobody knows of those after."""
        self.spend(name)
        self.heard = self.now


def counted(life: Life, until: float) -> dict[SecondClass, float]:
    found = Counter(name for name, _ in life.seconds[: int(until - BEGIN)])
    return {name: float(found[name]) for name in SECOND_CLASSES}


def ledger(rows: list[Event], now: float | None = None) -> Ledger:
    found = ledger_of(rows, now)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(100))
def test_every_second_has_the_class_that_it_was_spent_on(seed: int) -> None:
    for number in range(10):
        life = Life(10 * seed + number)
        is_begun_late = life.rows[0].time - BEGIN
        found = ledger(life.rows)
        assert found.begin == BEGIN or not is_begun_late
        assert found.seconds == pytest.approx(counted(life, found.end), abs=1e-5), life.rows
        assert found.num_attempts == life.attempts
        assert found.num_preemptions == life.preemptions
        assert found.num_lost_steps == life.lost_steps
        assert found.is_queue_known == life.is_queue_known
        total = sum(found.seconds.values())
        assert total == pytest.approx(found.total_seconds, abs=1e-5)


def test_the_reference_has_every_class() -> None:
    found: Counter[str] = Counter()
    for seed in range(50):
        found.update(name for name, _ in Life(seed).seconds)
    assert found.keys() == SECOND_CLASSES.keys()


@st.composite
def any_rows(draw: st.DrawFn) -> list[Event]:
    """Rows of every kind in any order, at any time, of this version and of older ones."""
    numbers = st.floats(-100, 200, allow_nan=False)
    rows: list[Event] = []
    now = float(BEGIN)
    for _ in range(draw(st.integers(0, 25))):
        now += draw(numbers)
        step = draw(st.integers(0, 60))
        phases = dict(
            zip(PHASE_LABELS, draw(st.lists(numbers, min_size=6, max_size=6)), strict=True)
        )
        resumed = draw(st.none() | st.integers(0, 60))
        times = st.none() | numbers.map(lambda seconds: BEGIN + seconds)
        loading = draw(st.none() | numbers)
        began, heard = draw(times), draw(times)
        to = draw(st.sampled_from(["slurm", "local", "kubernetes"]))
        candidates: list[tuple[str, dict[str, Any]]] = [
            ("submit", {"to": to, "job": None}),
            ("start", {"began": now if began is None else began, "heard": heard}),
            (
                "run",
                start_fields(resumed) | ({} if loading is None else {"loading_seconds": loading}),
            ),
            ("run", start_fields(resumed) | {"forked_from": "another@best"}),
            ("train", train_fields(step) | {"phase_seconds": phases}),
            ("train", train_fields(step) | {"phase_seconds": {"data_wait": None}}),
            ("train", train_fields(step) | {"saving_seconds": draw(numbers)}),
            ("eval", eval_fields(5, 9, 10, 10)),
            ("eval", eval_fields(5, 9, 10, 10) | {"by": "evaluate"}),
            ("checkpoint", checkpoint_fields("periodic")),
            ("checkpoint", checkpoint_fields("periodic") | {"waited_seconds": draw(numbers)}),
            ("alarm", {"reason": "not_learning", "loss": None}),
            ("signal", {"source": "SIGTERM"}),
            ("end", {"outcome": "failed"} | ({} if began is None else {"began": began})),
            ("end", {"outcome": "stopped"}),
        ]
        kind, fields = draw(st.sampled_from(candidates))
        rows.append(event(kind, step, now, **fields))
    return rows


@given(any_rows(), st.none() | st.floats(-300, 3000), st.booleans())
def test_whatever_the_rows_are_the_classes_sum_to_wall_clock(
    rows: list[Event], later: float | None, is_at_work: bool
) -> None:
    now = None if later is None else BEGIN + later
    builder = LedgerBuilder()
    highest = BEGIN - 1000.0
    for row in rows:
        builder.add(row)
        for until in (None, now):
            found = builder.ledger(until, is_at_work=is_at_work)
            if found is None:
                continue
            assert min(found.seconds.values()) >= 0
            assert sum(found.seconds.values()) == pytest.approx(found.total_seconds, abs=1e-5)
            assert 0 <= found.goodput <= 1 + 1e-9
            assert found.num_lost_steps >= 0
            assert found.end >= (found.begin if until is None else highest)
            highest = max(highest, found.end if until is None else highest)
    assert builder.ledger(now) == ledger_of(rows, now)


def test_what_is_lost_is_what_the_history_leaves_out() -> None:
    for seed in range(200):
        rows = Life(seed).rows
        left = {id(row) for row in of_type(history_of(rows), TrainEvent)}
        last, lost = 0, 0
        for row in rows:
            if row.kind == "run":
                last = row.step
            if isinstance(row, TrainEvent):
                lost += (row.step - last) * (id(row) not in left)
                last = row.step
        assert ledger(rows).num_lost_steps == lost


def test_rows_without_the_newer_fields_and_kinds_are_counted_too() -> None:
    """As an older version had written the same: what is before a `run` row is down."""
    newer = ("loading_seconds", "compiling_seconds", "began")
    for seed in range(100):
        rows: list[Any] = [
            event_of({name: row[name] for name in row if name not in newer})
            for row in map(row_of, Life(seed).rows)
            if row["kind"] not in ("submit", "start")
        ]
        if not rows:
            continue
        found = ledger(rows)
        assert found.seconds["queued"] == found.seconds["compiling"] == 0
        assert not found.is_queue_known
        assert sum(found.seconds.values()) == pytest.approx(found.total_seconds, abs=1e-5)


def at(when: float, kind: str, step: int = 0, **fields: Any) -> Event:
    found: Event = event(kind, step, BEGIN + when, **fields)
    return found


def trained(seconds: float, step: int, **phases: float) -> Event:
    return at(seconds, "train", step, **train_fields(step) | {"phase_seconds": phases})


def spent(found: Ledger) -> dict[str, float]:
    return {name: seconds for name, seconds in found.seconds.items() if seconds}


SUBMITTED = at(0, "submit", to="slurm", job="7")
STARTED = at(110, "start", began=BEGIN + 100.0, heard=None)
RAN = at(130, "run", **start_fields() | {"loading_seconds": 15.0, "compiling_seconds": 2.0})


def test_what_is_not_over_grows_with_the_time() -> None:
    builder = LedgerBuilder()
    assert builder.ledger(BEGIN) is None

    def until(seconds: float) -> dict[str, float]:
        found = builder.ledger(BEGIN + seconds)
        assert found is not None
        assert found.end == BEGIN + seconds
        return spent(found)

    builder.add(SUBMITTED)
    assert until(50) == {"queued": 50}
    builder.add(STARTED)
    assert until(120) == {"queued": 100, "starting": 20}
    builder.add(RAN)
    begin = {"queued": 100, "starting": 13, "loading": 15, "compiling": 2}
    assert until(131) == begin | {"loading": 16}
    builder.add(trained(140, 5, data_wait=1, optimizer=6, sync_wait=2))
    begin |= {"loading": 16, "data_wait": 1, "rank_wait": 2}
    assert until(150) == begin | {"steps": 16}
    builder.add(at(151, "signal", 5, source="SIGUSR1"))
    assert until(155) == begin | {"steps": 6, "stopping": 15}
    builder.add(at(160, "end", 5, outcome="stopped"))
    found = builder.ledger(BEGIN + 1000)
    assert found is not None
    assert (found.end, spent(found)) == (BEGIN + 160, begin | {"steps": 6, "stopping": 20})
    assert (found.num_attempts, found.num_preemptions) == (1, 1)
    assert found.goodput == 6 / 160


def test_nobody_starts_or_trains_until_now_if_nobody_is_at_work() -> None:
    """But a job may wait in a queue, whether or not the one before was killed."""
    local = at(0, "submit", to="local", job=None)
    assert spent(ledger([local], BEGIN + 50.0)) == {"starting": 50}
    trained_once = [STARTED, RAN, trained(140, 5, h2d=10)]
    queued_again = at(150, "submit", 5, to="slurm", job="8")
    for rows, expected in (
        ([local], {}),
        ([SUBMITTED], {"queued": 900}),
        ([SUBMITTED, *trained_once], {"queued": 100}),
        ([*trained_once, queued_again], {"down": 10, "queued": 750}),
        ([*trained_once, at(140, "end", outcome="stopped"), local], {}),
    ):
        found = ledger_of(rows, BEGIN + 900.0, is_at_work=False)
        assert found is not None
        waits = {name: s for name, s in spent(found).items() if name in ("queued", "down")}
        assert waits == expected
        assert sum(found.seconds.values()) == pytest.approx(found.total_seconds)


def test_a_job_that_was_refused_starts_nothing() -> None:
    """`launch local` says that it started one, and the ranks refuse: so it is with the next one."""
    rows = [at(0, "submit", to="local", job=None), RAN, at(140, "end", outcome="stopped")]
    rows += [at(when, "submit", to="local", job=None) for when in (150, 900)]
    rows += [at(905, "start", began=BEGIN + 901.0, heard=BEGIN + 135.0)]
    assert spent(ledger(rows)) == {
        **{"starting": 113 + 5, "loading": 15, "compiling": 2},
        **{"stopping": 10, "down": 760},
    }


def test_a_job_that_begins_at_once_while_another_trains_is_refused() -> None:
    rows = [RAN, at(135, "submit", to="local", job=None), at(140, "end", outcome="stopped")]
    rows += [at(200, "start", began=BEGIN + 190.0, heard=None)]
    assert spent(ledger(rows)) == {"stopping": 10, "down": 50, "starting": 10}


def test_a_clock_that_goes_backwards_stands_still() -> None:
    rows = [RAN, trained(140, 5, optimizer=10), trained(90, 10, optimizer=10)]
    rows += [trained(145, 15, optimizer=10)]
    found = ledger(rows)
    assert spent(found) == {"steps": 15}
    assert found.end == BEGIN + 145


def test_phases_fill_their_interval() -> None:
    """They are measured by another clock than the times of the rows."""
    rows = [RAN, trained(140, 5, data_wait=8, optimizer=12), trained(150, 9, data_wait=1, h2d=1)]
    assert spent(ledger(rows)) == {"data_wait": 4 + 5, "steps": 6 + 5}


def test_a_fork_that_is_begun_again_keeps_nothing() -> None:
    fork = start_fields() | {"forked_from": "runs/other@best"}
    rows = [at(0, "run", 100, **fork), trained(10, 110, h2d=10), at(20, "run", 100, **fork)]
    found = ledger([*rows, trained(30, 105, h2d=10)])
    assert spent(found) == {"lost": 10, "down": 10, "steps": 10}
    assert found.num_lost_steps == 10


def test_an_evaluation_by_hand_is_no_time_of_the_run() -> None:
    by_hand = at(500, "eval", 5, **eval_fields(5, 9, 10, 10) | {"by": "evaluate"})
    rows = [RAN, trained(140, 5, h2d=10)]
    assert ledger([*rows, by_hand]) == ledger(rows)
    assert ledger_of([by_hand]) is None


@given(
    logged=st.integers(1, 20),
    more=st.integers(0, 20),
    steps=st.integers(1, 10),
    down=st.integers(0, 5),
    is_told=st.booleans(),
)
def test_steps_that_ranks_kept_in_memory_are_not_lost(
    logged: int, more: int, steps: int, down: int, is_told: bool
) -> None:
    """Each step takes a second; `more` were done since the newest log, and part of another one."""
    rows: list[Event] = [event("run", 0, BEGIN, **start_fields())]

    def train(step: int, time: float, count: int) -> Event:
        phases = ALL_PHASES | {"forward_backward": 0.75 * count, "data_wait": 0.25 * count}
        row: Event = event("train", step, time, **train_fields(step) | {"phase_seconds": phases})
        return row

    died = BEGIN + logged + more + 0.5
    rows.append(train(logged, BEGIN + logged, logged))
    if is_told:
        rows.append(event("end", logged + more, died, outcome="failed", error="x"))
    rows.append(event("start", logged + more, died + down + 1, began=died + down, heard=died))
    rows.append(event("run", logged + more, died + down + 2, **start_fields(logged + more)))
    rows.append(train(logged + more + steps, died + down + 2 + steps, steps))
    ledger = ledger_of(rows)
    assert ledger is not None
    done = logged + more + steps
    assert ledger.seconds["steps"] == pytest.approx(0.75 * done)
    assert ledger.seconds["data_wait"] == pytest.approx(0.25 * done)
    assert ledger.seconds["lost"] == pytest.approx(0.5)
    assert ledger.seconds["down"] == pytest.approx(down)
    assert ledger.num_lost_steps == 0
    assert sum(ledger.seconds.values()) == pytest.approx(ledger.total_seconds)
    lost = ledger_of([*rows, event("run", 0, died + down + 99, **start_fields())])
    assert lost is not None
    assert lost.num_lost_steps == done
    assert lost.seconds["steps"] == pytest.approx(0)
