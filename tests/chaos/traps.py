"""Faults that a worker process brings upon itself, at named steps of the protocol: exits, stops, a wrong clock.

What the worker of tests/chaos/worker.py and that of the product (tests/chaos/product_worker.py) have in common. What
happened is a line in the log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.engine import store
from stream.engine.kafka_log import KafkaLog
from stream.stage import Message, Row

INJECTED_EXIT = 9

OPENING_STEPS = (
    *("fenced", "cleansed", "settled", "committed offset", "restoring", "restored", "verified", "opened"),
    "closing",
)
BATCH_STEPS = ("scored", "outputs sent", "before commit", "committed", "applied")
STEPS = OPENING_STEPS + BATCH_STEPS
SEAMS = ("torn", "between transactions")  # which only planted bugs have
STOP_INSIDE = signal.SIGRTMIN  # stop yourself in the next open transaction


def say(event: str, **values: Any) -> None:
    """One flushed line for whoever reads this worker's log."""
    os.write(2, (json.dumps({"event": event, **values, "at_s": round(time.time(), 3)}) + "\n").encode())


@dataclass
class Trap:
    """Ends or stops this process at a step.

    Args:
        step: its name, or ``any``.
        skip: how often the step passes first.
        probability: of each later passing; a step of the opening, which is rare, counts ten times.
    """

    action: str
    step: str
    skip: int
    probability: float
    chance: random.Random
    sprung: bool = False

    def __call__(self, step: str) -> None:
        if self.sprung or self.step not in {step, "any"}:
            return
        if self.skip > 0:
            self.skip -= 1
            return
        weight = 10 if self.step == "any" and step in OPENING_STEPS else 1
        if self.chance.random() >= self.probability * weight:
            return
        self.sprung = True
        if self.action == "exit":
            say("injected exit", step=step)
            os._exit(INJECTED_EXIT)
        say("injected stop", step=step)
        os.kill(os.getpid(), signal.SIGSTOP)
        say("continued", step=step)


class ProbedLog(KafkaLog):
    """The product's log, with two more places to fail, both inside an open transaction."""

    probe: Any = staticmethod(lambda step: None)
    _has_committed = False

    async def commit(
        self, messages: Mapping[str, Iterable[Message]], rows: list[Row], next_offset: int
    ) -> int:
        position = await super().commit(messages, rows, next_offset)
        if not self._has_committed:
            self._has_committed = True
            say("first commit", group=self._group, partition=self._number)
        return position

    async def on_the_way(self) -> None:
        self.probe("outputs sent")

    async def before_commit(self) -> None:
        self.probe("before commit")


class ShiftedClock:
    """The wall clock, ahead or behind by as many ms as a file says; the file may change at any time."""

    def __init__(self, file: Path):
        self._file = file

    def __call__(self) -> int:
        try:
            ahead_ms = int(self._file.read_text())
        except (OSError, ValueError):  # none, or just being written
            ahead_ms = 0
        return int(time.time() * 1000) + ahead_ms


def add_switches(parser: argparse.ArgumentParser) -> None:
    """The switches of everything here, and of planted bugs."""
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--clock", type=Path, default=Path(os.devnull), help="holds the ms that it is ahead")
    parser.add_argument("--write-buffer-bytes", type=int, default=store.WRITE_BUFFER_BYTES)
    parser.add_argument("--exit-at", choices=(*STEPS, *SEAMS, "any"))
    parser.add_argument("--exit-after", type=int, default=0, help="how often the step passes first")
    parser.add_argument("--exit-probability", type=float, default=1.0)
    parser.add_argument("--stop-at", choices=(*STEPS, "any"), help="SIGSTOP to itself, once")
    parser.add_argument("--stop-after", type=int, default=0)
    parser.add_argument("--stop-probability", type=float, default=1.0)
    parser.add_argument("--planted", help="a bug planted on purpose")


def set_traps(options: argparse.Namespace) -> Callable[[str], None]:
    """The probe of an engine, with the traps that the switches ask for; sizes of stores too."""
    store.WRITE_BUFFER_BYTES = options.write_buffer_bytes
    chance = random.Random(options.seed)
    traps = [
        Trap(action, step, skip, probability, chance)
        for action, step, skip, probability in (
            ("exit", options.exit_at, options.exit_after, options.exit_probability),
            ("stop", options.stop_at, options.stop_after, options.stop_probability),
        )
        if step is not None
    ]

    def arm(*_: Any) -> None:
        traps.append(Trap("stop", "before commit", skip=0, probability=1.0, chance=chance))

    signal.signal(STOP_INSIDE, arm)

    def probe(step: str) -> None:
        if step == "opened":
            say("opened")
        for trap in list(traps):
            trap(step)

    ProbedLog.probe = staticmethod(probe)
    return probe


def end_with_parent() -> None:
    """Nobody is left behind when the test or the rounds are killed: watch in a thread."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(INJECTED_EXIT)

    threading.Thread(target=watch, daemon=True).start()
