"""Alerts about fake accounts: who, why, from what, and for how many."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import jsonschema
import msgspec
import numpy as np
import pytest

from models.fraud.fusion import Reference
from models.fraud.rules import RULES, Rules
from stream.errors import ConfigurationError
from stream.events import Event
from stream.fraud_alerts import GROUP_KIND, USER_KIND, fraud_alerts, usual_users
from stream.fraud_rules import read_rules
from stream.outputs import load_schema

HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000


def event(user: str, at_ms: int, item: str, action: str = "view") -> Event:
    return Event(
        user_id=user,
        event_time_ms=START_MS + at_ms,
        action=action,
        item_id=item,
        event_id=f"{user}-{at_ms}",
        device_id="farm" if user.startswith("f") else user,
    )


class Record:
    """An event as a file's record."""

    def __init__(self, one: Event) -> None:
        self.key, self.value = one.user_id.encode(), msgspec.json.encode(one)


def log(farm: int = 6) -> list[tuple[int, Event]]:
    """Strangers over eight days, and accounts that visit and buy the same two items at the same hours."""
    rng = np.random.default_rng(5)
    events = []
    for user in range(120):
        at_ms = int(rng.integers(180 * HOUR_MS))
        for _ in range(int(rng.integers(5, 20))):
            at_ms += int(rng.exponential(60_000 if rng.random() < 0.9 else 20 * HOUR_MS)) + 1000
            action = "purchase" if rng.random() < 0.05 else "view"
            events.append(event(f"p{user}", at_ms, f"i{int(rng.random() ** 2 * 90)}", action))
    for visit in range(7):
        for user in range(farm):
            at_ms = visit * 24 * HOUR_MS + user * 90_000
            events.append(event(f"f{user}", at_ms, f"t{visit % 2}"))
            events.append(event(f"f{user}", at_ms + 30_000, f"t{visit % 2}", "purchase"))
    return list(enumerate(sorted(events, key=lambda one: one.event_time_ms)))


def test_farm_is_flagged_with_its_users_items_and_device() -> None:
    """Every account is an alert, and so is what they have in common, with the accounts as members."""
    found = fraud_alerts(log(), "clicks", target_fpr=0.02)
    users = {alert.subject for alert in found.alerts if alert.kind == USER_KIND}
    assert users >= {f"f{n}" for n in range(6)}
    assert len(users) < 12
    groups = {
        (alert.subject_type, alert.subject): alert for alert in found.alerts if alert.kind == GROUP_KIND
    }
    for group in (("item", "t0"), ("item", "t1"), ("device", "farm")):
        assert {f"f{n}" for n in range(6)} <= set(groups[group].members)


def test_alerts_follow_the_schema_and_point_into_the_source() -> None:
    """Each is what the topic holds; evidence names real offsets, and nothing later than the verdict."""
    events = log()
    validator = jsonschema.Draft202012Validator(load_schema("alerts.fraud"))
    by_offset = dict(events)
    for alert in fraud_alerts(events, "clicks", target_fpr=0.02).alerts:
        validator.validate(json.loads(alert.as_json()))
        assert alert.probability is None
        for entry in alert.evidence:
            shown = by_offset[entry["source"]["offset"]]
            assert (shown.user_id, shown.event_time_ms) == (entry["user_id"], entry["event_time_ms"])
            assert shown.event_time_ms <= alert.event_time_ms


def test_the_same_log_gives_the_same_alerts() -> None:
    """Ids are made of what an alert is about."""
    first, second = (fraud_alerts(log(), "clicks").alerts for _ in range(2))
    assert [alert.as_json() for alert in first] == [alert.as_json() for alert in second]
    assert len({alert.id for alert in first}) == len(first)


def test_a_handful_of_users_is_no_population() -> None:
    """Nobody is unusual among ten; an analyst's rule still holds."""
    few = [(n, event(f"u{n % 10}", n * 500_000, f"i{n}", "purchase")) for n in range(40)]
    assert fraud_alerts(few, "clicks").alerts == []
    broken = fraud_alerts(few, "clicks", limits={"orders_per_hour": 1}).alerts
    assert broken == []
    quick = [(n, event("u", n * 100, f"i{n}")) for n in range(30)]
    (alert,) = fraud_alerts(quick, "clicks", limits={"events_per_second": 9}).alerts
    assert alert.reasons[0]["code"] == "events_per_second"
    assert alert.reasons[0]["limit"] == 9


def test_rule_counts_within_its_span_only() -> None:
    """As many as the limit are believed; one more within the span is not, and later ones are."""
    rules = Rules({"orders_per_hour": 3, "same_order_per_day": 1})
    assert not any(rules.observe("u", n * 60_000, f"i{n}", True) for n in range(3))
    assert [one.rule for one in rules.observe("u", 200_000, "i9", True)] == ["orders_per_hour"]
    assert not rules.observe("u", 20 * HOUR_MS, "i8", True)
    assert [one.rule for one in rules.observe("u", 22 * HOUR_MS, "i8", True)] == ["same_order_per_day"]


def test_shipped_rules_are_all_rules() -> None:
    """The file that an analyst starts from names every rule."""
    assert set(read_rules(None)) == set(RULES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("events_per_minit = 3", "did you mean events_per_minute"),
        ("events_per_minute = 0", "whole number from 1"),
        ("events_per_minute = true", "whole number from 1"),
        ("events_per_minute : 3", "no TOML"),
    ],
)
def test_wrong_rules_are_said_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    """An unknown rule, an impossible limit and a broken file each name themselves."""
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says) as raised:
        read_rules(path)
    assert str(path) in str(raised.value)


def test_share_of_false_positives_is_a_share() -> None:
    """Zero and one are refused before anything runs."""
    with pytest.raises(ConfigurationError, match="--target-fpr"):
        fraud_alerts(log(), "clicks", target_fpr=1.0)


def test_reference_of_other_users_judges_instead_of_the_log() -> None:
    """What training keeps finds the farm in a log of its own; the farm itself was never seen in training."""
    honest = [one for _, one in log(farm=0)]
    kept = usual_users([Record(one) for one in honest], 100)
    reference = Reference.from_dict(json.loads(json.dumps(kept)))
    found = fraud_alerts(log(), "clicks", target_fpr=0.02, reference=reference)
    assert {alert.subject for alert in found.alerts} >= {f"f{n}" for n in range(6)}


def test_usual_users_are_those_of_the_training_part() -> None:
    """Users that measure, and what happens after the split, leave no trace in the reference."""
    records = [Record(one) for _, one in log()]
    part = [one for one in records if crc32(one.key) % 100 < 70]
    assert usual_users(records, 70) == usual_users(part, 100)
    assert usual_users(records[:40], 100) is None
