"""The same work as a stock Faust agent does it: one event at a time, a table, ``topic.send``.

    python -m tests.bench.stock_agent SETTINGS_JSON

What the settings hold is in ``StockSettings``. The agent is what somebody who knows Faust would write: raw codecs and
one typed decoder, a table in RocksDB with bytes for values, one struct for the row, the model on one row without
gradients, sends that are not awaited one by one. The table's caches are kept small, as Faust's defaults take 2 GiB a
partition. After ``events`` events it writes where its time went to the file ``profile``, and goes on running.

Faust commits source offsets on a timer and not with the writes: this side delivers at least once, not exactly once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import faust
import msgspec
import torch

from models.registry import load_artefact
from tests.bench.parent import end_with_parent
from tests.bench.peers.settings import PeerSettings
from tests.bench.stock_clicks import StockClicks, decode

# A send may wait, and other tasks (the producer's, the changelog's) run meanwhile: their time is in it too.
PARTS = ("decode", "table get", "fold", "model", "render", "table set", "send")


class StockSettings(PeerSettings, kw_only=True):
    """What the agent is told beside what every peer is; ``store`` as Faust's own setting.

    Args:
        profile: file for where the time went, or empty.
    """

    profile: str = ""
    events: int = 0
    store: str = "rocksdb://"


def stock_app(settings: StockSettings) -> faust.App:
    """The Faust app with its one agent."""
    torch.set_num_threads(1)
    artefact = load_artefact(Path(settings.model))
    work = StockClicks(artefact, settings.clicks_topic, bytes.fromhex(settings.topic_id), settings.source)
    app = faust.App(
        settings.app_id,
        broker=f"kafka://{settings.bootstrap_servers}",
        store=settings.store,
        datadir=settings.data_dir,
        topic_partitions=settings.partitions,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        web_enabled=False,
        producer_max_batch_size=500_000,
        broker_commit_interval=settings.commit_interval_s,
        broker_session_timeout=settings.session_timeout_s,
    )

    def raw_topic(name: str) -> faust.TopicT:
        return app.topic(
            name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            partitions=settings.partitions,
        )

    clicks, predictions = raw_topic(settings.clicks_topic), raw_topic(settings.predictions_topic)
    dead_letters = raw_topic(settings.dead_letters_topic)
    table = app.Table(
        "state",
        partitions=settings.partitions,
        key_type=bytes,
        value_type=bytes,
        options={"block_cache_size": 8 << 20, "write_buffer_size": 8 << 20, "max_open_files": 64}
        if settings.store.startswith("rocksdb")
        else {},
    )
    spent_s = dict.fromkeys(PARTS, 0.0)
    done = 0

    @app.agent(clicks)
    async def score(stream: faust.StreamT) -> None:
        nonlocal done
        clock, began_s = time.perf_counter, 0.0
        async for event in stream.events():
            t0 = clock()
            began_s = began_s or t0
            message = event.message
            try:
                click = decode(event.value)
            except msgspec.DecodeError as error:
                headers = {"clicks.reason": b"undecodable", "__streams.errors.message": str(error).encode()}
                await dead_letters.send(key=event.key, value=event.value, headers=headers)
                continue
            t1 = clock()
            raw = table.get(event.key)
            t2 = clock()
            folded = work.fold(click, raw, message.partition, message.offset)
            if folded is None:
                continue
            t3 = clock()
            with torch.inference_mode():
                answer = work.score(folded)
            t4 = clock()
            value, headers = work.render(folded, answer, message.partition, message.offset)
            t5 = clock()
            table[event.key] = work.pack(folded)
            t6 = clock()
            await predictions.send(key=event.key, value=value, headers=headers)
            t7 = clock()
            for part, seconds in zip(
                PARTS, (t1 - t0, t2 - t1, t3 - t2, t4 - t3, t5 - t4, t6 - t5, t7 - t6), strict=True
            ):
                spent_s[part] += seconds
            done += 1
            if settings.profile and done == settings.events:
                profile = {"seconds": t7 - began_s, "process_s": time.process_time(), "spent_s": spent_s}
                Path(settings.profile).write_bytes(msgspec.json.encode(profile))  # noqa: ASYNC240 - the work is done

    return app


def main() -> None:
    """Run the worker in this process."""
    end_with_parent()
    settings = msgspec.json.decode(sys.argv[1], type=StockSettings)
    app = stock_app(settings)
    sys.argv = ["stock", "worker", "-l", "warn", "--without-web"]
    app.main()


if __name__ == "__main__":
    main()
