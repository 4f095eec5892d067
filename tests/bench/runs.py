"""The parts of a bench in one run on one broker, and what they amount to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from models.registry import bundled, untrained
from stream.settings import load_settings
from tests.bench import alerts, labels, latency, model, pipeline, poison, restore, stock, swap, timers
from tests.bench.bed import Bed, Sizes, bed
from tests.bench.report import last_line, machine, table

#: Keys of the last line, in its order.
KEYS = (
    "ratio_to_stock",
    "events_per_s",
    "stock_events_per_s",
    "p50_ms",
    "p99_ms",
    "committed_p50_ms",
    "committed_p99_ms",
    "swap_added_p99_ms",
    "poison_ratio",
    "alerts_cost",
    "churn_cost",
    "groups_cost",
    *(f"{way}_worker_us" for way in alerts.WAYS),
    "labels_cost",
    "restore_rows_per_s",
    "bytes_per_user",
    "rss_mib",
    "timers_fired_per_s",
    "timer_bytes",
)


def run(part: str, sizes: Sizes, model_folder: Path | None) -> dict[str, float]:
    """Run one part, or ``all``; prints tables and at the end the JSON line."""
    if part in _ALONE:
        figures = _alone(part, sizes, model_folder)
    else:
        with bed(sizes, model_folder) as ground:
            figures = _PARTS[part](ground)
    ordered = {key: figures[key] for key in KEYS if key in figures}
    last_line(ordered)
    return ordered


def _pipeline(ground: Bed) -> dict[str, float]:
    return _with_ratio(pipeline.run(ground) | stock.run(ground))


def _all(ground: Bed) -> dict[str, float]:
    settings = ground.topics("clicks")
    pipeline.fill(ground, settings, "clicks", ground.sizes.events)
    with ground.worker(settings) as worker:
        figures = pipeline.measure(ground, settings, worker)
        figures |= latency.measure(ground, settings, worker)
    # Before another model is served: its rows would be measured with those of this one.
    footprint = pipeline.footprint(ground, settings)
    figures |= swap.run(ground)
    figures |= restore.run(ground) | footprint | stock.run(ground) | model.run(ground.model)
    figures = _with_ratio(figures)
    table("summary", ("figure", "value"), [(key, figures[key]) for key in KEYS if key in figures])
    return figures


def _alone(part: str, sizes: Sizes, model_folder: Path | None) -> dict[str, float]:
    """A part that needs no broker."""
    with tempfile.TemporaryDirectory(prefix="foreclick-bench-") as made:
        folder = Path(made)
        if model_folder is None:
            model_folder = bundled() if bundled().exists() else untrained(folder / "models")
        machine(f"{model_folder.parent.name}/{model_folder.name}", "none")
        settings = load_settings(model=model_folder, data_dir=folder)
        return _ALONE[part](settings, model_folder, folder, sizes)


def _with_ratio(figures: dict[str, float]) -> dict[str, float]:
    return {**figures, "ratio_to_stock": figures["events_per_s"] / figures["stock_events_per_s"]}


_PARTS = {
    "all": _all,
    "pipeline": _pipeline,
    "latency": latency.run,
    "swap": swap.run,
    "poison": poison.run,
    "alerts": alerts.run,
    "restore": restore.run,
    "model": lambda ground: model.run(ground.model),
}
_ALONE = {
    "timers": lambda settings, model, folder, sizes: timers.run(
        settings, model, folder, sizes.timers, sizes.seed
    ),
    "labels": lambda settings, model, folder, sizes: labels.run(
        settings, model, folder, sizes.users, sizes.events, sizes.seed
    ),
}
