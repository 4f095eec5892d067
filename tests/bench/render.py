"""What rendering one prediction costs: microseconds an event, value and headers apart, and a small batch whole.

    python -m tests.bench.render [--events 4096] [--rounds 30]

Times are the thread's CPU time, so that neighbours on the machine count little. Minimum and median over the rounds
are printed, and, as a yardstick of the machine, what msgspec takes to encode the same values from dicts that are
already there. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec.json import encode

from models.vocabulary import DEFAULT_ACTIONS, code_of
from stream.outputs import PredictionRenderer
from tests.stream.predictions import Prediction, arguments_of


def a_prediction(rng: np.random.Generator, offset: int, names: list[str]) -> Prediction:
    """A prediction of ordinary size: 11 actions, 20 categories, two or three reasons."""
    actions = rng.dirichlet(np.ones(len(DEFAULT_ACTIONS) + 1)).astype("f4").tolist()
    categories = np.sort(rng.dirichlet(np.full(60, 0.3))[:20].astype("f4"))[::-1].tolist()
    chosen = rng.choice(len(names), 20, replace=False)
    return Prediction(
        user_id=f"user-{rng.integers(20_000)}",
        event_id=f"e{rng.integers(1 << 40):x}",
        event_time_ms=1_511_550_516_000 + offset * 37,
        partition=3,
        offset=offset,
        session_index=int(rng.integers(1, 200)),
        session_position=int(rng.integers(1, 60)),
        next_action=actions,
        categories=[(code_of(names[i]), p) for i, p in zip(chosen.tolist(), categories, strict=True)],
        purchase_probability=float(rng.random()),
        churn_probability=float(rng.random()),
        median_gap_s=float(rng.lognormal(4, 3)),
        terms=[float(rng.exponential(2)), float(rng.exponential(4)), float(rng.normal(1, 3))],
        too_predictable=float(rng.random()),
        anomaly_score=float(rng.random()),
    )


def measure(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Minimum and median CPU seconds of one call."""
    work()
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times), statistics.median(times)


def report(figures: dict[str, Any], name: str, seconds: tuple[float, float], events: int) -> None:
    """Print and keep microseconds an event."""
    least, median = (1e6 * one / events for one in seconds)
    figures[name], figures[f"{name}_median"] = round(least, 3), round(median, 3)
    print(f"{name:24s} {least:8.3f}   median {median:8.3f}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    rng = np.random.default_rng(7)
    names = [str(4_000_000 + int(i)) for i in rng.choice(900_000, 5_000, replace=False)]
    by_code = {code_of(name): name for name in names}
    renderer = PredictionRenderer(
        "shop-lstm",
        "7",
        (*DEFAULT_ACTIONS, "other"),
        by_code,
        topic="clicks",
        topic_id="mGPxVDvDTBSgXhH6ZDRmFw",
        churn_horizon_s=2_592_000,
        source="/foreclick/clicks",
    )
    many = arguments_of([a_prediction(rng, 18_842 + i, names) for i in range(asked.events)])
    few = arguments_of([a_prediction(rng, 18_842 + i, names) for i in range(30)])
    of_headers = (many[0], many[2], many[3], many[4])
    ready = [json.loads(value) for value in renderer.values(*many, by_code)]
    figures: dict[str, Any] = {"events": asked.events, "value_bytes": len(renderer.values(*many, by_code)[0])}
    cases: dict[str, tuple[Callable[[], object], int]] = {
        "value_us": (lambda: renderer.values(*many, by_code), asked.events),
        "headers_us": (lambda: renderer.headers(*of_headers), asked.events),
        "both_us": (lambda: renderer.render(*many, by_code), asked.events),
        "encode_ready_dicts_us": (lambda: [encode(value) for value in ready], asked.events),
        "batch_of_30_us": (lambda: renderer.render(*few, by_code), 1),
    }
    for name, (work, events) in cases.items():
        report(figures, name, measure(work, asked.rounds), events)
    # A server that keeps what it made at start out of the collector, and lets it look less often.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    for name in ("headers_us", "both_us"):
        work, events = cases[name]
        report(figures, f"settled_gc_{name}", measure(work, asked.rounds), events)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
