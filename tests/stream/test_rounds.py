"""Partitions that go through the model together write what each would have written alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.model_step import ServedModel
from stream.offline import OfflineRecord
from stream.rounds import ClicksRounds
from stream.scoring import ClicksRequest, ClicksWork, DecodedClicks
from stream.settings import Settings, load_settings
from stream.stage import Rendered

START_MS = 1_735_000_000_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ServedModel]:
    """Two models that differ in weights only."""
    root = tmp_path_factory.mktemp("models")
    artefacts = [load_artefact(untrained(root, name=f"m{seed}", seed=seed, hidden=16)) for seed in (1, 2)]
    return [ServedModel(artefact, StepEngine(artefact, "cpu")) for artefact in artefacts]


def records_of(partition: int, start: int, count: int) -> list[OfflineRecord]:
    """Events of three users, with and without ids; a tombstone, bytes that are no event, a repeat, a late one."""
    records = []
    for offset in range(start, start + count):
        user = f"u{partition}-{offset % 3}"
        event: dict[str, Any] = {
            "user_id": user,
            "event_time_ms": START_MS + 60_000 * offset - (10**9 if offset % 17 == 16 else 0),
            "action": ("view", "cart", "purchase", "dance")[offset % 4],
            "category_id": f"c{partition}-{offset % 7}",
        }
        if offset % 2:
            event["event_id"] = f"e{partition}-{offset - 6 if offset % 11 == 9 else offset}"
        value = b"{" if offset % 13 == 5 else None if offset % 19 == 7 else json.dumps(event).encode()
        records.append(OfflineRecord(offset, user.encode(), value))
    return records


class Shop:
    """Partitions in memory that share rounds, or each have their own."""

    def __init__(self, settings: Settings, shared: bool, partitions: int):
        self.served: ServedModel | None = None
        self.rows: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]
        self._settings, self._shared = settings, shared
        self._rounds: list[ClicksRounds] = []
        self._works: list[ClicksWork] = []

    def use(self, served: ServedModel) -> None:
        self.served = served
        if not self._works:
            count = len(self.rows)
            whole = [self._new_rounds() for _ in range(1 if self._shared else count)]
            self._rounds = whole * count if self._shared else whole
            self._works = [self._new_work(partition) for partition in range(count)]

    def _new_rounds(self) -> ClicksRounds:
        def in_use() -> ServedModel:
            assert self.served is not None
            return self.served

        return clicks_rounds(self._settings, in_use, topic="clicks", topic_id=bytes(16))

    def _new_work(self, partition: int) -> ClicksWork:
        async def score(request: ClicksRequest) -> Rendered:
            raise NotImplementedError

        return clicks_work(
            self._settings, topic="clicks", topic_id=bytes(16), partition=partition, score=score
        )

    def take(self, batches: list[list[OfflineRecord]]) -> list[Rendered]:
        requests = []
        for work, rows, batch in zip(self._works, self.rows, batches, strict=True):
            decoded: DecodedClicks = work.decode(batch)
            requests.append(ClicksRequest(work, decoded, [rows.get(key) for key in decoded.keys], None))
        if self._shared:
            folded = self._rounds[0].fold(requests)
            rendered = self._rounds[0].render(folded, self._rounds[0].step(folded))
        else:
            rendered = []
            for rounds, request in zip(self._rounds, requests, strict=True):
                folded = rounds.fold([request])
                rendered += rounds.render(folded, rounds.step(folded))
        for rows, of_partition in zip(self.rows, rendered, strict=True):
            for key, row in of_partition.rows:
                if row is None:
                    rows.pop(key, None)
                else:
                    rows[key] = row
        return rendered


@pytest.mark.parametrize(("predictions", "vectors"), [("every", "predictions"), ("last", "topic")])
def test_partitions_together_write_what_each_writes_alone(models, predictions, vectors):
    """Rows, messages and counts, byte for byte; with an exchange of models, and a partition without events."""
    settings = load_settings({}, predictions=predictions, user_vectors=vectors)
    together, alone = Shop(settings, True, 3), Shop(settings, False, 3)
    kinds: set[str] = set()
    for number, (served, sizes) in enumerate(
        [(models[0], (40, 7, 0)), (models[0], (1, 30, 5)), (models[1], (20, 20, 20)), (models[1], (9, 0, 50))]
    ):
        together.use(served)
        alone.use(served)
        batches = [records_of(p, 50 * number, size) for p, size in enumerate(sizes)]
        for mine, theirs in zip(together.take(batches), alone.take(batches), strict=True):
            assert mine.rows == theirs.rows
            assert mine.messages == theirs.messages
            assert mine.watermark_ms == theirs.watermark_ms
            assert mine.counts.dead_letters == theirs.counts.dead_letters
            assert mine.counts.duplicates == theirs.counts.duplicates
            kinds |= {*mine.counts.dead_letters, *(["repeat"] if mine.counts.duplicates else [])}
    assert together.rows == alone.rows
    assert kinds == {"late", "repeat", "undecodable"}


def test_a_round_without_events_writes_what_it_must(models):
    """Rejections alone give dead letters and no prediction; nothing at all gives nothing."""
    shop = Shop(load_settings({}), True, 2)
    shop.use(models[0])
    first, second = shop.take([[OfflineRecord(0, b"u", b"{")], []])
    assert [*first.messages] == [load_settings({}).dead_letters_topic]
    assert (first.rows, second.rows, dict(second.messages)) == ([], [], {})


def test_work_hands_in_one_request_a_micro_batch(models):
    """What a partition decoded and loaded goes to the scorer whole, with its clock."""
    seen: list[ClicksRequest] = []

    async def score(request: ClicksRequest) -> Rendered:
        seen.append(request)
        return Rendered({}, [], 0)

    work = clicks_work(load_settings({}), topic="clicks", topic_id=bytes(16), partition=4, score=score)
    decoded = work.decode(records_of(4, 0, 3))
    asyncio.run(work.score(decoded, [None] * 3, 17))
    (request,) = seen
    assert (request.partition, request.now_ms, request.decoded) == (4, 17, decoded)
    assert request.source_prefix == b"AAAAAAAAAAAAAAAAAAAAAA/4"
