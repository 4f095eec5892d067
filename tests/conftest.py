"""What the tests of several folders share: a real Kafka, and topics of their own on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from models.errors import ForeclickError
from stream.broker import Broker
from stream.broker.topics import TopicSpec, ensure_topics


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running Kafka for the whole session: the environment's, else one of our own, started by the product's code.

    Where none can be had the tests fail and say how to mend it. They never skip: a pipeline whose promises were not
    tried on a broker has not been tested.
    """
    try:
        running = Broker(tmp_path_factory.mktemp("broker"))
        running.start()
    except ForeclickError as error:
        pytest.fail(str(error), pytrace=False)
    with running:
        yield running


@pytest.fixture(scope="session")
def kafka(broker: Broker) -> dict[str, Any]:
    """The broker's address as librdkafka's clients take it."""
    return {"bootstrap.servers": broker.bootstrap_servers, "log_level": 0}


@pytest.fixture
def topics(kafka: dict[str, Any]) -> Callable[..., str]:
    """A factory of topics that no other test uses: ``topics("clicks", partitions=4, cleanup_policy="compact")``.

    Keywords after ``partitions`` are Kafka's topic settings, with underscores for dots. ``partitions=0`` gives the
    name only. The topic is created when the call returns.
    """

    def create(name: str, partitions: int = 8, **config: str) -> str:
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        if partitions:
            spec = TopicSpec(
                unique, partitions, {key.replace("_", "."): value for key, value in config.items()}
            )
            ensure_topics(kafka, [spec])
        return unique

    return create
