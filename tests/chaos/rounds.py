"""Randomised rounds: traffic, faults every second, then everything is compared. One line a round.

A round is clean when the oracle finds nothing. One exception, which is reported: a repeated output with the
same ``ce_id`` in a round whose broker was killed and whose worker counted foreclick_position_mismatch_total. A
single broker can lose a transaction marker when it is killed; state stays exact then, outputs may repeat.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.chaos.cluster import Round
from tests.chaos.driver import Driver
from tests.chaos.fleet import Fleet
from tests.chaos.oracle import Input, Verdict, judge
from tests.chaos.worker import STOP_INSIDE

# A worker that is down when the next fault comes is a fault wasted, so what takes all of them down is rare.
WORKER_FAULTS = (
    *("kill", "term", "stop", "stop inside", "wipe", "old", "ahead", "join", "leave") * 3,
    "power cut",
)
BROKER_FAULTS = ("broker", "broker and workers")
NAMES = "ABCDEFGH"
OPENING_S = 8.0


class RunningBroker(Protocol):
    """What a round asks of the broker; ``stream.broker.Broker`` is one."""

    bootstrap_servers: str

    def kill(self) -> None: ...

    def restart(self) -> None: ...


@dataclass(frozen=True)
class Shape:
    """What a round is like.

    Args:
        seconds: of traffic, at ``rate`` events a second.
        pause_s: between two faults, drawn evenly from the two.
        exit_probability: of an injected exit at each step of each micro-batch; ten times that while opening.
    """

    seconds: float = 24
    rate: float = 1500
    users: int = 500
    partitions: int = 8
    pause_s: tuple[float, float] = (0.4, 1.6)
    exit_probability: float = 0.0004
    worker_faults: Sequence[str] = WORKER_FAULTS
    planted: str | None = None

    def switches(self) -> list[str]:
        """Of every worker while the faults last."""
        switches = ["--planted", self.planted] if self.planted else []
        if self.exit_probability:
            switches += ["--exit-at", "any", "--exit-probability", str(self.exit_probability)]
        return switches


@dataclass
class Outcome:
    """What became of a round."""

    seed: int
    faults: list[str]
    exits: Counter[str] = field(default_factory=Counter)
    verdict: Verdict | None = None
    caught_up_s: float | None = None
    mismatches: int = 0
    stops_inside: int = 0
    slow_exits: int = 0
    last_words: Counter[str] = field(default_factory=Counter)
    failure: str | None = None
    kept: Path | None = None
    seconds: float = 0.0

    @property
    def broker_killed(self) -> bool:
        return any(fault in BROKER_FAULTS for fault in self.faults)

    @property
    def clean(self) -> bool:
        if self.failure or self.verdict is None or not self.verdict.exact():
            return False
        return self.verdict.repeats == 0 or (self.broker_killed and self.mismatches > 0)

    def __str__(self) -> str:
        waited = "never" if self.caught_up_s is None else f"{self.caught_up_s:.1f}s"
        parts = [
            f"seed={self.seed}",
            "CLEAN" if self.clean else "NOT CLEAN",
            f"{self.seconds:.0f}s",
            f"faults={','.join(self.faults)}",
            f"exits={dict(self.exits)}",
            f"slow={self.slow_exits}",
            f"stopped_in_transaction={self.stops_inside}",
            f"mismatch_total={self.mismatches}",
            f"caught_up={waited}",
            str(self.verdict),
        ]
        if self.failure:
            parts.append(f"failure: {self.failure}")
        if self.last_words:
            parts.append(
                f"said: {'; '.join(f'{count}x {text}' for text, count in self.last_words.most_common(6))}"
            )
        if self.kept:
            parts.append(f"logs: {self.kept}")
        return " ".join(parts)


class Faults:
    """Each fault does one thing to a running round; False when it cannot happen just now."""

    def __init__(self, fleet: Fleet, broker: RunningBroker, chance: random.Random):
        self._fleet, self._broker, self._chance = fleet, broker, chance
        self._fresh = [name for name in NAMES if name not in fleet.workers]
        self._by_name: dict[str, Callable[[], bool]] = {
            "kill": self._kill,
            "term": self._term,
            "stop": self._stop,
            "stop inside": self._stop_inside,
            "wipe": self._wipe,
            "old": self._old,
            "ahead": self._ahead,
            "join": self._join,
            "leave": self._leave,
            "power cut": self._power_cut,
            "broker": self._kill_broker,
            "broker and workers": self._kill_everything,
        }

    def cause(self, fault: str) -> bool:
        return self._by_name[fault]()

    def _name(self) -> str | None:
        """A worker, three times in four one that has opened partitions: a fault while starting tries less."""
        workers = self._fleet.workers
        opened = sorted(name for name, worker in workers.items() if worker.open)
        if opened and self._chance.random() < 0.75:
            return self._chance.choice(opened)
        return self._chance.choice(sorted(workers)) if workers else None

    def _down(self, graceful: bool) -> str | None:
        """Take a worker down and leave it to ``tend`` to start it again."""
        name = self._name()
        if name is not None:
            worker = self._fleet.workers[name]
            if graceful:
                worker.terminate()
            else:
                worker.kill()
        return name

    def _kill(self) -> bool:
        return self._down(graceful=False) is not None

    def _term(self) -> bool:
        name = self._name()
        if name is None:
            return False
        self._fleet.workers[name].tell_to_stop()
        return True

    def _stop(self) -> bool:
        name = self._name()
        if name is None or self._fleet.workers[name].stopped:
            return False
        self._fleet.workers[name].signal(signal.SIGSTOP)  # tend wakes it after its session has timed out
        return True

    def _stop_inside(self) -> bool:
        """Have a worker stop itself in its next open transaction; tend wakes it as well."""
        opened = sorted(
            name for name, worker in self._fleet.workers.items() if worker.open and not worker.stopped
        )
        if not opened:
            return False
        self._fleet.workers[self._chance.choice(opened)].signal(STOP_INSIDE)
        return True

    def _wipe(self) -> bool:
        name = self._down(graceful=False)
        if name is not None:
            self._fleet.wipe(name)
        return name is not None

    def _old(self) -> bool:
        name = self._down(graceful=True)
        if name is None:
            return False
        if self._fleet.has_copy(name):
            self._fleet.put_back(name)
        else:
            self._fleet.copy(name)  # to be put back when this name is drawn again
        return True

    def _ahead(self) -> bool:
        name = self._down(graceful=True)
        return name is not None and self._fleet.run_ahead(name) > 0

    def _join(self) -> bool:
        if not self._fresh or len(self._fleet.workers) >= 3:
            return False
        self._fleet.start(self._fresh.pop(0))
        return True

    def _leave(self) -> bool:
        name = self._name()
        if name is None or len(self._fleet.workers) < 2:
            return False
        worker = self._fleet.workers.pop(name)
        worker.tell_to_stop()
        self._fleet.leaving.append(worker)
        return True

    def _power_cut(self) -> bool:
        self._fleet.kill()
        return True

    def _kill_broker(self) -> bool:
        self._broker.kill()
        self._fleet.tend_for(self._chance.uniform(0.5, 2.0))
        self._broker.restart()
        return True

    def _kill_everything(self) -> bool:
        self._broker.kill()
        self._fleet.kill()
        time.sleep(self._chance.uniform(0.2, 1.0))
        self._broker.restart()
        return True


def run_round(broker: RunningBroker, seed: int, shape: Shape, folder: Path, broker_kills: int = 0) -> Outcome:
    """One round on topics of its own; its folder is kept only when it is not clean.

    ``broker_kills`` is how many of the faults take the broker down.
    """
    began_s = time.monotonic()
    chance = random.Random(seed)
    # The id is new in every run, so that a round can be repeated with its seed on the same broker.
    round_ = Round(
        broker.bootstrap_servers, f"chaos-{seed}-{time.time_ns() // 1_000_000 % 10**9}", shape.partitions
    )
    fleet = Fleet(round_, folder, shape.switches())
    outcome = Outcome(seed, [])
    try:
        round_.create()
        _play(broker, round_, fleet, shape, chance=chance, outcome=outcome, broker_kills=broker_kills)
        fleet.stop()
        if outcome.failure is None:
            outcome.verdict = judge(round_, Input(round_).read(), fleet.data_dirs)
    except Exception as error:
        outcome.failure = f"{type(error).__name__}: {error} {traceback.format_exc(limit=-3)!r}"
    finally:
        fleet.kill()
    outcome.exits, outcome.slow_exits = fleet.exits, fleet.slow
    outcome.stops_inside = fleet.count("injected stop")
    outcome.mismatches, outcome.last_words = (
        fleet.count("foreclick_position_mismatch_total"),
        fleet.last_words(),
    )
    outcome.seconds = time.monotonic() - began_s
    if outcome.clean:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        outcome.kept = folder
    round_.delete()
    return outcome


def _play(
    broker: RunningBroker,
    round_: Round,
    fleet: Fleet,
    shape: Shape,
    *,
    chance: random.Random,
    outcome: Outcome,
    broker_kills: int,
) -> None:
    fleet.start("A")
    fleet.start("B")
    driver = Driver(
        round_.bootstrap,
        round_.source,
        events=int(shape.seconds * shape.rate),
        rate=shape.rate,
        users=shape.users,
        seed=outcome.seed,
    )
    driver.start()
    fleet.tend_for(OPENING_S, until=lambda: fleet.logs["A"].open and fleet.logs["B"].open)
    faults = Faults(fleet, broker, chance)
    kill_times_s = sorted(
        time.monotonic() + chance.uniform(0, shape.seconds - 6) for _ in range(broker_kills)
    )
    while driver.is_alive():
        fleet.tend_for(chance.uniform(*shape.pause_s), until=lambda: not driver.is_alive())
        if chance.random() < 0.75:  # while all are still starting, most faults would try nothing new
            fleet.tend_for(OPENING_S, until=fleet.any_open)
        fault = chance.choice(shape.worker_faults)
        if kill_times_s and time.monotonic() > kill_times_s[0]:
            kill_times_s.pop(0)
            fault = chance.choice(BROKER_FAULTS)
        if faults.cause(fault):
            outcome.faults.append(fault)
    for _ in kill_times_s:  # the faults before took too long: the backlog is traffic too
        fault = chance.choice(BROKER_FAULTS)
        faults.cause(fault)
        outcome.faults.append(fault)
    driver.finish()
    fleet.switches = ["--planted", shape.planted] if shape.planted else []
    if not fleet.workers:
        fleet.start("A")
    began_s = time.monotonic()
    if fleet.catch_up():
        outcome.caught_up_s = time.monotonic() - began_s
    else:
        outcome.failure = f"not caught up: committed {round_.committed()}, ends {round_.ends(round_.source)}"


def totals(outcomes: Sequence[Outcome]) -> str:
    """One JSON object over all rounds."""
    verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict is not None]
    sums = {
        name: sum(getattr(verdict, name) for verdict in verdicts)
        for name in (
            *("events", "predictions", "dead_letters", "lost", "twice", "contradicting", "repeats"),
            *("mismatching_rows", "mismatching_positions", "mismatching_local", "hanging"),
        )
    }
    return json.dumps(
        {
            "rounds": len(outcomes),
            "clean": sum(outcome.clean for outcome in outcomes),
            "broker_kill_rounds": sum(outcome.broker_killed for outcome in outcomes),
            "repeat_rounds": sum(bool(outcome.verdict and outcome.verdict.repeats) for outcome in outcomes),
            "stopped_in_transaction": sum(outcome.stops_inside for outcome in outcomes),
            "position_mismatch_total": sum(outcome.mismatches for outcome in outcomes),
            **sums,
            "faults": dict(sum((Counter(outcome.faults) for outcome in outcomes), Counter())),
            "exits": dict(sum((outcome.exits for outcome in outcomes), Counter())),
            "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        }
    )
