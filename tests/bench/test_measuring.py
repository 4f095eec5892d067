"""What the benches measure with: the traffic, the reading of predictions, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.registry import untrained
from stream.cli import bench
from stream.events import Event, decode_events
from stream.settings import load_settings
from tests.bench import alerts, scaling, timers
from tests.bench.processes import BenchFailed
from tests.bench.readers import _first_transaction, source_position
from tests.bench.traffic import Traffic

CATEGORIES = ("c1", "c2", "shoes & socks")


def test_the_same_seed_gives_the_same_bytes() -> None:
    """And another part or seed gives others, so that no event id comes twice in a run."""
    first = list(Traffic(50, CATEGORIES, "a").records(500, 1_760_000_000_000, 10))
    assert first == list(Traffic(50, CATEGORIES, "a").records(500, 1_760_000_000_000, 10))
    other = [
        *Traffic(50, CATEGORIES, "b").records(500, 0, 10),
        *Traffic(50, CATEGORIES, "a", 2).records(500, 0, 10),
    ]
    assert not {value for _, value in first} & {value for _, value in other}


def test_traffic_is_canonical_and_rises_in_time() -> None:
    """Every record decodes to an event of its key's user, of about the stated size."""
    pairs = list(Traffic(50, CATEGORIES, "a").records(500, 1_760_000_000_000, 10))
    events = decode_events([key for key, _ in pairs], [value for _, value in pairs])
    assert all(isinstance(event, Event) for event in events)
    times = [event.event_time_ms for event in events if isinstance(event, Event)]
    assert times == sorted(times)
    assert len({event.event_id for event in events if isinstance(event, Event)}) == 500
    assert all(150 <= len(value) <= 190 for _, value in pairs)


def test_each_user_once_is_each_user_once() -> None:
    """The changelog of the restore holds as many rows as there are users."""
    keys = [key for key, _ in Traffic(300, CATEGORIES, "a").records(300, 0, 10, each_user_once=True)]
    assert len(set(keys)) == 300


def test_the_source_position_is_read_without_decoding() -> None:
    """From the ``source`` of a prediction, wherever other numbers stand."""
    value = (
        b'{"event_id":"e-7","source":{"topic":"clicks","partition":3,"offset":18842},"session":{"index":1}}'
    )
    assert source_position(value) == (3, 18842)


def test_the_first_transaction_ends_where_its_marker_took_an_offset() -> None:
    """Its records stood ready when the clock started; without transactions that is one record."""
    begun_later = [(0, 50), (1, 51), (3, 52)]
    begun_first = [(2, 10), (3, 10), (4, 11), (6, 90)]
    assert _first_transaction([begun_later, begun_first, []]) == 3
    assert _first_transaction([[(0, 10), (1, 11)], [(0, 12)]]) == 1


def test_a_package_without_its_tests_says_where_the_benches_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An installed package has no tests/bench beside it."""
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "stream" / "cli" / "bench.py"))
    with pytest.raises(bench.NotInstalled, match="make bench"):
        bench.model(None)


def test_the_cost_of_an_event_leaves_out_beginning_and_end() -> None:
    """Between a tenth and nearly all of the events: what small micro-batches cost there is not what load costs."""
    looks = [
        scaling.Look(0, 1000, 5.0),
        scaling.Look(1, 1100, 9.0),
        scaling.Look(2, 1500, 9.4),
        scaling.Look(3, 1960, 9.86),
        scaling.Look(9, 2000, 12.0),
    ]
    assert scaling.cost_of(looks, 1000) == pytest.approx((1000, 430))
    with pytest.raises(BenchFailed, match="--events"):
        scaling.cost_of([scaling.Look(0, 0, 0.0), scaling.Look(1, 1000, 1.0)], 1000)
    with pytest.raises(BenchFailed, match="--events"):
        scaling.cost_of(
            [scaling.Look(0, 0, 0.0), scaling.Look(1, 600, 1.0), scaling.Look(2, 1000, 1.1)], 1000
        )


def test_scaling_is_written_as_table_and_json(tmp_path: Path) -> None:
    """The ratio is of the most users against the fewest, one worker; what two workers are not asked is a dash."""
    cases = [
        scaling.Case(10_000, 1, 40.0, 20_000.0, 500.0, 990.0, 0.4, 10_000, 25_000.0),
        scaling.Case(10_000, 2, 50.0, 25_000.0, 900.0),
        scaling.Case(1_000_000, 1, 44.0, 18_000.0, 900.0, 980.0, 9.5, 1_000_000, 105_000.0),
    ]
    about = {
        **dict.fromkeys(("processor", "system", "python", "java", "model"), "x"),
        "cores": 2,
        "memory_gib": 4,
        "load_before": 0.1,
        "versions": {},
    }
    scaling.write(scaling.record(cases, 200_000, about, 1, 60.0), tmp_path)
    assert json.loads((tmp_path / "scaling.json").read_text())["cost_ratio"] == pytest.approx(1.1)
    page = (tmp_path / "scaling.md").read_text()
    assert "| 10,000 | 2 | 50.00 | 25,000 | 900.0 | - | - | - | - |" in page
    assert "costs 1.10 times" in page


def test_what_alerts_cost_is_of_one_round() -> None:
    """A machine that slows down between rounds changes no share: rates are held against those of their round."""
    slower = (1.0, 0.5, 0.25)
    found = {
        way: [alerts.Ran(rate * speed, worker_us=40.0) for speed in slower]
        for way, rate in {"without": 100, "churn": 90, "groups": 80, "all": 72}.items()
    }
    figures = alerts.figures(found)
    assert figures["alerts_cost"] == pytest.approx(0.72)
    assert figures["churn_cost"] == pytest.approx(0.9)
    assert figures["groups_cost"] == pytest.approx(0.8)
    assert figures["all_worker_us"] == 40.0


def test_a_million_timers_are_as_good_as_a_thousand(tmp_path: Path) -> None:
    """The bench of timers arms, fires each once and says what it took, without a broker."""
    model = untrained(tmp_path / "models", hidden=16)
    settings = load_settings(data_dir=tmp_path)
    found = timers.run(settings, model, tmp_path / "stores", 5_000, 1)
    assert found["timers_fired_per_s"] > 0
    assert 10 < found["timer_bytes"] <= 200
