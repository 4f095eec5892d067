"""Topics, settings and workers of one broker test alone; each module names the model in a fixture ``model``."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream.broker import Broker
from stream.broker.server_settings import free_port
from stream.broker.topics import delete_topics
from stream.demo import Worker
from stream.settings import Settings, load_settings
from stream.topics import create, topic_specs

Make = Callable[..., Worker]


@pytest.fixture
def settings(broker: Broker, model: Path, tmp_path: Path) -> Iterator[Settings]:
    """Topics and a data directory of this test alone."""
    name = f"t{uuid.uuid4().hex[:8]}"
    made = load_settings(
        {},
        kafka__bootstrap_servers=broker.bootstrap_servers,
        topics__prefix=f"{name}.",
        topics__partitions=3,
        app_id=name,
        data_dir=tmp_path / "data",
        http__port=free_port(),
        model=model,
    )
    create(made)
    yield made
    delete_topics(made.kafka.librdkafka(), [spec.name for spec in topic_specs(made)])


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Make]:
    """Starts workers of the test, ready when returned, and ends them with it."""
    started: list[Worker] = []

    def make(ready: bool = True, **changes: Any) -> Worker:
        changed = settings.model_copy(update=changes)
        worker = Worker(changed, tmp_path / f"worker-{len(started)}.log")
        started.append(worker)
        if ready:
            worker.wait_ready(lambda reason: None)
        return worker

    yield make
    for worker in started:
        worker.stop()
