"""What the exchange of the model costs those whose events arrive meanwhile."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from models.registry import untrained
from stream.activation import Activation
from stream.model_store import announce, checked
from stream.settings import Settings
from tests.bench import pipeline
from tests.bench.bed import Bed
from tests.bench.latency import Watched, watch_paced
from tests.bench.processes import BenchFailed, BenchWorker
from tests.bench.report import table, tell

BEFORE_S = 10.0
AFTER_S = 10.0  # most users have come by, and their rows are rebuilt
EVENTS_A_USER = 10  # of the backlog, when only this part runs: what windows then hold


class Exchange:
    """Activates a model in the middle of paced traffic, and notes when the worker served it.

    Args:
        asked: checked beforehand, because the check would take the processor that is measured.
        at_s: when, as ``time.time``.
    """

    def __init__(self, settings: Settings, worker: BenchWorker, asked: Activation, at_s: float):
        self.asked_s = self.served_s = 0.0
        self._settings, self._worker, self._asked, self._at_s = settings, worker, asked, at_s

    def __call__(self) -> None:
        if not self.asked_s and time.time() >= self._at_s:
            announce(self._settings, self._asked)
            self.asked_s = time.time()
        if self.asked_s and not self.served_s and self._worker.stats().get("model") == self._asked.label:
            self.served_s = time.time()


def retrained(bed: Bed) -> tuple[str, Path]:
    """A model of the same size and vocabularies as the bench's, with other weights; its label and its store."""
    manifest = json.loads((bed.model / "manifest.json").read_text())
    root = bed.folder / "retrained"
    untrained(
        root,
        seed=2,
        name="retrained",
        actions=tuple(manifest["actions"]),
        categories=tuple(manifest["categories"]),
        hidden=manifest["architecture"]["hidden"],
    )
    return "retrained/1", root


def measure(bed: Bed, settings: Settings, worker: BenchWorker) -> dict[str, float]:
    """Exchange the model of the running worker under paced load.

    Raises:
        BenchFailed: the worker did not serve the other model before the traffic ended.
    """
    asked, _ = checked(settings, *retrained(bed), "bench", force=True)
    worker.wait_ready(lambda text: None)
    warm_up_s = bed.sizes.warm_up_s
    # The source begins about two seconds after it was started.
    exchange = Exchange(settings, worker, asked, time.time() + 2 + warm_up_s + BEFORE_S)
    seen = watch_paced(bed, settings, worker, "swap", warm_up_s + BEFORE_S + AFTER_S + 2, exchange)
    if not exchange.served_s:
        raise BenchFailed(f"The worker did not serve {asked.label}; its log is {worker.log}.")
    tell(f"swap: served {exchange.served_s - exchange.asked_s:.1f} s after it was asked for")
    return figures(seen, exchange, warm_up_s)


def figures(seen: Watched, exchange: Exchange, warm_up_s: float) -> dict[str, float]:
    """p99 of events that were produced from the activation until most rows were rebuilt, minus p99 before."""
    since_ms = min(seen.produced.values()) + warm_up_s * 1000
    stretches = {
        "before": (since_ms, exchange.asked_s * 1000),
        "loading": (exchange.asked_s * 1000, exchange.served_s * 1000),
        "rebuilding": (exchange.served_s * 1000, (exchange.served_s + AFTER_S) * 1000),
    }
    rows, p99_ms = [], {}
    for reader in seen.readers:
        for name, (start_ms, end_ms) in stretches.items():
            ages_ms = seen.ages_ms(reader, start_ms, end_ms)
            quantiles = np.percentile(ages_ms, (50, 90, 99, 100)).tolist() if len(ages_ms) else [0.0] * 4
            rows.append((reader.name, name, len(ages_ms), *quantiles))
        around = seen.ages_ms(reader, stretches["loading"][0], stretches["rebuilding"][1])
        before = seen.ages_ms(reader, *stretches["before"])
        p99_ms[reader.name] = float(np.percentile(around, 99) - np.percentile(before, 99))
        rows.append((reader.name, "added p99", len(around), "", "", p99_ms[reader.name], ""))
    table(
        "swap: another model under load, ms from the producer's timestamp to the reader",
        ("reader", "events", "number", "p50", "p90", "p99", "max"),
        rows,
    )
    return {"swap_added_p99_ms": p99_ms["read_uncommitted"]}


def run(bed: Bed) -> dict[str, float]:
    """Only this part: a fresh worker that has met every user a few times."""
    settings = bed.topics("swap")
    pipeline.fill(bed, settings, "before-swap", EVENTS_A_USER * bed.sizes.users)
    with bed.worker(settings) as worker:
        worker.wait_ready(lambda text: None)
        bed.wait_drained(settings, worker)
        return measure(bed, settings, worker)
