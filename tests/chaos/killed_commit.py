"""A broker that is killed within milliseconds of a commit, again and again: the next owner finds all of it or nothing.

    python -m tests.chaos.killed_commit --rounds 20 --seed 1

No worker and no model: the product's log of a partition of clicks writes a transaction over every topic that the stage
may touch, the broker is killed between the decision and some of its markers, and a second owner takes over. About one
round in ten leaves something open. A line a round, a JSON summary last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from stream.broker import Broker
from stream.broker.topics import delete_topics
from stream.engine.kafka_log import KafkaLog
from stream.settings import load_settings
from stream.topics import create, topic_specs
from tests.broker import test_unfinished as by_hand

DELAYS_S = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.01, 0.02)
ANSWER_S = 2.0


class Killing(KafkaLog):
    """Ends a transaction about when its broker is killed."""

    killer: threading.Thread | None = None

    async def before_commit(self) -> None:
        if self.killer is not None:
            self.killer.start()


def play(broker: Broker, chance: random.Random) -> tuple[str, dict[str, Any]]:
    """One round: what a committed reader finds after the takeover, and how it came."""
    name = f"t{uuid.uuid4().hex[:8]}"
    settings = load_settings(
        {},
        kafka__bootstrap_servers=broker.bootstrap_servers,
        topics__prefix=f"{name}.",
        topics__partitions=1,
        app_id=name,
        user_vectors="topic",
        groups__enabled=True,
        groups__partitions=8,
        labels__enabled=True,
        labels__partitions=8,
    )
    create(settings)
    by_hand.numbers["clicks"] = itertools.count()
    taken = by_hand.Taken(settings, "clicks")
    delay_s, told = chance.choice(DELAYS_S), False

    def kill() -> None:
        time.sleep(delay_s)
        broker.kill()

    killer = threading.Thread(target=kill)

    async def live(log: Killing) -> None:
        nonlocal told
        for end in (1, 2, 3):
            said = b"before" if end < 3 else taken.value
            messages: dict[str, Any] = {output: [(b"k", said, [])] for output in taken.topics.outputs}
            log.killer = killer if end == 3 else None
            writing = asyncio.ensure_future(log.commit(messages, [(b"row", said)], end))
            done, _ = await asyncio.wait([writing], timeout=None if end < 3 else ANSWER_S)
            told = end == 3 and bool(done) and writing.exception() is None
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await writing
        raise ConnectionAbortedError

    with contextlib.suppress(ConnectionAbortedError):
        taken.take_over(Killing, live)
    killer.join()
    broker.restart()
    position = taken.take_over()
    seen = taken.seen()
    found = "all" if seen == sorted(taken.places) else "nothing" if not seen else "a part"
    if found != "a part" and position != (3 if seen else 2):
        found = "another position"
    delete_topics(settings.kafka.librdkafka(), [spec.name for spec in topic_specs(settings)])
    return found, {"delay_ms": delay_s * 1000, "told": told, "position": position}


def main() -> int:
    """Play the rounds; 1 when one of them was not whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the moments; which markers are lost is the broker's"
    )
    arguments = parser.parse_args()
    chance, found = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        running = Broker(Path(folder), environment={}, start_timeout_s=300)
        running.start()
        with running as broker:
            for number in range(arguments.rounds):
                what, how = play(broker, chance)
                found[what] += 1
                print(f"round {number + 1}/{arguments.rounds}: {what}", json.dumps(how), flush=True)
    broken = found["a part"] + found["another position"]
    print(json.dumps({"rounds": arguments.rounds, "seed": arguments.seed, "found": found, "broken": broken}))
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
