"""The work as a PyFlink job in a local cluster: Kafka tables with metadata, a KeyedProcessFunction, RocksDB state.

    python -m tests.bench.peers.flink_job SETTINGS_JSON

As its documentation has it. The DataStream connector for Python hands out values only, so source and sink are tables,
whose metadata columns carry partition, offset and headers, converted to a DataStream and back. Checkpoints each
``commit_interval_s``; one slot. A job that starts again takes up the newest complete checkpoint that it finds, which is
what a session cluster's job manager would hand it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.parent import end_with_parent
from tests.bench.peers.event_step import EventStep
from tests.bench.peers.settings import PeerSettings

Output = tuple[str, bytes, dict[str, bytes]]


def predict(step: EventStep, state: Any, record: Any) -> Iterator[Output]:
    """Key, value and headers of at most one prediction of a record (key, value, partition, offset).

    Args:
        state: a Flink value state that holds the user's row.
    """
    key, value, partition, offset = record
    stepped = step(bytes(value), state.value(), partition, offset)
    if stepped is not None:
        state.update(stepped.row)
        yield key, stepped.value, stepped.headers


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest number in any job's folder; None when there is none."""
    complete = [metadata.parent for metadata in folder.glob("*/chk-*/_metadata")]
    return max(complete, key=lambda path: path.stat().st_mtime, default=None)


def configuration(settings: PeerSettings) -> dict[str, str]:
    """Flink's own settings."""
    checkpoints = Path(settings.data_dir) / "checkpoints"
    named = {
        "parallelism.default": "1",
        "pipeline.jars": ";".join(
            jar.resolve().as_uri() for jar in sorted(Path(settings.jars).glob("*.jar"))
        ),
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "state.backend.type": "rocksdb",
        "execution.checkpointing.interval": f"{int(settings.commit_interval_s * 1000)} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE" if settings.exactly_once else "AT_LEAST_ONCE",
        "execution.checkpointing.incremental": "true",
        "execution.checkpointing.dir": checkpoints.resolve().as_uri(),
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        # Its default of a second would be most of the latency; under load a bundle is full (1,000) before that.
        "python.fn-execution.bundle.time": "20",
        "taskmanager.memory.task.off-heap.size": "512m",
        "taskmanager.memory.managed.size": "512m",
    }
    newest = newest_checkpoint(checkpoints)
    if newest is not None:
        named["execution.state-recovery.path"] = newest.resolve().as_uri()
    return named


def tables(settings: PeerSettings) -> tuple[str, str]:
    """The statements that make source and sink."""
    common = f"'connector' = 'kafka', 'properties.bootstrap.servers' = '{settings.bootstrap_servers}'"
    formats = (
        "'key.format' = 'raw', 'key.fields' = 'user', 'value.format' = 'raw', "
        "'value.fields-include' = 'EXCEPT_KEY'"
    )
    # The broker allows transactions of at most 15 minutes; Flink asks for an hour unless told otherwise.
    guarantee = (
        f"'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{settings.app_id}', "
        "'properties.transaction.timeout.ms' = '600000'"
        if settings.exactly_once
        else "'sink.delivery-guarantee' = 'at-least-once'"
    )
    return (
        "CREATE TABLE clicks (`user` STRING, `value` BYTES, `partition` INT METADATA VIRTUAL, "
        "`offset` BIGINT METADATA VIRTUAL) WITH ("
        f"{common}, 'topic' = '{settings.clicks_topic}', 'properties.group.id' = '{settings.app_id}', "
        f"'scan.startup.mode' = 'earliest-offset', {formats})",
        "CREATE TABLE predictions (`user` STRING, `value` BYTES, `headers` MAP<STRING, BYTES> METADATA) WITH ("
        f"{common}, 'topic' = '{settings.predictions_topic}', {guarantee}, {formats})",
    )


def main() -> None:
    """Submit the job to a cluster inside this process's Java machine and wait for its end, which does not come."""
    from pyflink.common import Configuration, Types
    from pyflink.datastream import KeyedProcessFunction, StreamExecutionEnvironment
    from pyflink.datastream.state import ValueStateDescriptor
    from pyflink.table import StreamTableEnvironment

    end_with_parent()
    settings = msgspec.json.decode(sys.argv[1], type=PeerSettings)

    class Score(KeyedProcessFunction):  # type: ignore[misc]
        """The stateful function."""

        def open(self, runtime_context: Any) -> None:
            self._step = EventStep(settings)
            self._row = runtime_context.get_state(ValueStateDescriptor("row", Types.PICKLED_BYTE_ARRAY()))

        def process_element(self, value: Any, ctx: Any) -> Iterator[Any]:
            from pyflink.common import Row

            for output in predict(self._step, self._row, value):
                yield Row(*output)

    wanted = Configuration()
    for name, value in configuration(settings).items():
        wanted.set_string(name, value)
    environment = StreamExecutionEnvironment.get_execution_environment(wanted)
    on_tables = StreamTableEnvironment.create(environment)
    for statement in tables(settings):
        on_tables.execute_sql(statement)
    octets = Types.PRIMITIVE_ARRAY(Types.BYTE())
    predictions = (
        on_tables.to_data_stream(on_tables.from_path("clicks"))
        .key_by(lambda record: record[0], key_type=Types.STRING())
        .process(
            Score(),
            output_type=Types.ROW_NAMED(
                ["user", "value", "headers"], [Types.STRING(), octets, Types.MAP(Types.STRING(), octets)]
            ),
        )
    )
    on_tables.from_data_stream(predictions).execute_insert("predictions").wait()


if __name__ == "__main__":
    main()
