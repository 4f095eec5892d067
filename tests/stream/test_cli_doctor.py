"""What ``doctor`` says of records, models and data directories."""

from __future__ import annotations

import json
from pathlib import Path

from models.registry import load_artefact, untrained
from stream.activation import Activation
from stream.diagnosis import data_directory, guarded, judge, judge_activated, judge_times
from stream.engine.store import lock_data_dir
from stream.errors import TopicError
from stream.formats import record_adapter
from tests.command_line import foreclick


def record(user: str, **fields: object) -> bytes:
    return json.dumps({"user_id": user, "event_time_ms": 1, "action": "view", **fields}).encode()


def test_a_clean_sample_is_well() -> None:
    """Keyed by user, with all that is required."""
    assert [finding.level for finding in judge([b"u"] * 50, [record("u")] * 50, "clicks")] == ["ok"]


def test_no_records_are_no_fault() -> None:
    """A new topic is empty."""
    assert [finding.level for finding in judge([], [], "clicks")] == ["ok"]


def test_dead_letters_are_foretold_with_their_reasons() -> None:
    """Counts by reason, and the message of the most frequent one."""
    values: list[bytes | None] = [record("u")] * 7 + [b"{}"] * 2 + [b"not json"]
    (finding,) = judge([b"u"] * 10, values, "clicks")
    assert finding.level == "warn"
    assert (
        "Of 10 records of clicks, 3 would be dead letters: missing_field 2, undecodable 1" in finding.message
    )
    assert "`action`" in finding.message


def test_a_little_dirt_is_no_warning() -> None:
    """One in two hundred is what dead letters are for."""
    (finding,) = judge([b"u"] * 200, [record("u")] * 199 + [b"x"], "clicks")
    assert finding.level == "ok"
    assert "1 would be dead letters" in finding.message


def test_foreign_keys_suggest_a_rekeyed_topic() -> None:
    """Missing keys and other keys alike: state lives where the key leads."""
    keys: list[bytes | None] = [None] * 4 + [b"session-7"] * 4 + [b"u"] * 2
    findings = judge(keys, [record("u")] * 10, "web")
    assert findings[1].level == "fail"
    assert "8 of 10 records of web" in findings[1].message
    assert "foreclick rekey --from web --to web-by-user" in findings[1].message


def test_unknown_fields_are_shown() -> None:
    """They are no fault, but the model does not see them."""
    findings = judge([b"u"] * 3, [record("u", colour="red")] * 3, "clicks")
    assert findings[1] == ("ok", "Fields that the model does not see: colour 3")


def test_a_wrong_clock_is_said_before_the_dead_letters_are_counted() -> None:
    """To a worker whose clock is a year behind every event comes from the future; which one is wrong it cannot know."""
    now_ms = 1_735_000_000_000
    (finding,) = judge_times([now_ms + 31_536_000_000] * 3, "clicks", now_ms, 300_000)
    assert finding.level == "fail"
    assert (
        "3 of 3 events of clicks are ahead of this machine's clock, by up to 31,536,000 s" in finding.message
    )
    assert "foreclick dlq replay --reason future" in finding.message
    assert judge_times([now_ms + 300_000, now_ms - 10**10], "clicks", now_ms, 300_000) == []


def test_seconds_that_are_taken_for_milliseconds_are_said() -> None:
    """The pipeline takes them, since a log may be as old as that, and would never see a session end."""
    (finding,) = judge_times([1_735_000_000, 1_735_000_000_000], "clicks", 1_736_000_000_000, 300_000)
    assert finding.level == "warn"
    assert "1 of 2 events of clicks" in finding.message
    assert "event_time_ms 1735000000." in finding.message


def test_an_activated_model_that_is_not_here_is_said(tmp_path: Path) -> None:
    """A worker that starts on this machine would quietly serve an older one, while the bundled one is found well."""
    folder = untrained(tmp_path / "models", name="shop", version="2")
    sha256 = load_artefact(folder).manifest["weights"]["sha256"]
    record = Activation("shop", "2", sha256, str(tmp_path / "models"), 0, "mary").encode()
    assert list(judge_activated([], None)) == []
    assert [finding.level for finding in judge_activated([record], None)] == ["ok"]
    (finding,) = judge_activated([record], tmp_path)
    assert finding.level == "warn"
    assert (
        f"shop/2, which a worker that starts here refuses: Model folder {tmp_path}/shop/2" in finding.message
    )


def test_records_are_judged_in_the_format_that_the_worker_reads() -> None:
    """A worker that is told of GA4 rejects what another one would take for Segment."""
    event = {"type": "track", "event": "Product Viewed", "messageId": "m", "userId": "u"}
    value = json.dumps({**event, "timestamp": "2024-05-01T12:00:00Z", "properties": {"product_id": "p"}})
    assert judge([b"u"], [value.encode()], "clicks")[0].level == "ok"
    assert judge([b"u"], [value.encode()], "clicks", record_adapter("ga4"))[0].level == "warn"


def test_an_error_of_one_check_is_a_finding() -> None:
    """A broken broker must not hide a broken model."""

    def broken() -> list:  # type: ignore[type-arg]
        raise TopicError("Topic clicks does not exist.")

    assert guarded(broken) == [("fail", "Topic clicks does not exist.")]


def test_a_data_directory_that_can_be_written_is_well(tmp_path: Path) -> None:
    """It is created, as the worker would."""
    assert next(iter(data_directory(tmp_path / "new"))).level == "ok"


def test_a_data_directory_held_by_a_worker_is_a_warning(tmp_path: Path) -> None:
    """A worker that runs is no fault; its process is named."""
    held = lock_data_dir(tmp_path / "state")
    finding = next(iter(data_directory(tmp_path)))
    held.close()
    assert finding.level == "warn"
    assert "is locked by another worker (pid" in finding.message


def test_a_data_directory_that_cannot_be_written_fails(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "data").write_text("")
    (finding,) = data_directory(tmp_path / "data")
    assert finding.level == "fail"
    assert "cannot be written" in finding.message
    assert "FORECLICK_DATA_DIR" in finding.message


def test_every_trouble_is_said_at_once(tmp_path: Path) -> None:
    """No broker, no model, and a good data directory: two lines that fail, and exit code 1."""
    ran = foreclick(
        "doctor",
        "--json",
        "--model",
        tmp_path / "no",
        "--data-dir",
        tmp_path,
        KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1",
    )
    assert ran.code == 1
    failed = [finding["message"] for finding in ran.json["findings"] if finding["level"] == "fail"]
    assert sum("No Kafka broker answers" in message for message in failed) == 1
    assert sum("does not exist" in message for message in failed) == 1
    assert any("can be written" in finding["message"] for finding in ran.json["findings"])
