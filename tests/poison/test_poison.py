"""Poison: whatever stands in the input, the stage goes on, and those beside it do not notice."""

from __future__ import annotations

import json
import os
import random
import re
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import isfinite
from typing import Any

import msgspec
import pytest

from models.registry import Artefact, load_artefact, untrained
from models.runtime import StepEngine
from stream.dead_letters import MAX_DEAD_LETTER_BYTES, dead_letter, parse
from stream.events import MAX_USER_ID_BYTES, REASONS, Event, Rejection, decode_events
from stream.formats import adapt_object
from stream.offline import OfflineRecord, score_batches
from stream.settings import Settings, load_settings
from stream.stage import Rendered
from tests.poison.corpus import CORPUS
from tests.poison.makings import EVENT, NOON_MS, Poison, raw_event
from tests.poison.variants import variants

#: How many drawn records the laws are tried on, and of which draw.
VARIANTS = int(os.environ.get("POISON_VARIANTS", "10000"))
SEED = int(os.environ.get("POISON_SEED", "1"))

#: What must not stand in a header that we write: control characters, line separators, and what turns text around.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def outcome(record: Poison) -> Event | Rejection | None:
    (decoded,) = decode_events([record.key], [record.value], adapt_object)
    return decoded


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return load_artefact(
        untrained(tmp_path_factory.mktemp("models"), categories=tuple(f"c{n}" for n in range(12)))
    )


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings({})


def good(count: int, seed: int = 3) -> list[tuple[bytes, bytes]]:
    """Clicks of 40 users, none of whom is a hostile one."""
    rng = random.Random(seed)
    records = []
    for number in range(count):
        user = f"good{rng.randrange(40)}"
        value = raw_event(
            user_id=f'"{user}"',
            event_time_ms=str(NOON_MS + number * 700),
            action=f'"{rng.choice(["view", "click", "cart", "purchase", "dance"])}"',
            event_id=f'"g{number}"',
            category_id=f'"c{rng.randrange(24)}"',
            price=str(rng.randrange(1, 5000) / 100),
        )
        records.append((user.encode(), value))
    return records


def stage(settings: Settings, artefact: Artefact, records: Iterable[OfflineRecord]) -> Iterator[Rendered]:
    return score_batches(records, settings, artefact, StepEngine(artefact, "cpu"), "clicks", micro_batch=512)


@pytest.mark.parametrize("record", CORPUS, ids=lambda record: record.name)
def test_each_record_of_the_corpus_becomes_what_it_should(record: Poison) -> None:
    """Each way to do harm by hand, with the reason under which its bytes are found again."""
    decoded = outcome(record)
    assert (decoded.reason if isinstance(decoded, Rejection) else EVENT) == record.expected


def assert_an_event(event: Event, key: bytes | None) -> None:
    numbers = [event.price, event.quantity, *(event.extra or {}).values()]
    numbers += [number for line in event.lines or () for number in (line.price, line.quantity)]
    assert all(number is None or isfinite(number) for number in numbers)
    assert event.user_id.encode() == key
    assert 1 <= len(key) <= MAX_USER_ID_BYTES
    assert not event.user_id.startswith("\0")
    assert 0 < event.event_time_ms < 2**53
    assert event == msgspec.convert(msgspec.to_builtins(event), Event)


def test_every_variant_is_an_event_or_rejected_with_a_documented_reason() -> None:
    """No bytes raise; of an event every promise of its class holds; messages are one short printable line."""
    reasons = set()
    for record in variants(VARIANTS, SEED):
        decoded = outcome(record)
        if isinstance(decoded, Event):
            assert_an_event(decoded, record.key)
        elif decoded is None:
            assert record.value is None, record.name
        else:
            reasons.add(decoded.reason)
            assert decoded.message.isprintable(), record.name
            assert len(decoded.message) < 1000, record.name
    assert reasons == set(REASONS) - {"late", "future"}


def test_decoding_a_chunk_gives_what_decoding_one_record_gives() -> None:
    """What stands beside a record in its chunk decides nothing."""
    records = list(variants(VARIANTS // 10, SEED))
    together = decode_events([r.key for r in records], [r.value for r in records], adapt_object)
    assert together == [outcome(record) for record in records]


def test_the_same_seed_gives_the_same_variants() -> None:
    """A record that does harm can be found again."""
    assert list(variants(300, SEED)) == list(variants(300, SEED))
    assert list(variants(300, SEED)) != list(variants(300, SEED + 1))


def mixed(poison: Sequence[Poison]) -> tuple[list[OfflineRecord], list[OfflineRecord]]:
    """All records, and the good ones alone at the same offsets: one after each poisoned one."""
    clean, all_ = [], []
    for number, (record, (key, value)) in enumerate(zip(poison, good(len(poison)), strict=True)):
        all_.append(OfflineRecord(2 * number, record.key, record.value, record.headers))  # type: ignore[arg-type]
        clean.append(OfflineRecord(2 * number + 1, key, value))
        all_.append(clean[-1])
    return all_, clean


def assert_a_dead_letter(message: Any, origin: OfflineRecord) -> None:
    key, value, headers = message
    letter = parse(headers)
    assert letter is not None
    assert (letter.topic, letter.partition, letter.offset) == ("clicks", 0, origin.offset)
    assert letter.reason in REASONS
    assert not _UNSAFE.search(letter.message)
    size = len(key or b"") + len(value or b"") + sum(len(n.encode()) + len(c or b"") for n, c in headers)
    assert size <= MAX_DEAD_LETTER_BYTES
    if letter.cut is None:
        assert (key, value) == (origin.key, origin.value)
    else:
        assert (origin.key or b"").startswith(key or b"")
        assert (origin.value or b"").startswith(value or b"")
        assert letter.cut == {
            "key": len(origin.key or b""),
            "value": len(origin.value or b""),
            "headers": len(origin.headers),
        }


def assert_a_prediction(message: Any, origin: OfflineRecord) -> None:
    key, value, headers = message
    assert key == origin.key
    found = json.loads(value)
    assert found["source"] == {"topic": "clicks", "partition": 0, "offset": origin.offset}
    assert found["user_id"].encode() == origin.key
    assert b"\n" not in value
    assert len(value) < 1_000_000
    for name, content in headers:
        assert not _UNSAFE.search(name + content.decode())
        assert len(content) < 4096


@pytest.mark.slow
def test_poison_changes_no_bit_of_what_is_beside_it(
    settings: Settings, artefact: Artefact, capfd: pytest.CaptureFixture[str]
) -> None:
    """Corpus and variants through the whole stage: each is answered once, and the others as if it were not there."""
    rejected = [record for record in CORPUS if record.expected not in (EVENT, None)]
    # What is certain to be rejected comes in the name of a good user as well.
    about_the_key = {"missing_key", "key_mismatch", "bad_user_id"}
    in_good_name = [r._replace(key=b"good1") for r in rejected if r.expected not in about_the_key]
    records, clean = mixed([*CORPUS, *in_good_name, *variants(VARIANTS, SEED)])
    by_offset = {record.offset: record for record in records}
    answered: list[int] = []
    erased = 0
    predictions, rows = [], {}
    for rendered in stage(settings, artefact, records):
        for message in rendered.messages.get(settings.predictions_topic, ()):
            offset = json.loads(message[1])["source"]["offset"]  # type: ignore[arg-type]
            assert_a_prediction(message, by_offset[offset])
            answered.append(offset)
            if message[0].startswith(b"good"):  # type: ignore[union-attr]
                predictions.append(message)
        for message in rendered.messages.get(settings.dead_letters_topic, ()):
            letter = parse(message[2])
            assert letter is not None
            assert_a_dead_letter(message, by_offset[letter.offset])
            answered.append(letter.offset)
        erased += rendered.counts.duplicates
        rows |= {key: row for key, row in rendered.rows if key.startswith(b"good")}
    tombstones = sum(1 for r in records if r.value is None and r.offset not in set(answered))
    assert len(answered) == len(set(answered))
    assert len(answered) + erased + tombstones == len(records)

    alone = list(stage(settings, artefact, clean))
    assert predictions == [m for rendered in alone for m in rendered.messages[settings.predictions_topic]]
    assert rows == {key: row for rendered in alone for key, row in rendered.rows if key.startswith(b"good")}
    assert len(predictions) == len(clean)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize("field", ["action", "event_id", "item_id", "category_id"])
def test_names_of_any_length_leave_no_memory_behind(
    settings: Settings, artefact: Artefact, field: str
) -> None:
    """Names are remembered by every worker; 64 KiB each would fill any machine within an hour."""
    long = "n" * 60_000

    def events() -> Iterator[OfflineRecord]:
        for number in range(1500):
            value = raw_event(**{"event_id": f'"{number}"', field: f'"{number}{long}"'})
            yield OfflineRecord(number, b"hostile", value)

    batches = score_batches(
        events(), settings, artefact, StepEngine(artefact, "cpu"), "clicks", micro_batch=100
    )
    next(batches)
    tracemalloc.start()
    try:
        for rendered in islice(batches, 14):
            assert sum(len(row or b"") for _, row in rendered.rows) < 100_000
        rendered = None  # type: ignore[assignment]
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 20 << 20  # of 84 MB that went through; a micro-batch of 6 MB is still in hand


def test_decoding_takes_memory_in_proportion_to_the_record() -> None:
    """A bomb is small and wants to be large: no record takes more than a hundred times its bytes."""
    heavy = [r for r in (*CORPUS, *variants(2000, SEED)) if len(r.value or b"") > 2_000]
    assert len(heavy) > 100
    for record in heavy:
        tracemalloc.start()
        try:
            outcome(record)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 100 * 64 * 1024, record.name
        assert peak_bytes < 1_000_000 + 100 * len(record.value or b""), record.name


@pytest.mark.parametrize("size", [0, 70_000, 1_048_576, 3_000_000])
def test_a_dead_letter_fits_its_topic(size: int) -> None:
    """What a producer packed small may be large: it is cut to what the topic takes, and the letter says so."""
    record = OfflineRecord(0, b"k" * (size // 3), b"v" * size, (("h", b"x" * (size // 2)),))
    message = dead_letter("clicks", 0, 0, record.key, record.value, "too_large", "x" * 9000, record.headers)
    assert_a_dead_letter(message, record)
    assert (parse(message[2]).cut is None) == (size < 500_000)  # type: ignore[union-attr]
