r"""What the engine should have made of its input. Nothing here is imported from the product.

    python -m tests.chaos.oracle --bootstrap 127.0.0.1:9092 --app-id x --partitions 8 --data-dir DIR

It folds the input itself and compares, exactly and read_committed:

- the state rebuilt from the changelog (last value of each key), and the position that it says it stands at;
- every local store of every worker, each against the input up to the position which that store itself claims;
- predictions and dead letters, joined with the input by ``ce_id`` (topic id, partition, offset), and what
  they say.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import rocksdict
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from tests.chaos.cluster import Round, silent
from tests.chaos.disk import TAMPERED_FILE, TAMPERED_KEY
from tests.chaos.verdict import EXAMPLES, Verdict

ROW = struct.Struct("<qqq8s")  # count, last sequence, last source offset, running hash
MARK = struct.Struct("<q16sq")  # \0src begins so: next source offset, source topic id, watermark
SILENCE_S = 30.0

Row = tuple[int, int, int, bytes]


def read_committed(bootstrap: str, topic: str, partitions: int) -> Iterator[Message]:
    """Every committed record of a topic, to the last stable offset of each partition."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "oracle",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        },
        logger=silent,
    )
    ended: set[int] = set()
    try:
        reader.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        heard_s = time.monotonic()
        while len(ended) < partitions:
            messages = reader.consume(10_000, 0.2)  # waits for all of them or for the time
            if messages:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > SILENCE_S:
                raise TimeoutError(f"Nothing came from {topic} for {SILENCE_S:.0f} s.")
            for message in messages:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                elif error.code() == KafkaError.OFFSET_OUT_OF_RANGE:
                    raise RuntimeError(
                        f"{topic}[{message.partition()}] no longer begins at offset 0: {error}."
                    )
                elif error.fatal() or not error.retriable():
                    raise RuntimeError(f"Reading {topic}: {error}.")
    finally:
        reader.close()


@dataclass(frozen=True)
class Event:
    """One record of the source; sequence None is no event, ``erases`` a null value, ``value`` that of no event."""

    topic_id: bytes
    offset: int
    key: bytes
    sequence: int | None
    erases: bool
    value: bytes | None


class Input:
    """The source by partition, through all generations of its topic."""

    def __init__(self, round_: Round):
        self._round = round_
        self.partitions: list[list[Event]] = [[] for _ in range(round_.partitions)]
        self.topic_id = b""

    def read(self) -> Input:
        """Append what the topic holds now; called again after the topic was recreated."""
        topic_id = self._round.topic_id(self._round.source)
        if topic_id == self.topic_id:
            raise RuntimeError("The same generation of the source topic was read twice.")
        self.topic_id = topic_id
        for message in read_committed(self._round.bootstrap, self._round.source, self._round.partitions):
            value = message.value()
            sequence = None if value is None else _sequence(value)
            event = Event(
                *(topic_id, message.offset(), message.key(), sequence, value is None),
                value=value if sequence is None else None,
            )
            self.partitions[message.partition()].append(event)
        self._check()
        return self

    def _check(self) -> None:
        """The oracle's own premise: each user in one partition, sequences without a gap."""
        home: dict[bytes, int] = {}
        last: Counter[bytes] = Counter()
        for partition, events in enumerate(self.partitions):
            for event in events:
                if home.setdefault(event.key, partition) != partition:
                    raise RuntimeError(f"{event.key!r} is in two partitions: the driver is broken.")
                if event.sequence is not None and event.sequence > last[event.key]:
                    if event.sequence != last[event.key] + 1:
                        raise RuntimeError(f"{event.key!r} goes from {last[event.key]} to {event.sequence}.")
                    last[event.key] = event.sequence

    def end(self, partition: int) -> int:
        """The position after the newest record of the present generation."""
        present = [event.offset for event in self.partitions[partition] if event.topic_id == self.topic_id]
        return present[-1] + 1 if present else 0


def _sequence(value: bytes) -> int | None:
    """What an event says; None of what is none."""
    try:
        found = json.loads(value)["seq"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return found if type(found) is int and 0 < found < 1 << 62 else None


def folded(events: Iterable[Event]) -> Iterator[tuple[Event, bytes, Row | None, bool]]:
    """Each event with its key, its user's row after it, and whether it repeats an earlier one of its user."""
    rows: dict[bytes, Row] = {}
    for event in events:
        repeats = False
        if event.erases:
            rows.pop(event.key, None)
        elif event.sequence is not None:
            count, last, _, digest = rows.get(event.key, (0, 0, 0, bytes(8)))
            repeats = event.sequence <= last
            if not repeats:
                fresh = blake2b(
                    digest + event.key + event.sequence.to_bytes(8, "little"), digest_size=8
                ).digest()
                rows[event.key] = (count + 1, event.sequence, event.offset, fresh)
        yield event, event.key, rows.get(event.key), repeats


def state_of(events: Iterable[Event]) -> dict[bytes, Row]:
    """Every user's row after the events."""
    state: dict[bytes, Row] = {}
    for _, key, row, _ in folded(events):
        if row is None:
            state.pop(key, None)
        else:
            state[key] = row
    return state


def judge(round_: Round, source: Input, data_dirs: Sequence[Path] = ()) -> Verdict:
    """Compare everything; the workers must have stopped when local stores are named."""
    verdict = Verdict(events=sum(map(len, source.partitions)))
    for topic in (round_.predictions, round_.dead_letters, round_.changelog):
        _await_markers(round_, topic, verdict)
    _judge_outputs(round_, source, verdict)
    _judge_changelog(round_, source, verdict)
    for folder in data_dirs:
        for partition in range(round_.partitions):
            store = folder / "state" / str(partition)
            if (store / "CURRENT").exists():
                _judge_store(store, source.partitions[partition], verdict)
    return verdict


def _await_markers(round_: Round, topic: str, verdict: Verdict) -> None:
    """A commit is answered before its markers are written; an open transaction hides what follows it."""
    deadline_s = time.monotonic() + SILENCE_S
    while (stable := round_.ends(topic, committed=True)) != (high := round_.ends(topic)):
        if time.monotonic() > deadline_s:
            verdict.hanging += 1
            verdict.note(f"{topic}: a transaction nobody ended, last stable {stable}, high watermarks {high}")
            return
        time.sleep(0.1)


def _judge_outputs(round_: Round, source: Input, verdict: Verdict) -> None:
    # By ce_id: where it stands in the input, and what it says; bytes are those of a dead letter.
    expected: dict[str, tuple[int, int, dict[str, Any] | bytes | None]] = {}
    for partition, events in enumerate(source.partitions):
        for place_in_order, (event, key, row, repeats) in enumerate(folded(events)):
            if event.erases or repeats:
                continue
            place = f"{event.topic_id.hex()}/{partition}/{event.offset}"
            if event.sequence is None or row is None:
                expected[f"{place}/dead/{key.hex()}"] = (partition, place_in_order, event.value)
                continue
            said = {
                "partition": partition,
                "offset": event.offset,
                "user": key.decode(),
                "seq": event.sequence,
                "count": row[0],
                "hash": row[3].hex(),
            }
            expected[f"{place}/prediction/{key.decode()}"] = (partition, place_in_order, said)
    seen: Counter[str] = Counter()
    places: Counter[str] = Counter()
    newest: dict[tuple[str, int], int] = {}
    for topic in (round_.predictions, round_.dead_letters):
        for message in read_committed(round_.bootstrap, topic, round_.partitions):
            identity = dict(message.headers() or ()).get("ce_id", b"").decode()
            dead = topic == round_.dead_letters
            verdict.dead_letters += dead
            verdict.predictions += not dead
            places[identity.rsplit("/", 2)[0]] += 1
            partition, order, said = expected.get(identity, (-1, -1, None))
            if said is None or isinstance(said, bytes) != dead:
                verdict.contradicting += 1
                verdict.note(
                    f"{topic}[{message.partition()}]@{message.offset()} is of no input: {identity!r}"
                )
                continue
            if (message.value() if dead else json.loads(message.value())) != said:
                verdict.contradicting += 1
                verdict.note(f"{identity} says {message.value()[:300]!r}, expected {said!r:.300}")
                continue
            if message.partition() != partition % round_.partitions:
                verdict.contradicting += 1
                verdict.note(f"{identity} is in {topic}[{message.partition()}]")
            if seen[identity]:
                verdict.repeats += 1
            elif order < newest.get((topic, partition), -1):
                verdict.out_of_order += 1
                verdict.note(
                    f"{topic}[{message.partition()}]@{message.offset()}: {identity} is after a later one"
                )
            newest[topic, partition] = max(order, newest.get((topic, partition), -1))
            seen[identity] += 1
    verdict.twice = sum(count > 1 for count in places.values()) - sum(count > 1 for count in seen.values())
    missing = [identity for identity in expected if not seen[identity]]
    verdict.lost = len(missing)
    for identity in missing[:EXAMPLES]:
        verdict.note(f"{identity} has no output")


def _judge_changelog(round_: Round, source: Input, verdict: Verdict) -> None:
    expected: dict[bytes, Row] = {}
    for events in source.partitions:
        expected.update(state_of(events))
    verdict.users = len(expected)
    found: dict[bytes, Row] = {}
    marks: dict[int, tuple[int, bytes]] = {}
    newest: dict[bytes, int] = {}
    for message in read_committed(round_.bootstrap, round_.changelog, round_.partitions):
        key, value = message.key(), message.value()
        if key == b"\0src":
            mark, before = MARK.unpack_from(value)[:2], marks.get(message.partition())
            if before is not None and before[1] == mark[1] and mark[0] < before[0]:
                verdict.out_of_order += 1
                verdict.note(f"changelog[{message.partition()}]@{message.offset()}: {mark} follows {before}")
            marks[message.partition()] = mark
        elif key.startswith(b"\0"):
            continue
        elif value is None:
            found.pop(key, None)
        else:
            row = found[key] = ROW.unpack_from(value)
            if row[1] < newest.get(key, 0):
                verdict.out_of_order += 1
                verdict.note(
                    f"changelog@{message.offset()}: {key!r} goes back from {newest[key]} to {row[1]}"
                )
            newest[key] = row[1]
    verdict.mismatching_rows = _differences("changelog", expected, found, verdict)
    for partition in range(round_.partitions):
        wanted = (source.end(partition), source.topic_id)
        if wanted[0] and marks.get(partition) != wanted:
            verdict.mismatching_positions += 1
            verdict.note(
                f"changelog[{partition}] stands at {marks.get(partition)}, the input ends at {wanted}"
            )


def _judge_store(folder: Path, events: Sequence[Event], verdict: Verdict) -> None:
    if (folder / TAMPERED_FILE).exists():
        return
    database = rocksdict.Rdict(
        str(folder), options=rocksdict.Options(raw_mode=True), access_type=rocksdict.AccessType.read_only()
    )
    try:
        if database.get(TAMPERED_KEY) is not None:
            return
        rows = {key: ROW.unpack_from(value) for key, value in database.items() if not key.startswith(b"\0")}
        raw = database.get(b"\0src")
    finally:
        database.close()
    verdict.stores += 1
    expected: dict[bytes, Row] = {}
    if raw is not None:
        position, topic_id, _ = MARK.unpack_from(raw)
        generations = list(dict.fromkeys(event.topic_id for event in events))
        older = generations[: generations.index(topic_id)] if topic_id in generations else generations
        expected = state_of(
            event
            for event in events
            if event.topic_id in older or (event.topic_id == topic_id and event.offset < position)
        )
    verdict.mismatching_local += _differences(str(folder), expected, rows, verdict)


def _differences(where: str, expected: dict[bytes, Row], found: dict[bytes, Row], verdict: Verdict) -> int:
    different = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    for key in different[:EXAMPLES]:
        verdict.note(f"{where}: {key!r} is {found.get(key)}, expected {expected.get(key)}")
    return len(different)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.oracle")
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--app-id", required=True)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--data-dir", type=Path, action="append", default=[])
    options = parser.parse_args(arguments)
    round_ = Round(options.bootstrap, options.app_id, options.partitions)
    verdict = judge(round_, Input(round_).read(), options.data_dir)
    print(json.dumps(asdict(verdict)))
    return 0 if verdict.exact() and not verdict.repeats else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
