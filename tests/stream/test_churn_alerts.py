"""Laws of churn over a file: alerts follow event time and do not depend on micro-batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream.churn_alerts import ChurnAlertRenderer
from stream.files import FileRecord, read_records
from stream.offline import records_of, score_batches
from stream.outputs import printable_subject
from stream.settings import load_settings
from stream.silence import EXPECTED, RETURNED, Said, Silence
from tests.command_line import foreclick

START_MS, DAY_MS = 1_700_000_000_000, 86_400_000
KEYS = [
    "id", "kind", "subject_type", "subject", "score", "probability", "severity", "event_time_ms",
    "reasons", "evidence", "members", "approximate", "supersedes", "held_back",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("models"), categories=("c0", "c1"), hidden=16)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve users over 400 days; user 0 never stops, the others come in visits of three with long breaks."""
    rng = np.random.default_rng(5)
    times = [(START_MS + day * DAY_MS, 0) for day in range(400)]
    for user in range(1, 12):
        visits = START_MS + np.cumsum(rng.exponential(25 * DAY_MS, 12)).astype(int)
        times += [(int(visit) + 60_000 * click, user) for visit in visits for click in range(3)]
    times = sorted(time for time in times if time[0] < START_MS + 400 * DAY_MS)
    events = [
        {"user_id": f"u{user}", "event_time_ms": time, "action": "view", "event_id": f"e{number}"}
        for number, (time, user) in enumerate(times)
    ]
    path = tmp_path_factory.mktemp("logs") / "year.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def alerts_of(records: list[FileRecord], model: Path, micro_batch: int) -> list[dict[str, Any]]:
    artefact = load_artefact(model)
    settings = load_settings(churn__horizon_s=5 * 86_400)
    found: list[dict[str, Any]] = []
    for rendered in score_batches(
        records_of(records),
        settings,
        artefact,
        StepEngine(artefact, "cpu"),
        "year.jsonl",
        micro_batch=micro_batch,
    ):
        messages = rendered.messages.get(settings.alerts_churn_topic, ())
        found += [json.loads(value or b"") for _, value, _ in messages]
    return found


def test_no_alert_depends_on_the_size_of_a_micro_batch(log: Path, model: Path) -> None:
    """Timers run out within micro-batches and between them alike, in the same order; erased users are forgotten."""
    records = read_records(log)
    for place in range(40, len(records), 90):
        records.insert(place, records[place - 30]._replace(value=None))
    alerts = alerts_of(records, model, 4096)
    assert len(alerts) > 40
    assert alerts_of(records, model, 7) == alerts
    assert alerts_of(records, model, 1) == alerts


def test_a_silence_is_said_once_at_its_deadline_and_ended_by_a_return(log: Path, model: Path) -> None:
    """Each user's alerts are expected and returned in turn; an alert is a silence that the log really has."""
    times: dict[str, list[int]] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        times.setdefault(event["user_id"], []).append(event["event_time_ms"])
    alerts = alerts_of(read_records(log), model, 100)
    assert len({alert["id"] for alert in alerts}) == len(alerts)
    open_: dict[str, dict[str, Any]] = {}
    for alert in alerts:
        user, time_ms = alert["subject"], alert["event_time_ms"]
        assert list(alert) == KEYS
        if alert["kind"] == "churn.expected":
            assert user not in open_
            last_ms = max(time for time in times[user] if time <= time_ms)
            assert alert["evidence"][0]["event_time_ms"] == last_ms
            assert alert["reasons"][0]["silence_s"] == (time_ms - last_ms) // 1000 >= 1_800
            assert alert["score"] == alert["probability"] >= 0.5
            open_[user] = alert
        else:
            assert alert["supersedes"] == open_.pop(user)["id"]
            assert time_ms in times[user]
    assert all(time <= alert["event_time_ms"] for user, alert in open_.items() for time in times[user])


def test_alerts_of_many_users_are_those_of_each_alone() -> None:
    """Ids full of quotes, commas and backslashes stay apart, expected and returned alike."""
    renderer = ChurnAlertRenderer(
        topic="clicks", topic_id="T", source="/app", horizon_s=86_400, threshold=0.5
    )
    users = ["u1", '","', '"', "a\\", ',","', "\u2028", "\n", "u,2", '\\","']
    said = [
        Said(kind, user.encode(), Silence(START_MS, 7, deadline_ms, 123 * number), deadline_ms, 7)
        for number, user in enumerate(users)
        for kind, deadline_ms in ((EXPECTED, START_MS + 90 * DAY_MS), (RETURNED, START_MS + 91 * DAY_MS))
    ]
    assert renderer.messages(said, 3) == [renderer.messages([one], 3)[0] for one in said]
    assert renderer.messages([], 3) == []


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.integers(0, 1_000_000),
    st.integers(1_800, 2**32 - 1),
    st.sampled_from([EXPECTED, RETURNED]),
)
def test_the_value_of_an_alert_is_its_json(user: str, millionths: int, silence_s: int, kind: str) -> None:
    """Written straight or from the object: the same bytes, whatever the user's id and the numbers."""
    renderer = ChurnAlertRenderer(
        topic='shop."clicks"', topic_id="T", source="/app", horizon_s=86_400 * 30, threshold=0.5
    )
    silence = Silence(1_700_000_000_000, 7, 1_700_000_000_000 + silence_s * 1000, millionths)
    said = Said(kind, user.encode(), silence, silence.deadline_ms, 7)
    ((key, value, headers),) = renderer.messages([said], 3)
    assert (key, value) == (user.encode(), renderer.alert(said, 3).as_json())
    assert json.loads(value)["subject"] == user
    assert dict(headers)["ce_id"] == said.id("T/3", printable_subject(user)).encode()


def test_the_command_writes_an_alert_a_line(log: Path, model: Path, tmp_path: Path) -> None:
    """And counts them; predictions are the same with and without."""
    plain, out, alerts = tmp_path / "plain", tmp_path / "out", tmp_path / "alerts.jsonl"
    foreclick("score", log, "--model", model, "--out", plain)
    ran = foreclick("score", log, "--model", model, "--out", out, "--churn-alerts", alerts, "--json")
    assert ran.code == 0
    assert out.read_bytes() == plain.read_bytes()
    kinds = [json.loads(line)["kind"] for line in alerts.read_text().splitlines()]
    assert {kind: kinds.count(kind) for kind in ran.json["churn_alerts"]} == ran.json["churn_alerts"]


def test_silence_is_not_measured_out_of_order(log: Path, model: Path) -> None:
    """In a file's own order other users' events are no clock."""
    ran = foreclick("score", log, "--model", model, "--order", "file", "--churn-alerts", "x")
    assert ran.code != 0
    assert "--churn-alerts needs --order time" in ran.err
