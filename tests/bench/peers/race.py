"""``foreclick bench peers``: every entrant in every round, in an order drawn from the seed, on one broker.

Results are written after every entrant, so that a race which is broken off has lost nothing that it measured.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream.errors import ForeclickError
from tests.bench.bed import Sizes, bed, now_ms
from tests.bench.peers import results
from tests.bench.peers.entrants import ENTRANTS, Entrant
from tests.bench.peers.machine import machine
from tests.bench.peers.measuring import Measures, measure, place
from tests.bench.pipeline import HISTORY_MS
from tests.bench.processes import ROOT
from tests.bench.report import last_line, tell
from tests.bench.traffic import send_backlog

OUT = ROOT / "tests" / "bench" / "results"


class UnknownEntrant(ForeclickError):
    """A name that nobody who takes part has."""


def chosen(only: str | None) -> list[Entrant]:
    """The entrants of a comma separated list of names, or all.

    Raises:
        UnknownEntrant: a name is nobody's.
    """
    names = [entrant.name for entrant in ENTRANTS] if only is None else [n.strip() for n in only.split(",")]
    by_name = {entrant.name: entrant for entrant in ENTRANTS}
    for name in names:
        if name not in by_name:
            raise UnknownEntrant(f"There is no entrant {name!r}. Take some of: {', '.join(by_name)}.")
    return [by_name[name] for name in names]


def orders(entrants: list[Entrant], repeats: int, seed: int) -> list[list[Entrant]]:
    """Who runs when, a list a round; the same for the same seed."""
    random = np.random.default_rng(seed)
    return [[entrants[i] for i in random.permutation(len(entrants))] for _ in range(repeats)]


def runs_of(
    rounds: Sequence[Sequence[Entrant]],
    steady_repeats: int,
    measured: Callable[[Entrant, int, bool], Mapping[str, Any]],
) -> Iterator[list[dict[str, Any]]]:
    """All runs so far, after each entrant's.

    Args:
        measured: figures of an entrant in a round, counted from 1; the last argument asks for latency and a kill too.
    """
    runs: list[dict[str, Any]] = []
    for number, order in enumerate(rounds, 1):
        tell(f"round {number} of {len(rounds)}: {', '.join(entrant.name for entrant in order)}")
        for entrant in order:
            figures = measured(entrant, number, number <= steady_repeats)
            runs.append({"round": number, "entrant": entrant.name, **figures})
            yield runs


def run(
    *,
    repeats: int = 5,
    steady_repeats: int | None = None,
    only: str | None = None,
    seed: int = 1,
    out: Path | None = None,
    model: Path | None = None,
    measures: Measures = Measures(),  # noqa: B008 - frozen
) -> dict[str, float]:
    """Run the race; writes results after each entrant, prints the table and one JSON line.

    Args:
        steady_repeats: in how many of the rounds, the first ones, latency and kills are measured too; None is all.
    """
    entrants = chosen(only)
    out = out or OUT
    steady_repeats = repeats if steady_repeats is None else steady_repeats
    began_s, load_before = time.monotonic(), os.getloadavg()[0]
    # So that a race that is told to end takes its processes, topics and folder with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        ground = stack.enter_context(bed(Sizes(users=measures.users, seed=seed), model))
        source = stack.enter_context(place(ground, f"bench-{os.getpid()}-backlog"))
        clicks = source.settings.clicks_topic
        tell(f"{measures.events:,} events of {measures.users:,} users into {clicks}")
        step_ms = (HISTORY_MS - 60_000) / measures.events
        records = ground.traffic("backlog").records(measures.events, now_ms() - HISTORY_MS, step_ms)
        send_backlog(ground.client, clicks, records)
        about = machine(ground.model, ground.broker.status().source or "unknown", load_before)

        def measured(entrant: Entrant, number: int, steady: bool) -> dict[str, Any]:
            return measure(ground, entrant, number, clicks, measures, seed + number, steady)

        for runs in runs_of(orders(entrants, repeats, seed), steady_repeats, measured):
            took_s = time.monotonic() - began_s
            record = results.record(entrants, runs, about, measures, seed, took_s)
            results.write(record, out)
            tell(f"{len(runs)} of {repeats * len(entrants)} runs in {took_s / 60:.1f} minutes")
    tell(f"written: {out}/peers.json, peers.md, peers.svg")
    results.show(record)
    figures = results.ratios(record["summary"])
    last_line(figures)
    return figures
