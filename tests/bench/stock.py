"""The stock Faust agent over a backlog of its own, measured like the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from stream.broker.topics import describe
from tests.bench import pipeline
from tests.bench.bed import Bed
from tests.bench.processes import BenchFailed, start, stop, wait_until
from tests.bench.readers import consumer_of, ends_of, read_predictions
from tests.bench.report import table, tell
from tests.bench.stock_agent import StockSettings

TIMEOUT_S = 600.0


def run(bed: Bed) -> dict[str, float]:
    """Start the agent on its backlog, wait for every prediction, read its rate and its own profile."""
    settings, events = bed.topics("stock"), bed.sizes.stock_events
    pipeline.fill(bed, settings, "stock", events)
    agent_settings = StockSettings(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        # Faust names the changelog after app and table: the one that was created for it.
        app_id=settings.changelog_topic.removesuffix("-state-changelog"),
        clicks_topic=settings.clicks_topic,
        topic_id=describe(bed.client, settings.clicks_topic).topic_id.hex(),
        predictions_topic=settings.predictions_topic,
        dead_letters_topic=settings.dead_letters_topic,
        partitions=settings.topics.partitions,
        source=f"/{settings.app_id}/{settings.clicks_topic}",
        model=str(bed.model),
        data_dir=str(settings.data_dir),
        profile=str(bed.folder / "stock.json"),
        events=events,
    )
    profile_file = Path(agent_settings.profile)
    log = bed.folder / "stock.log"
    process = start("tests.bench.stock_agent", msgspec.json.encode(agent_settings).decode(), log=log)
    probe = consumer_of(bed.client)

    def check() -> None:
        if process.poll() is not None:
            raise BenchFailed(f"The stock agent ended with code {process.returncode}: {_last_line(log)}")

    def finished() -> bool:
        return sum(ends_of(probe, settings.predictions_topic).values()) >= events and profile_file.exists()

    try:
        tell("stock: the agent is at the backlog")
        with bed.cpu(agent=process.pid) as watch:
            wait_until("the stock agent's last prediction", finished, check, TIMEOUT_S, interval_s=0.5)
    finally:
        probe.close()
        stop(process, timeout_s=3.0)  # everything is read back: how it ends matters to nobody
    written = read_predictions(bed.client, settings.predictions_topic, events)
    profile = json.loads(profile_file.read_text())
    since_s = written.timestamp_ms.min() / 1000
    used_s = watch.used_s(since_s, since_s + written.seconds)
    table(
        f"stock Faust agent, store {agent_settings.store}, at least once",
        ("what", "value"),
        [
            *pipeline.rate_rows(written),
            *pipeline.cpu_rows(used_s, written),
            ("bytes a prediction", written.value_bytes),
        ],
    )
    spent_s: dict[str, float] = profile["spent_s"]
    rest_s = profile["seconds"] - sum(spent_s.values())
    rows = [*spent_s.items(), ("the rest: Faust between two events", rest_s), ("all", profile["seconds"])]
    table(
        "stock: wall time by part, measured inside the agent",
        ("part", "us an event", "%"),
        [(part, s * 1e6 / events, 100 * s / profile["seconds"]) for part, s in rows],
    )
    return {"stock_events_per_s": written.events_per_s}


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["(it said nothing)"])[-1][:500]
