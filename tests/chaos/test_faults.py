"""Each fault once, on a real broker, with the oracle's word at the end. `make chaos` tries them in random order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from stream.broker import Broker
from tests.chaos.conftest import SESSION_TIMEOUT_S, Scene
from tests.chaos.faults import last_words
from tests.chaos.oracle import read_committed
from tests.chaos.traps import BATCH_STEPS, INJECTED_EXIT, OPENING_STEPS, STEPS
from tests.chaos.verdict import Verdict

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SceneFactory = Callable[..., Scene]
TAKEN_OVER = "Another worker has taken over"
LANES = 3  # rounds side by side: most of a round is waiting for a dead worker's session


# ---------------------------------------------------------------------- an exit at every step


def play_exit(bootstrap: str, folder: Path, step: str) -> tuple[int, Verdict]:
    """One worker that exits at the step, and its successors; gives the exit code and the verdict."""
    scene = Scene(bootstrap, folder)
    try:
        scene.drive(1000)
        scene.drove()
        if step in OPENING_STEPS:  # rows to restore and a position to verify, left by somebody killed before
            scene.fleet.start("A", "--exit-at", "applied", "--exit-after", "8").process.wait(60)
        after = "6" if step in BATCH_STEPS else "0"
        doomed = scene.fleet.start("A", "--exit-at", step, "--exit-after", after)
        if step == "closing":
            doomed.await_line("opened")
            doomed.signal(signal.SIGTERM)
        code = doomed.process.wait(60)
        scene.fleet.start("A")
        return code, scene.judged()
    finally:
        scene.end()


@pytest.fixture(scope="module")
def exits(
    broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[int, Verdict]]]]:
    """The rounds of all steps, a few at a time."""
    folder = tmp_path_factory.mktemp("exits")
    with ThreadPoolExecutor(LANES) as lanes:
        yield {
            step: lanes.submit(play_exit, broker.bootstrap_servers, folder / str(number), step)
            for number, step in enumerate(STEPS)
        }


@pytest.mark.parametrize("step", STEPS)
def test_exit_at_a_step_changes_nothing(exits: dict[str, Future[tuple[int, Verdict]]], step: str) -> None:
    """A process that ends at any step of the protocol leaves a state from which the next one goes on exactly."""
    code, verdict = exits[step].result()
    assert code == INJECTED_EXIT
    assert verdict.events == 1000
    assert verdict.exact(), str(verdict)
    assert verdict.repeats == 0, str(verdict)


# ---------------------------------------------------------------------- signals and members


def test_kill_9_under_load_changes_nothing(scene: SceneFactory) -> None:
    """Of two workers one is killed; the other and its successor finish the work."""
    played = scene(partitions=4)
    first, second = played.fleet.start("A"), played.fleet.start("B")
    played.drive(3000, rate=600)
    first.await_line("opened")
    second.await_line("opened")
    first.kill()
    played.assert_exact()


def test_sigterm_ends_in_order_and_hands_over(scene: SceneFactory) -> None:
    """A worker told to stop ends its transactions, leaves the group, exits 0, and the others go on at once."""
    played = scene(partitions=4)
    first, second = played.fleet.start("A"), played.fleet.start("B")
    played.drive(3000, rate=600)
    first.await_line("opened")
    second.await_line("opened")
    del played.fleet.workers["A"]  # nobody starts it again
    assert first.terminate()
    assert first.process.returncode == 0
    second.await_line("partitions assigned", generation=second.said("partitions assigned")[-1]["generation"])
    played.assert_exact()


def test_joining_and_leaving_under_load_changes_nothing(scene: SceneFactory) -> None:
    """Workers come and go while events flow; every partition moves with its rows."""
    played = scene(partitions=4)
    first = played.fleet.start("A")
    played.drive(6000, rate=400)
    first.await_line("opened", count=4)
    second = played.fleet.start("B")
    second.await_line("opened")
    third = played.fleet.start("C")
    third.await_line("opened")
    for leaver in ("A", "B"):
        played.fleet.workers.pop(leaver).signal(signal.SIGTERM)
        time.sleep(1)
    played.assert_exact()
    assert third.said("partitions assigned")[-1]["partitions"] == [0, 1, 2, 3]
    first.process.wait(20)
    second.process.wait(20)


@pytest.mark.parametrize("step", ["scored", "before commit"])
def test_zombie_is_fenced_and_exits(scene: SceneFactory, step: str) -> None:
    """A worker paused past its session, also inside an open transaction, commits nothing when it wakes up."""
    played = scene()
    played.drive(3000, rate=500)
    zombie = played.fleet.start("A", "--stop-at", step, "--stop-after", "10")
    zombie.await_line("injected stop")
    heir = played.fleet.start("B")
    heir.await_line("opened", count=2, timeout_s=SESSION_TIMEOUT_S + 60)
    time.sleep(0.5)  # the heir has committed
    del played.fleet.workers["A"]
    zombie.signal(signal.SIGCONT)
    assert zombie.process.wait(20) == 70
    assert TAKEN_OVER in zombie.said("process ended")[0]["message"]
    played.assert_exact()


# ---------------------------------------------------------------------- data directories


def lived(played: Scene) -> None:
    """One life of worker A that ends in order with everything committed."""
    played.drive(1000)
    played.fleet.start("A")
    played.settle()
    assert played.fleet.workers["A"].terminate()
    del played.fleet.workers["A"]


def test_empty_data_dir_is_restored_from_the_changelog(scene: SceneFactory) -> None:
    """Rows are derived data: a worker with an empty disk goes on where the last one stopped."""
    played = scene()
    lived(played)
    played.fleet.wipe("A")
    played.drive(1000)
    played.fleet.start("A")
    played.assert_exact()


def test_old_data_dir_is_brought_up_to_date(scene: SceneFactory) -> None:
    """A data directory from earlier (a restored backup, a worker long away) is continued from its own position."""
    played = scene()
    lived(played)
    played.fleet.copy("A")
    lived(played)
    played.fleet.put_back("A")
    played.drive(1000)
    worker = played.fleet.start("A")
    played.assert_exact()
    assert not worker.said("local rows wiped")


def test_data_dir_ahead_of_the_changelog_is_wiped(scene: SceneFactory) -> None:
    """Rows beyond the changelog's end are of no committed transaction: they go, and the log fills the store."""
    played = scene()
    lived(played)
    assert played.fleet.run_ahead("A") == 2
    played.drive(1000)
    worker = played.fleet.start("A")
    played.assert_exact()
    assert [line["because"] for line in worker.said("local rows wiped")]
    assert all("beyond" in line["because"] for line in worker.said("local rows wiped"))


# ---------------------------------------------------------------------- topics and offsets


def test_compacted_changelog_restores_the_same_rows(scene: SceneFactory) -> None:
    """After compaction the changelog has gaps and still holds the last row of every user."""
    played = scene()
    deadline_s = time.monotonic() + 60
    played.fleet.start("A")
    while True:
        played.drive(400, rate=400)  # segments are closed by what is written after them
        played.settle()
        written = sum(played.round.ends(played.round.changelog))
        kept = sum(1 for _ in read_committed(played.round.bootstrap, played.round.changelog, 2))
        if kept < 0.5 * written:
            break
        assert time.monotonic() < deadline_s, f"{kept} of {written} records kept: the broker did not compact"
    assert played.fleet.workers["A"].terminate()
    played.fleet.wipe("A")
    played.drive(500)
    played.assert_exact()


def test_recreated_source_keeps_rows_and_starts_at_0(scene: SceneFactory) -> None:
    """A source topic deleted and created anew has another id: its offsets begin again, the users' rows do not."""
    played = scene()
    lived(played)
    played.recreate_source()
    played.drive(700)
    worker = played.fleet.start("A")
    verdict = played.assert_exact()
    assert verdict.events == 1700
    assert [line["position"] for line in worker.said("partition verified")] == [0, 0]


def test_source_recreated_under_a_worker_ends_it(scene: SceneFactory) -> None:
    """It says which topic is another one now; started again it keeps the rows and begins at 0."""
    played = scene()
    played.drive(1000)
    worker = played.fleet.start("A")
    played.settle()
    played.recreate_source()
    assert worker.process.wait(30) != 0
    assert f"Topic {played.round.source} was deleted and created anew" in last_words(worker)
    played.drive(700)
    played.fleet.start("A")
    assert played.assert_exact().events == 1700


def test_foreign_committed_offset_does_not_move_the_position(scene: SceneFactory) -> None:
    """The position is in the changelog, beside the rows: an offset set by hand is counted and not followed."""
    played = scene()
    lived(played)
    reader = Consumer({"bootstrap.servers": played.round.bootstrap, "group.id": played.round.app_id})
    reader.commit(offsets=[TopicPartition(played.round.source, p, 5) for p in range(2)], asynchronous=False)
    reader.close()
    played.drive(500)
    played.fleet.start("A")
    played.assert_exact()
    assert played.fleet.count("foreclick_position_mismatch_total") == 2


# ---------------------------------------------------------------------- the broker


def judge_after_broker_kill(played: Scene) -> None:
    """Exact in any case; repeats only where a worker counted that the broker lost a marker."""
    verdict = played.judged()
    assert verdict.exact(), str(verdict)
    assert verdict.repeats == 0 or played.fleet.count("foreclick_position_mismatch_total") > 0, str(verdict)


def test_killed_broker_changes_nothing(mortal_broker: Broker, mortal_scene: SceneFactory) -> None:
    """The broker is killed in the middle of transactions and started again; workers end or wait, and go on."""
    played = mortal_scene()
    first, second = played.fleet.start("A"), played.fleet.start("B")
    played.drive(4000, rate=400)
    first.await_line("opened")
    second.await_line("opened")
    mortal_broker.kill()
    mortal_broker.restart()
    judge_after_broker_kill(played)


def test_power_cut_changes_nothing(mortal_broker: Broker, mortal_scene: SceneFactory) -> None:
    """Broker and workers are killed together and started again."""
    played = mortal_scene()
    first, second = played.fleet.start("A"), played.fleet.start("B")
    played.drive(3000, rate=400)
    first.await_line("opened")
    second.await_line("opened")
    mortal_broker.kill()
    played.fleet.kill()
    mortal_broker.restart()
    judge_after_broker_kill(played)


def test_forgotten_transaction_is_never_published(mortal_scene: SceneFactory) -> None:
    """Records of an open transaction that the coordinator has forgotten are closed as aborted by the cleanse."""
    played = mortal_scene()
    lived(played)
    played.forget_transaction([played.round.predictions, played.round.changelog])
    played.drive(500)
    played.fleet.start("A")
    played.assert_exact()


def test_outputs_whose_marker_was_forgotten_are_published_with_their_rows(mortal_scene: SceneFactory) -> None:
    """Rows and position were committed, the outputs of the same transaction got no marker: they become visible."""
    played = mortal_scene()
    lived(played)
    said = played.forget_outputs()
    played.drive(500)
    played.fleet.start("A")
    played.settle()
    topic, partitions = played.round.predictions, played.round.partitions
    values = [message.value() for message in read_committed(played.round.bootstrap, topic, partitions)]
    assert values.count(said) == 1
