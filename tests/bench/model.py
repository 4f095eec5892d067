"""The step engine alone: what one step costs an event, in a large micro-batch and in a small one."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from models.columns import sample_columns
from models.registry import load_artefact
from models.runtime import StepEngine
from tests.bench.report import table

CASES = ((4096, 3000), (30, 29))  # events, users
ROUND_S = 2.0


def run(model: Path) -> dict[str, float]:
    """Print microseconds an event by CPU time of the thread, least and median of the rounds."""
    artefact = load_artefact(model)
    engine = StepEngine(artefact)
    rows = []
    for events, users in CASES:
        window, columns = sample_columns(users, events, len(artefact.actions), artefact.categories.codes, 1)
        state = np.random.default_rng(1).normal(0, 0.3, (users, artefact.state_width)).astype(np.float16)
        engine.step(state, window, columns)
        cpu_s, wall_s, ends_s = [], [], time.monotonic() + ROUND_S
        while time.monotonic() < ends_s:
            began, began_cpu = time.perf_counter(), time.thread_time()
            engine.step(state, window, columns)
            cpu_s.append(time.thread_time() - began_cpu)
            wall_s.append(time.perf_counter() - began)
        rows.append(
            (
                *(events, int(columns["wave"].max()) + 1, len(cpu_s), min(cpu_s) * 1e6 / events),
                *(statistics.median(cpu_s) * 1e6 / events, statistics.median(wall_s) * 1e3),
            )
        )
    table(
        f"model step on {engine.device_name}, one thread",
        ("events", "waves", "rounds", "us an event, least", "us an event, median", "ms a step, wall"),
        rows,
    )
    return {}
