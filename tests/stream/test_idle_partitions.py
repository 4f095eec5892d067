"""Laws of time in partitions that nothing comes to."""

from __future__ import annotations

from stream.idle_partitions import Heard, left_behind, silent

NOW_MS, IDLE_S, LIVE_MS = 1_735_000_000_000, 60.0, 1_800_000


def heard(number: int, behind_s: float, quiet_s: float, ever: bool = True, caught_up: bool = True) -> Heard:
    return Heard(number, NOW_MS - int(behind_s * 1000), quiet_s, ever, caught_up)


def moved(*partitions: Heard) -> dict[int, int]:
    return left_behind(partitions, NOW_MS, IDLE_S, LIVE_MS)


def test_an_idle_partition_follows_those_that_go_on() -> None:
    """To the newest watermark of the others."""
    assert moved(heard(0, 9_000, 70), heard(1, 5, 0.1), heard(2, 2, 3)) == {0: NOW_MS - 2_000}


def test_nobody_is_moved_beyond_the_clock() -> None:
    """An event of a clock that is ahead moves its own partition only."""
    assert moved(heard(0, 9_000, 70), heard(1, -250, 0.1)) == {0: NOW_MS}


def test_a_silent_source_moves_nobody() -> None:
    """When nothing comes to any partition, nobody has gone."""
    everybody = (heard(0, 9_000, 70), heard(1, 70, 65))
    assert moved(*everybody) == {}
    assert silent(everybody, IDLE_S)
    assert not silent((*everybody, heard(2, 0, 1)), IDLE_S)
    assert not silent((), IDLE_S)


def test_a_replay_moves_nobody() -> None:
    """Events of long ago say nothing of what other partitions have not read yet."""
    assert moved(heard(0, 90_000, 70), heard(1, 86_400, 0.1)) == {}


def test_a_partition_that_lags_is_not_idle() -> None:
    """What waits at the broker may be the very event that is missed."""
    assert moved(heard(0, 9_000, 70, caught_up=False), heard(1, 0, 0.1)) == {}


def test_a_partition_that_was_just_opened_vouches_for_nobody() -> None:
    """It has heard nothing yet; its watermark is that of its predecessor."""
    assert moved(heard(0, 9_000, 70), heard(1, 0, 0.1, ever=False)) == {}
