"""The race against other frameworks: the same work by each of them, and what is made of the figures. No broker."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.offline import OfflineRecord, score_batches
from stream.settings import load_settings
from tests.bench.peers import bytewax_flow, flink_job, machine, quix_app, race, results
from tests.bench.peers.ceiling_loop import CeilingLoop
from tests.bench.peers.entrants import ENTRANTS, ENVIRONMENTS, Entrant
from tests.bench.peers.event_step import EventStep
from tests.bench.peers.measuring import Measures, rate_of
from tests.bench.peers.oracle import Click, Said, Session, Source, Verdict, judge
from tests.bench.peers.settings import PeerSettings
from tests.bench.traffic import Traffic

TOPIC_ID = bytes(range(16))
EVENTS, PARTITION = 120, 3
Predictions = list[tuple[bytes, dict[str, bytes]]]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> PeerSettings:
    """Of every peer in this file: an untrained network over ten categories."""
    model = untrained(tmp_path_factory.mktemp("models"), categories=tuple(f"c{i}" for i in range(10)))
    return PeerSettings(
        bootstrap_servers="127.0.0.1:1",
        app_id="race",
        clicks_topic="clicks",
        topic_id=TOPIC_ID.hex(),
        predictions_topic="predictions",
        dead_letters_topic="clicks.dlq",
        partitions=8,
        source="/foreclick/clicks",
        model=str(model),
        data_dir="data",
    )


@pytest.fixture(scope="module")
def records() -> list[OfflineRecord]:
    """Events of a few users, the last of them sent a second time."""
    pairs = list(
        Traffic(8, tuple(f"c{i}" for i in range(10)), "t").records(EVENTS, 1_760_000_000_000, 90_000)
    )
    return [OfflineRecord(offset, key, value) for offset, (key, value) in enumerate([*pairs, pairs[-1]])]


@pytest.fixture(scope="module")
def ours(settings: PeerSettings, records: list[OfflineRecord]) -> Predictions:
    """What the pipeline makes of them."""
    artefact = load_artefact(settings.model)  # type: ignore[arg-type]
    found: Predictions = []
    for rendered in score_batches(
        records,
        load_settings({}),
        artefact,
        StepEngine(artefact, device="cpu"),
        "clicks",
        topic_id=TOPIC_ID,
        partition=PARTITION,
        micro_batch=32,
    ):
        found += [(value, dict(headers)) for _, value, headers in rendered.messages["predictions"]]
    return found


class QuixState:
    """What a Quix function sees of the state of one key."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get_bytes(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def set_bytes(self, key: str, value: bytes) -> None:
        self.kept[key] = value


class FlinkState:
    """A Flink value state of one key."""

    def __init__(self) -> None:
        self.kept: bytes | None = None

    def value(self) -> bytes | None:
        return self.kept

    def update(self, value: bytes) -> None:
        self.kept = value


def by_quix(step: EventStep, records: list[OfflineRecord]) -> Predictions:
    place: dict[str, int] = {}
    score = quix_app.scorer(step, lambda: SimpleNamespace(**place))
    states: dict[bytes | None, QuixState] = {}
    found: Predictions = []
    for record in records:
        place = {"partition": PARTITION, "offset": record.offset}
        stepped = score(record.value or b"", states.setdefault(record.key, QuixState()))
        if stepped is not None:
            found.append((stepped.value, stepped.headers))
    return found


def by_bytewax(step: EventStep, records: list[OfflineRecord]) -> Predictions:
    score = bytewax_flow.mapper(step)
    states: dict[bytes | None, bytes | None] = {}
    found: Predictions = []
    for record in records:
        message = SimpleNamespace(value=record.value, partition=PARTITION, offset=record.offset)
        states[record.key], outputs = score(states.get(record.key), message)
        found += [(stepped.value, stepped.headers) for stepped in outputs]
    return found


def by_flink(step: EventStep, records: list[OfflineRecord]) -> Predictions:
    states: dict[bytes | None, FlinkState] = {}
    found: Predictions = []
    for record in records:
        row = ((record.key or b"").decode(), record.value, PARTITION, record.offset)
        state = states.setdefault(record.key, FlinkState())
        found += [(value, headers) for _, value, headers in flink_job.predict(step, state, row)]
    return found


@pytest.mark.parametrize("peer", [by_quix, by_bytewax, by_flink])
def test_every_peer_writes_the_fields_of_the_pipeline(
    settings: PeerSettings,
    records: list[OfflineRecord],
    ours: Predictions,
    peer: Callable[[EventStep, list[OfflineRecord]], Predictions],
) -> None:
    """Names, order, texts and counts of values and headers; numbers are compared in test_stock.py."""
    theirs = peer(EventStep(settings), records)
    assert len(theirs) == len(ours) == EVENTS
    for (our_value, our_headers), (value, headers) in zip(ours, theirs, strict=True):
        assert headers == our_headers | {"ce_source": b"/foreclick/clicks"}
        one, other = json.loads(our_value), json.loads(value)
        assert list(one) == list(other)
        for name in ("schema", "user_id", "event_id", "event_time_ms", "source", "session", "model"):
            assert one[name] == other[name]
        for name in ("next_action", "anomaly"):
            assert list(one[name]) == list(other[name])


def test_the_ceiling_writes_the_bytes_of_the_pipeline(
    settings: PeerSettings, records: list[OfflineRecord], ours: Predictions
) -> None:
    """However the loop cuts its micro-batches, and with several partitions in one."""
    loop = CeilingLoop(load_settings({}), settings.model, TOPIC_ID)  # type: ignore[arg-type]
    found = []
    for first in range(0, len(records), 50):
        batch = records[first : first + 50]
        found += [
            (value, dict(headers))
            for _, value, headers in loop({PARTITION: batch, 5: []} if first else {PARTITION: batch})
        ]
    assert found == ours


def said(user: str, offset: int, place: int, index: int = 1) -> Said:
    return Said(user, Source(0, offset), Session(index, place))


CLICKS = [
    ((0, offset), Click(user, at_s * 1000))
    for offset, (user, at_s) in enumerate([("a", 0), ("b", 5), ("a", 9)])
]


def test_the_oracle_is_content_with_each_event_answered_once() -> None:
    """Also across a pause that ends a session."""
    clicks = [*CLICKS, ((0, 3), Click("a", 9_000 + 1_800_001))]
    outputs = [said("a", 0, 1), said("b", 1, 1), said("a", 2, 2), said("a", 3, 1, index=2)]
    assert judge(clicks, outputs) == Verdict(4, 0, 0, 0)


def test_the_oracle_counts_what_is_lost_doubled_or_from_another_state() -> None:
    """A repeated answer, a missing one, an event counted twice in the state, and one about nothing."""
    twice = [said("a", 0, 1), said("a", 0, 1), said("a", 2, 2)]
    assert judge(CLICKS, twice) == Verdict(3, lost=1, doubled=1, contradicting=0)
    counted_twice = [said("a", 0, 1), said("b", 1, 1), said("a", 2, 3)]
    assert judge(CLICKS, counted_twice) == Verdict(3, lost=0, doubled=0, contradicting=1)
    of_nothing = [said("a", 0, 1), said("b", 1, 1), said("a", 2, 2), said("a", 7, 3)]
    assert judge(CLICKS, of_nothing) == Verdict(3, lost=0, doubled=0, contradicting=1)


def test_events_a_second_are_counted_after_the_warm_up() -> None:
    """A slow beginning does not count; a run that was over early is judged by its last two thirds."""
    slow_then_fast = np.concatenate([np.arange(0, 5000, 100), np.arange(5000, 30_001, 10)])
    assert rate_of(slow_then_fast, 5.0, 15.0) == pytest.approx(100)
    assert rate_of(np.arange(0, 3001, 10), 5.0, 15.0) == pytest.approx(100)
    assert math.isnan(rate_of(np.array([7, 7]), 5.0, 15.0))


RUNS: list[dict[str, Any]] = [
    {"round": 1, "entrant": "foreclick", "events_per_s": 900.0, "rate_p50_ms": 5.0, "rate_p99_ms": 9.0},
    {"round": 2, "entrant": "foreclick", "events_per_s": 1000.0, "rate_p50_ms": 4.0, "rate_p99_ms": 8.0},
    {"round": 3, "entrant": "foreclick", "events_per_s": 2000.0, "rate_p50_ms": 6.0, "rate_p99_ms": 7.0},
    {"round": 1, "entrant": "quix", "events_per_s": 250.0, "rate_saturated": True, "lost": 0, "doubled": 12},
    {"round": 1, "entrant": "faust", "events_per_s": 10.0},
    {"round": 1, "entrant": "ceiling", "events_per_s": 2000.0},
    {"round": 1, "entrant": "bytewax", "error": "not installed: no wheel"},
]


def summary() -> dict[str, dict[str, Any]]:
    return results.summary([entrant for entrant in ENTRANTS if "flink" not in entrant.name], RUNS)


def test_ratios_are_of_medians_and_against_the_fastest_peer() -> None:
    """The ceiling is no peer, and who did not run is not compared with."""
    figures = results.ratios(summary())
    assert figures["ratio_to_fastest_peer"] == pytest.approx(4)
    assert figures["ratio_to_stock"] == pytest.approx(100)
    assert figures["share_of_ceiling"] == pytest.approx(0.5)
    assert "bytewax_events_per_s" not in figures


def test_the_table_says_spread_saturation_and_errors() -> None:
    """Fastest first, and those who could not run last with their reason."""
    rows = results.rows(summary())
    assert [row[0] for row in rows][:2] == ["ceiling", "foreclick"]
    by_name = {row[0]: row for row in rows}
    assert by_name["foreclick"][1] == "1,000 (900 to 2,000)"
    assert by_name["foreclick"][3] == "5 (4 to 6) / 8 (7 to 9)"
    assert by_name["quix"][3] == "saturated"
    assert by_name["quix"][6] == "12"
    assert by_name["bytewax"][1] == "-"
    assert by_name["bytewax"][-1] == "not installed: no wheel"
    assert by_name["quix-exactly-once"][-1] == "not run"


def test_a_report_is_written_as_table_chart_and_json(tmp_path: Any) -> None:
    """NaN is null in the JSON; the page names machine, versions and what each one is."""
    runs = [
        *RUNS,
        {"round": 1, "entrant": "quix-exactly-once", "events_per_s": 5.0, "back_after_s": math.nan},
    ]
    entrants = [entrant for entrant in ENTRANTS if "flink" not in entrant.name]
    about = {
        **dict.fromkeys(("processor", "system", "python", "java", "model"), "x"),
        "cores": 2,
        "memory_gib": 4,
        "load_before": 0.1,
        "versions": machine.locked_versions(),
    }
    made = results.record(entrants, runs, about, Measures(), 1, 60.0)
    results.write(made, tmp_path)
    assert json.loads((tmp_path / "peers.json").read_text())["runs"][-1]["back_after_s"] is None
    page = (tmp_path / "peers.md").read_text()
    assert "Against the fastest Python framework: 4.00" in page
    assert all(f"`{entrant.name}`" in page for entrant in entrants)
    assert "<svg" in (tmp_path / "peers.svg").read_text()
    of_speed_alone = results.record(entrants, RUNS[4:6], about, Measures(), 1, 60.0)
    results.write(of_speed_alone, tmp_path)
    assert "latency and kills are of 0 of them" in (tmp_path / "peers.md").read_text()


def test_every_round_has_everybody_in_an_order_of_its_own() -> None:
    """Drawn from the seed."""
    entrants = list(ENTRANTS)
    first = race.orders(entrants, 5, 1)
    assert first == race.orders(entrants, 5, 1) != race.orders(entrants, 5, 2)
    assert all(sorted(order, key=str) == sorted(entrants, key=str) for order in first)
    assert len({tuple(entrant.name for entrant in order) for order in first}) > 1


def test_a_race_that_is_broken_off_has_what_it_measured() -> None:
    """Runs are handed out after each entrant; latency and kills belong to the first rounds alone."""
    asked: list[tuple[str, int, bool]] = []

    def measured(entrant: Entrant, number: int, steady: bool) -> dict[str, Any]:
        asked.append((entrant.name, number, steady))
        return {"events_per_s": 1.0}

    rounds = [[ENTRANTS[0], ENTRANTS[1]], [ENTRANTS[1], ENTRANTS[0]]]
    seen = [len(runs) for runs in race.runs_of(rounds, 1, measured)]
    assert seen == [1, 2, 3, 4]
    names = [ENTRANTS[0].name, ENTRANTS[1].name]
    assert asked == [(names[0], 1, True), (names[1], 1, True), (names[1], 2, False), (names[0], 2, False)]


def test_an_entrant_that_is_unknown_is_refused_by_name() -> None:
    """With the names that there are."""
    with pytest.raises(race.UnknownEntrant, match="bytewax"):
        race.chosen("faust,spark")


def test_who_is_not_installed_says_why() -> None:
    """With the last words of the installation, or how to begin one."""
    nobody = Entrant("nobody", "x", "no-such-environment", False, True, "")
    assert not (ENVIRONMENTS / "no-such-environment").exists()
    assert nobody.missing() == "not installed: run `make peers`"


def test_flink_takes_up_its_newest_complete_checkpoint(tmp_path: Any) -> None:
    """One without metadata was not finished when the job was killed."""
    assert flink_job.newest_checkpoint(tmp_path) is None
    for number, complete in ((1, True), (2, True), (3, False)):
        folder = tmp_path / "job" / f"chk-{number}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "_metadata").touch()
    assert flink_job.newest_checkpoint(tmp_path) == tmp_path / "job" / "chk-2"


def test_locks_name_no_registry_and_every_hash() -> None:
    """They are installed with --require-hashes from wherever the machine is told to."""
    for file in machine.LOCKED.values():
        text = (race.ROOT / "tests" / "bench" / "peers" / file).read_text()
        assert "://" not in text
        assert not any(line.startswith("-") for line in text.splitlines())  # an option, such as where to look
        requirements = [line for line in text.splitlines() if line and line[0].isalnum()]
        assert requirements
        assert text.count("--hash=sha256:") >= len(requirements)
    assert "?" not in machine.locked_versions().values()
