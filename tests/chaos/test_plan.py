"""A failing round is worth something only if it can be had again."""

from __future__ import annotations

import shlex

from tests.chaos.__main__ import replay
from tests.chaos.plan import BROKER_FAULTS, PRODUCT_FAULTS, WORKER_FAULTS, draw, quantile


def test_a_seed_is_a_plan() -> None:
    """The same seed draws the same faults, pauses and choices; its neighbour others."""
    assert draw(7, 10) == draw(7, 10)
    assert draw(7, 10) != draw(8, 10)
    assert {draw(seed, 1).workers for seed in range(30)} == {1, 2, 3}


def test_every_fault_is_drawn_within_sixty_rounds() -> None:
    """Nothing stands in the list that no run tries."""
    drawn = {fault.kind for seed in range(60) for fault in draw(seed, 8).faults}
    assert drawn == {*WORKER_FAULTS, *BROKER_FAULTS}
    product = {fault.kind for seed in range(60) for fault in draw(seed, 8, product_share=1).faults}
    assert product == {*PRODUCT_FAULTS, *BROKER_FAULTS}


def test_rounds_without_broker_kills_have_none() -> None:
    """A broker that is not ours to kill is left alone."""
    assert not {f.kind for seed in range(60) for f in draw(seed, 8, broker_share=0).faults} & {*BROKER_FAULTS}


def test_the_command_of_a_failing_round_keeps_what_was_asked() -> None:
    """Its seed, one round, and every other switch as it was."""
    asked = ["--rounds", "30", "--seed=5", "--only", "lost answer", "--rate", "500"]
    command = shlex.split(replay(asked, 17))
    assert command[:4] == ["make", "chaos", "ROUNDS=1", "SEED=17"]
    assert shlex.split(command[4].removeprefix("ARGS=")) == ["--only", "lost answer", "--rate", "500"]
    assert replay(["--rounds", "3", "--seed", "1"], 3) == "make chaos ROUNDS=1 SEED=3"


def test_a_quantile_is_one_of_the_values() -> None:
    """Nothing is interpolated: p95 of ten is the largest."""
    assert quantile([], 0.5) is None
    assert quantile([float(n) for n in range(10)], 0.95) == 9.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
