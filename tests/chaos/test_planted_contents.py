"""Bugs in what is written and read back: rows, outputs and duplicates. Each must be caught within ROUNDS rounds.

The bugs of fences, positions and restores are in test_planted_bugs.py. Most of a round is starting a process, so a few
are played side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from stream.broker import Broker
from tests.chaos.conftest import Scene
from tests.chaos.test_planted_bugs import ROUNDS, caught, judged_as_it_stands
from tests.chaos.verdict import Verdict

pytestmark = [pytest.mark.broker, pytest.mark.slow]

LANES = 3


def one_life(played: Scene) -> Verdict:
    """One worker and a backlog."""
    played.drive(1200)
    played.drove()
    played.fleet.start("A")
    return played.judged()


def exit_at(seam: str) -> Callable[[Scene], Verdict]:
    """A worker that ends where only the bug has a seam, and its successor."""

    def play(played: Scene) -> Verdict:
        played.drive(1200)
        played.drove()
        played.fleet.start("A", "--exit-at", seam, "--exit-after", "12").process.wait(60)
        return played.judged()

    return play


def erased_and_wiped(played: Scene) -> Verdict:
    """Users are erased, then the data directory is lost."""
    played.drive(800, users=400, tombstones=0.2)
    played.fleet.start("A")
    played.settle()
    played.fleet.workers["A"].kill()
    played.fleet.wipe("A")
    played.drive(100, users=400)
    return played.judged()


def repeated_over_a_kill(played: Scene) -> Verdict:
    """A third of the events are repeated while the worker is killed and started again."""
    worker = played.fleet.start("A")
    played.drive(1200, rate=600, users=20, duplicates=0.3)
    worker.await_line("opened", count=2)
    time.sleep(0.5)
    worker.kill()
    return played.judged()


def stopped_and_started(played: Scene) -> Verdict:
    """A worker ends in order; events come; it starts again."""
    played.drive(400)
    played.fleet.start("A")
    played.settle()
    played.fleet.workers.pop("A").terminate()
    played.drive(400)
    played.drove()
    played.fleet.start("A")
    played.settle()
    return judged_as_it_stands(played)


def away_and_back(played: Scene) -> Verdict:
    """A partition goes to another worker, which writes to it, and comes back."""
    first = played.fleet.start("A")
    first.await_line("opened", count=2)
    played.drive(100, users=30)
    played.settle()
    second = played.fleet.start("B")
    second.await_line("opened")
    played.drive(300, users=30)
    played.settle()
    played.fleet.workers.pop("B").terminate()
    played.drive(100, users=30)
    return played.judged()


class Play(NamedTuple):
    """What provokes a bug, and which of the oracle's counts must name it."""

    play: Callable[[Scene], Verdict]
    named: str


PLAYS = {
    "rows-outside-batch": Play(exit_at("torn"), "contradicting"),
    "offsets-before-outputs": Play(exit_at("between transactions"), "lost"),
    "row-of-another": Play(one_life, "contradicting"),
    "chunk-twice": Play(one_life, "contradicting"),
    "outputs-backwards": Play(one_life, "out_of_order"),
    "wrong-partition": Play(one_life, "contradicting"),
    "no-tombstones": Play(erased_and_wiped, "mismatching_local"),
    "ring-not-stored": Play(repeated_over_a_kill, "contradicting"),
    "open-too-late": Play(stopped_and_started, "lost"),
    "stale-row": Play(away_and_back, "contradicting"),
}


def first_caught(bootstrap: str, folder: Path, bug: str) -> list[Verdict]:
    """Verdicts up to the first that found something, ROUNDS at most."""
    verdicts: list[Verdict] = []
    while len(verdicts) < ROUNDS and not any(map(caught, verdicts)):
        scene = Scene(bootstrap, folder / str(len(verdicts)), switches=["--planted", bug])
        try:
            verdicts.append(PLAYS[bug].play(scene))
        finally:
            scene.end()
    return verdicts


@pytest.fixture(scope="module")
def rounds(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[list[Verdict]]]]:
    """The rounds of all bugs, a few at a time."""
    folder = tmp_path_factory.mktemp("planted")
    with ThreadPoolExecutor(LANES) as lanes:
        yield {bug: lanes.submit(first_caught, broker.bootstrap_servers, folder / bug, bug) for bug in PLAYS}


@pytest.mark.parametrize("bug", PLAYS)
def test_planted_bug_is_caught(rounds: dict[str, Future[list[Verdict]]], bug: str) -> None:
    """The oracle finds something within the stated number of rounds, and calls it by its name."""
    verdict = rounds[bug].result()[-1]
    assert caught(verdict), str(verdict)
    assert getattr(verdict, PLAYS[bug].named) > 0, str(verdict)
