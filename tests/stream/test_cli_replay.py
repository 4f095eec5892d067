"""Pacing of a replay, with a manual clock, and its errors before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream.files import FileRecord
from stream.replay import paced
from tests.command_line import foreclick


class ManualClock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds


def records(*times_ms: int | None) -> list[FileRecord]:
    return [FileRecord(line, b"u", b"{}", time_ms) for line, time_ms in enumerate(times_ms, 1)]


def sent_at(log: list[FileRecord], rate: float | None, speed: float | None) -> list[tuple[int, float]]:
    """Line and second of each record."""
    clock = ManualClock()
    groups = paced(log, rate, speed, clock=clock, wait=clock.wait)
    return [(record.line, clock() - 100.0) for group in groups for record in group]


def test_without_a_pace_nothing_waits() -> None:
    """Everything is due at once, in groups that leave room for acknowledgements."""
    clock = ManualClock()
    groups = list(paced(records(*[1] * 2500), None, None, clock=clock, wait=clock.wait))
    assert [len(group) for group in groups] == [1000, 1000, 500]
    assert clock() == 100.0


@pytest.mark.parametrize("rate", [3.0, 200.0, 50_000.0])
def test_a_rate_is_kept_and_never_exceeded(rate: float) -> None:
    """Record number n is sent at n / rate, at most one tick later and never earlier."""
    for line, second in sent_at(records(*[1] * 1500), rate, None):
        assert second == pytest.approx((line - 1) / rate, abs=0.0051)
        assert second >= (line - 1) / rate - 1e-9


def test_a_speed_follows_the_times_of_the_log() -> None:
    """Sixty times faster: a minute of events in a second, and a night's silence too."""
    log = records(0, 60_000, 61_000, 36_000_000)
    assert [second for _, second in sent_at(log, None, 60.0)] == pytest.approx(
        [0.0, 1.0, 61 / 60, 600.0], abs=0.0051
    )


def test_a_record_without_a_time_follows_the_one_before() -> None:
    """So does one whose time lies before: what is overdue is sent at once."""
    log = records(0, 10_000, None, 5_000, 20_000)
    assert [second for _, second in sent_at(log, None, 1.0)] == pytest.approx([0, 10, 10, 10, 20], abs=0.0051)


def test_the_order_of_the_records_is_kept() -> None:
    """Whatever the pace."""
    for rate, speed in ((None, None), (5000.0, None), (None, 1e6)):
        assert [line for line, _ in sent_at(records(*range(0, 90_000, 30)), rate, speed)] == list(
            range(1, 3001)
        )


def test_two_paces_contradict_each_other(tmp_path: Path) -> None:
    """Neither of them is silently ignored."""
    ran = foreclick("replay", tmp_path / "log", "--rate", 5, "--speed", 2)
    assert ran.code == 1
    assert "--rate and --speed contradict" in ran.error


def test_an_unreachable_broker_is_one_line_with_its_address(tmp_path: Path) -> None:
    """Nothing listens on port 1 of loopback."""
    path = tmp_path / "clicks.jsonl"
    path.write_text('{"user_id": "u", "event_time_ms": 1, "action": "view"}\n')
    ran = foreclick("replay", path, KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert ran.code == 1
    assert "No Kafka broker answers at 127.0.0.1:1" in ran.error
    assert "foreclick broker start" in ran.error


@pytest.mark.parametrize(
    "command", ["topics create", "topics check", "worker", "dlq list", "dlq replay", "rekey --from a --to b"]
)
def test_every_command_says_that_the_broker_is_unreachable(command: str) -> None:
    """The same line everywhere, never a traceback."""
    ran = foreclick(*command.split(), KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert ran.code == 1
    assert "No Kafka broker answers at 127.0.0.1:1" in ran.error
