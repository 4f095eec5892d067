"""Faults of what a worker stands on: connections, disks, files, the clock, its input. Each once, judged at the end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from stream.broker import Broker
from tests.chaos import disk
from tests.chaos.conftest import SESSION_TIMEOUT_S, Scene
from tests.chaos.faults import last_words
from tests.chaos.proxy import COMMIT_OFFSETS, END_TRANSACTION, PRODUCE
from tests.chaos.test_planted_bugs import caught

pytestmark = [pytest.mark.broker, pytest.mark.slow]

LANES = 3
BUFFER = ["--write-buffer-bytes", str(64 << 10)]  # rows reach the disk after some hundred of them


def play_lost_answers(played: Scene) -> None:
    """The broker commits, takes offsets and records, and the worker never hears of it."""
    worker = played.fleet.start("A")
    played.drive(2500, rate=500)
    for kind in (END_TRANSACTION, PRODUCE, COMMIT_OFFSETS):
        worker.await_line("opened")
        played.fleet.proxies["A"].swallow(kind)
        played.fleet.tend_for(0.7)
        worker = played.fleet.workers["A"]


def play_cuts(played: Scene) -> None:
    """Every connection is reset in the middle of its frames, and slow in between."""
    worker = played.fleet.start("A")
    worker.await_line("opened")
    played.drive(2500, rate=500)
    for _ in range(4):
        played.fleet.proxies["A"].cut(0.1)
        played.fleet.tend_for(0.6)
        played.fleet.proxies["A"].slow(0.1, 0.5)
        played.fleet.tend_for(0.5)


def play_silence(played: Scene) -> None:
    """Nothing of a worker arrives for longer than its session, then all of it."""
    played.drive(3000, rate=300)
    silent = played.fleet.start("A")
    silent.await_line("opened", count=2)
    heir = played.fleet.start("B")
    heir.await_line("opened")
    played.fleet.proxies["A"].hush(SESSION_TIMEOUT_S + 3)
    played.fleet.tend_for(SESSION_TIMEOUT_S + 3)


def play_full_disk(played: Scene) -> None:
    """There is no space for some seconds."""
    worker, full = played.fleet.start("A"), played.fleet.disks["A"]
    worker.await_line("opened")
    full.fill()
    played.drive(4000, rate=1000)
    code = worker.process.wait(60)
    said = last_words(worker)
    full.free()
    assert code == 1, said
    assert said.startswith("StoreError: "), said
    assert "Free space" in said or "free space" in said


def play_damaged_file(played: Scene) -> None:
    """A file of rows is not what was written."""
    worker = played.fleet.start("A")
    played.drive(4000)
    played.settle()
    worker.terminate()
    assert disk.damage(worker.data_dir, random.Random(3)) is not None
    assert len(disk.undamaged(worker.data_dir)) == 1  # of two; no other fault may open the damaged one
    played.drive(1000)
    played.settle()
    said = played.fleet.logs["A"].said("local rows thrown away", earlier_lives=True)
    assert said, played.fleet.last_words()


def play_aged_directory(played: Scene) -> None:
    """It was last written so long ago that tombstones may be gone from the changelog."""
    worker = played.fleet.start("A")
    played.drive(1000)
    played.settle()
    worker.terminate()
    assert disk.age(worker.data_dir, days=3) == 2
    played.drive(500)
    successor = played.fleet.start("A")
    played.settle()
    wiped = successor.said("local rows wiped")
    assert len(wiped) == 2
    assert all("delete.retention.ms" in line["because"] for line in wiped)


def play_clock(played: Scene) -> None:
    """The clock goes back by a month while events flow, and forth again after a restart."""
    played.fleet.start("A").await_line("opened")
    played.drive(1000, rate=1000)
    played.fleet.clock("A").write_text(str(-30 * 86_400_000))
    played.settle()
    played.fleet.workers.pop("A").terminate()
    played.fleet.clock("A").write_text("3600000")
    played.drive(500)
    played.fleet.start("A")


def play_poison(played: Scene) -> None:
    """Hundreds of hostile records among the events."""
    played.drive(1500, rate=1000)
    played.poison(300)
    played.fleet.start("A")


PLAYS: dict[str, tuple[Callable[[Scene], None], dict[str, object]]] = {
    "lost answers": (play_lost_answers, {"proxied": True}),
    "cuts": (play_cuts, {"proxied": True}),
    "silence": (play_silence, {"proxied": True}),
    "full disk": (play_full_disk, {"disks": True, "switches": BUFFER}),
    "damaged file": (play_damaged_file, {"switches": BUFFER}),
    "aged directory": (play_aged_directory, {}),
    "clock": (play_clock, {}),
    "poison": (play_poison, {}),
}


@pytest.fixture(scope="module")
def rounds(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """What the oracle found in each round ("" for nothing), a few side by side."""
    folder = tmp_path_factory.mktemp("outside")

    def play(name: str) -> str:
        steps, options = PLAYS[name]
        scene = Scene(broker.bootstrap_servers, folder / name.replace(" ", "-"), **options)
        try:
            steps(scene)
            verdict = scene.judged()
            assert verdict.events > 0
            assert verdict.stores > 0
            return f"{verdict} {scene.fleet.last_words()}" if caught(verdict) else ""
        finally:
            scene.end()

    with ThreadPoolExecutor(LANES) as lanes:
        yield {name: lanes.submit(play, name) for name in PLAYS}


@pytest.mark.parametrize("name", PLAYS)
def test_fault_from_outside_changes_nothing(rounds: dict[str, Future[str]], name: str) -> None:
    """Workers end or go on, in one clear line where they end, and what they leave is exact."""
    assert not rounds[name].result()
