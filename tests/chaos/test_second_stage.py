"""The replay of the second stage, without a broker: it explains every cut into micro-batches, and nothing else."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.group_records import routed
from stream.groups_app import detectors_of, group_records
from stream.offline import OfflineRecord, score_batches
from stream.settings import Settings, load_settings
from stream.stage import SOURCE_KEY, Message, SourceMark
from tests.broker.test_pipeline import traffic
from tests.chaos.second_stage import ALERTS, ITSELF, SecondStage, applied, micro_batch, transactions
from tests.chaos.traffic import BLOCK, schemes

SOURCES = 3
BLOCKS = 64


@dataclass(frozen=True)
class Written:
    """A record of a changelog as a consumer gives it."""

    row: tuple[bytes, bytes | None]
    at: int

    def key(self) -> bytes:
        return self.row[0]

    def value(self) -> bytes | None:
        return self.row[1]

    def offset(self) -> int:
        return self.at


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = untrained(tmp_path_factory.mktemp("models"), categories=("c0", "c1"))
    return load_settings({}, model=folder, groups__partitions=1, topics__partitions=SOURCES)


@pytest.fixture(scope="module")
def told(settings: Settings) -> list[OfflineRecord]:
    """What three partitions of clicks tell one of groups, in turns of 200 records."""
    artefact = load_artefact(settings.model)  # type: ignore[arg-type]
    engine = StepEngine(artefact, "cpu")
    source: dict[int, list[OfflineRecord]] = defaultdict(list)
    for block in range(BLOCKS):
        for key, value in (*traffic(BLOCK, first=block * BLOCK, seed=7), *schemes(block)):
            partition = source[crc32(key or b"") % SOURCES]
            partition.append(OfflineRecord(len(partition), key, value))
    rounds = [
        score_batches(
            records,
            settings,
            artefact,
            engine,
            settings.clicks_topic,
            partition=number,
            micro_batch=200,
            groups=group_records(settings, 1),
        )
        for number, records in source.items()
    ]
    found: list[OfflineRecord] = []
    while rounds:
        for each in list(rounds):
            rendered = next(each, None)
            if rendered is None:
                rounds.remove(each)
                continue
            for key, value, _ in rendered.messages.get(f"{settings.groups_topic}/0", ()):
                found.append(OfflineRecord(2 * len(found), key, value))  # markers leave gaps
    return found


@pytest.fixture(scope="module")
def stage(settings: Settings) -> SecondStage:
    return SecondStage(
        detectors=detectors_of(settings, settings.clicks_topic),
        partitions=1,
        sources=SOURCES,
        topic_id="id",
        source="/here",
        late_limit_ms=settings.late_limit_s * 1000,
        cool_down_ms=settings.groups.cool_down_s * 1000,
    )


class Lived:
    """One partition of groups as workers live it: cuts of any size, restarts, and in the end silence."""

    def __init__(self, stage: SecondStage, told: list[OfflineRecord], seed: int):
        self.alerts: list[Message] = []
        self.changelog: list[Written] = []
        self.told = told = list(told)
        chance, at, mark_ms = random.Random(seed), 0, 0
        rows: dict[bytes, bytes] = {}
        work = stage.work(rows)
        while at < len(told) or not work.sources.silent:
            if chance.random() < 0.2:
                work = stage.work(rows)
            end = min(len(told), at + chance.choice((1, 20, 300)))
            if at == len(told):
                work.sources.quiet = frozenset(range(SOURCES))
            rendered = micro_batch(work, told[at:end], rows)
            self.alerts += rendered.messages.get(ALERTS, ())
            for key, value, _ in rendered.messages.get(routed(ITSELF, 0), ()):
                told.append(OfflineRecord(2 * len(told), key, value))
            at, mark_ms = end, max(mark_ms, rendered.watermark_ms)
            mark = SourceMark(told[at - 1].offset + 1, bytes(16), mark_ms).encode()
            for row in (*rendered.rows, (SOURCE_KEY, mark)):
                self.changelog.append(Written(row, len(self.changelog)))
            applied(rows, rendered.rows)


@pytest.mark.parametrize("seed", range(2))
def test_every_cut_is_explained(stage: SecondStage, told: list[OfflineRecord], seed: int) -> None:
    """However the records were cut, and whenever a worker began anew, the replay writes the same rows and alerts."""
    lived = Lived(stage, told, seed)
    replayed = stage.replay(lived.told, transactions(lived.changelog))
    assert not replayed.different, replayed.examples
    assert replayed.alerts == lived.alerts
    assert replayed.unread == 0
    assert replayed.told[0] == [(key, value, []) for _, key, value, *_ in lived.told[len(told) :]]
    assert replayed.quiet  # the last ones, which only silence explains


def test_traffic_of_a_round_makes_alerts_of_every_kind(stage: SecondStage, told: list[OfflineRecord]) -> None:
    """Each scheme is seen: a shop, a farmed item and a burst in 16 blocks, which is under three seconds of a round."""
    kinds = Counter(json.loads(value or b"")["kind"] for _, value, _ in Lived(stage, told, 1).alerts)
    assert kinds["order_brushing"] >= BLOCKS // 16, kinds
    assert kinds["click_farm"] >= BLOCKS // 16, kinds
    assert kinds["fake_account"] >= BLOCKS // 16, kinds


def test_what_no_fold_wrote_is_found(stage: SecondStage, told: list[OfflineRecord]) -> None:
    """A record more or less, a row that is older, gone or of nobody, a transaction that is missing."""
    lived = Lived(stage, told, 5)
    changelog, told = lived.changelog, lived.told
    rows = [place for place, each in enumerate(changelog) if each.key().startswith(b"shop:")]
    marks = [place for place, each in enumerate(changelog) if each.key() == SOURCE_KEY]

    def without(first: int, last: int) -> list[Written]:
        return changelog[:first] + changelog[last:]

    def altered(place: int, value: bytes | None) -> list[Written]:
        return [
            *changelog[:place],
            Written((changelog[place].key(), value), changelog[place].at),
            *changelog[place + 1 :],
        ]

    middle = rows[len(rows) // 2]
    broken: dict[str, Callable[[], int]] = {
        "a record was not told": lambda: (
            stage.replay(told[:100] + told[101:], transactions(changelog)).different
        ),
        "a row is missing": lambda: stage.replay(told, transactions(without(middle, middle + 1))).different,
        "a row is another": lambda: stage.replay(told, transactions(altered(middle, b"\1"))).different,
        "a row is erased": lambda: stage.replay(told, transactions(altered(middle, None))).different,
        "the end was not read": lambda: stage.replay(told, transactions(changelog[: marks[3] + 1])).unread,
    }
    blind = [name for name, found in broken.items() if not found()]
    assert not blind


def test_models_are_read_from_a_folder(settings: Settings) -> None:
    """The premise of all of this: a model without a reference of users, so plain limits judge them."""
    assert "fraud" not in json.loads((Path(str(settings.model)) / "manifest.json").read_text())
