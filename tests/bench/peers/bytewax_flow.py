"""The work as a Bytewax dataflow: Kafka in, ``stateful_flat_map`` by user, Kafka out, recovery on.

    python -m tests.bench.peers.bytewax_flow SETTINGS_JSON

As its documentation has it: the operators of the Kafka connector, a recovery store with one partition for the one
worker, an epoch (and with it a snapshot of every changed state) each ``commit_interval_s``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.parent import end_with_parent
from tests.bench.peers.event_step import EventStep, Stepped
from tests.bench.peers.settings import PeerSettings

Mapper = Callable[[bytes | None, Any], tuple[bytes | None, Iterable[Stepped]]]


def mapper(step: EventStep) -> Mapper:
    """The stateful function: state and message give the next state and at most one prediction."""

    def score(row: bytes | None, message: Any) -> tuple[bytes | None, Iterable[Stepped]]:
        stepped = step(message.value, row, message.partition, message.offset)
        return (row, ()) if stepped is None else (stepped.row, (stepped,))

    return score


def main() -> None:
    """Run the dataflow in this process, with one worker."""
    from bytewax import operators as op
    from bytewax.connectors.kafka import KafkaSinkMessage
    from bytewax.connectors.kafka import operators as kop
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.run import cli_main

    end_with_parent()
    settings = msgspec.json.decode(sys.argv[1], type=PeerSettings)
    brokers = [settings.bootstrap_servers]
    flow = Dataflow(settings.app_id)
    clicks = kop.input("clicks", flow, brokers=brokers, topics=[settings.clicks_topic])
    by_user = op.key_on("user", clicks.oks, lambda message: message.key.decode())
    scored = op.stateful_flat_map("score", by_user, mapper(EventStep(settings)))
    messages = op.map(
        "message",
        scored,
        lambda pair: KafkaSinkMessage(pair[0].encode(), pair[1].value, headers=list(pair[1].headers.items())),
    )
    # With Kafka's own partitioner of keys: without it librdkafka takes another one.
    kop.output(
        "predictions",
        messages,
        brokers=brokers,
        topic=settings.predictions_topic,
        add_config={"partitioner": "murmur2_random"},
    )
    store = Path(settings.data_dir) / "recovery"
    if not store.exists():
        store.mkdir(parents=True)
        init_db_dir(store, 1)
    cli_main(
        flow,
        epoch_interval=timedelta(seconds=settings.commit_interval_s),
        recovery_config=RecoveryConfig(str(store), backup_interval=timedelta(0)),
    )


if __name__ == "__main__":
    main()
