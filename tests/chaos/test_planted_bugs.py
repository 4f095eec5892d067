"""An oracle that finds nothing may be blind. Here the engine breaks one of its rules, and the oracle must say so.

Each bug has a round shaped to provoke it, and must be caught within ROUNDS of them. What ``no-cleanse`` needs, a
broker killed within the milliseconds between the decision to commit and its markers, cannot be aimed at: there what
such a kill leaves behind is made by hand. `make chaos ARGS="--planted no-cleanse"` looks for the real thing.
"""

from __future__ import annotations

import ast
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import cluster, oracle
from tests.chaos.conftest import Scene
from tests.chaos.oracle import judge
from tests.chaos.verdict import Verdict

pytestmark = [pytest.mark.broker, pytest.mark.slow]

ROUNDS = 2

SceneFactory = Callable[..., Scene]


def caught(verdict: Verdict) -> bool:
    """No broker was killed here, so a repeat has no excuse."""
    return not verdict.exact() or verdict.repeats > 0


def first_caught(scene: SceneFactory, play: Callable[[Scene], Verdict], **options: object) -> Verdict:
    """The verdict of the first round in which the bug was caught.

    Raises:
        AssertionError: it was caught in none.
    """
    verdicts = []
    for _ in range(ROUNDS):
        verdict = play(scene(**options))
        if caught(verdict):
            return verdict
        verdicts.append(str(verdict))
    raise AssertionError(f"not caught in {ROUNDS} rounds: {verdicts}")


def judged_as_it_stands(played: Scene) -> Verdict:
    """The oracle's word without waiting for the group's offset, which the bug may have moved back."""
    played.fleet.stop()
    return judge(played.round, played.input.read(), played.fleet.data_dirs)


def test_oracle_imports_nothing_of_the_product() -> None:
    """What the product gets wrong the oracle must not get wrong in the same way."""
    for module in (oracle, cluster):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {
            name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
        }
        assert not [
            name for name in imported if name.split(".")[0] in {"stream", "models", "aiokafka", "faust"}
        ]


def test_missing_fence_is_caught(scene: SceneFactory) -> None:
    """Without a fence a paused worker that wakes up commits over its heir's rows."""

    def play(played: Scene) -> Verdict:
        zombie = played.fleet.start("A", "--stop-at", "scored", "--stop-after", "10")
        played.drive(1500, rate=500)
        zombie.await_line("injected stop")
        del played.fleet.workers["A"]
        played.fleet.start("B")
        played.settle()
        zombie.signal(signal.SIGCONT)
        zombie.await_line("continued")
        time.sleep(2)  # its commit
        zombie.kill()
        return judged_as_it_stands(played)

    # One partition: a transaction that another one had open would keep the heir waiting for the broker to end it.
    first_caught(scene, play, partitions=1, switches=["--planted", "no-fence"])


def test_position_read_before_the_fence_is_caught(scene: SceneFactory) -> None:
    """A commit in flight when the position is read, and through before the fence, is processed again."""

    def play(played: Scene) -> Verdict:
        played.drive(1000)
        played.drove()
        # With one partition its commits are in order: it stops in the 11th and ends right after that.
        stop, end = (
            ("--stop-at", "before commit", "--stop-after", "10"),
            ("--exit-at", "committed", "--exit-after", "10"),
        )
        predecessor = played.fleet.start("A", *stop, *end)
        predecessor.await_line("injected stop")
        del played.fleet.workers["A"]
        heir = played.fleet.start("B")
        heir.await_line("position read before the fence")
        predecessor.signal(signal.SIGCONT)
        predecessor.process.wait(20)
        return played.judged()

    verdict = first_caught(scene, play, partitions=1, switches=["--planted", "offset-before-fence"])
    assert verdict.repeats > 0, str(verdict)


def test_uncommitted_restore_is_caught(scene: SceneFactory) -> None:
    """Rows of an aborted transaction, once restored, stand for events that were never processed."""

    def play(played: Scene) -> Verdict:
        played.drive(1000)
        played.drove()
        played.fleet.start("A", "--exit-at", "before commit", "--exit-after", "10").process.wait(60)
        return played.judged()

    verdict = first_caught(scene, play, switches=["--planted", "restore-uncommitted"])
    assert verdict.lost > 0, str(verdict)


def test_opening_before_the_rows_are_verified_is_caught(scene: SceneFactory) -> None:
    """Events that are processed while the restore still runs meet users without a past."""

    def play(played: Scene) -> Verdict:
        played.fleet.start("A")
        played.drive(600)
        played.settle()
        played.fleet.workers.pop("A").terminate()
        played.fleet.wipe("A")
        played.fleet.start("A")
        played.drive(600)
        return played.judged()

    verdict = first_caught(scene, play, switches=["--planted", "open-before-verify"])
    assert verdict.contradicting > 0, str(verdict)


def test_rows_applied_before_the_commit_are_caught(scene: SceneFactory) -> None:
    """A store that holds rows of an aborted transaction counts their events twice, or takes them for repeats."""

    def play(played: Scene) -> Verdict:
        played.drive(1000)
        played.drove()
        played.fleet.start("A", "--exit-at", "before commit", "--exit-after", "10").process.wait(60)
        return played.judged()

    verdict = first_caught(scene, play, switches=["--planted", "apply-before-commit"])
    assert verdict.contradicting + verdict.lost > 0, str(verdict)


def test_vanished_chunk_is_caught(scene: SceneFactory) -> None:
    """Records that vanish between fetch and decode are lost although every position is right."""

    def play(played: Scene) -> Verdict:
        played.fleet.start("A")
        played.drive(2000, rate=500)
        return played.judged()

    verdict = first_caught(scene, play, switches=["--planted", "drop-chunk"])
    assert verdict.lost > 0, str(verdict)


def test_skipped_chunk_ends_the_process_and_loses_nothing(scene: SceneFactory) -> None:
    """The engine's own defence: a chunk that does not start where the one before ended is not processed."""
    played = scene()
    skipping = played.fleet.start("A", "--planted", "skip-chunk")
    played.drive(2000, rate=500)
    assert skipping.process.wait(60) == 70
    assert "but the one before ended at" in skipping.said("process ended")[0]["message"]
    played.assert_exact()


def test_missing_cleanse_is_caught(mortal_scene: SceneFactory) -> None:
    """The next commit of the same id publishes a forgotten transaction's records."""

    def play(played: Scene) -> Verdict:
        played.drive(500)
        played.fleet.start("A")
        played.settle()
        played.fleet.workers.pop("A").terminate()
        # In the predictions only: one in the changelog would be found by the wait for its last stable offset.
        played.forget_transaction([played.round.predictions])
        played.drive(500)
        played.fleet.start("A")
        return played.judged()

    verdict = first_caught(mortal_scene, play, switches=["--planted", "no-cleanse"])
    assert verdict.contradicting > 0, str(verdict)
