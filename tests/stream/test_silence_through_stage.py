"""Laws of the timers of silence through the whole stage: a real store, a simulated log, kills, other settings.

What the stage says is held against the rules told event by event (``silence_reference``), whatever happens to the
process, and the index of timers against the rows.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.registry import load_artefact, untrained
from models.runtime import StepEngine
from stream import rounds, silence
from stream.churn_alerts import ChurnAlertRenderer
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.engine.restore import restore
from stream.engine.store import Store
from stream.model_step import ServedModel
from stream.offline import score_batches
from stream.partition_names import MODEL_KEY, NAME_KEY, PartitionNames
from stream.rounds import ClicksModel
from stream.rows import LEAST, SAID, RowLayout
from stream.scoring import ClicksRequest
from stream.settings import load_settings
from stream.silence import TIMER_PREFIX, PartitionTimers, moved_timers, said_end, timers_of
from stream.stage import FIRST_MOMENT, SOURCE_KEY, Chunk, Moment, Rendered, SourceMark, Stage
from tests.chaos.planted_product import moment_only_in_memory
from tests.stream.silence_steps import NOW_MS, TEN_MINUTES_MS, Expected, Step
from tests.stream.simulated_log import SimulatedBroker, SimulatedLog, Written

USERS = ["a", "b", "ab", "c", "é"]
#: By whether alerts are on.
SETTINGS = {on: load_settings({}, churn__alerts=on, predictions="last") for on in (True, False)}
OFFSET_OF_MARK = 32  # where a mark went on to say what was said


class Act(NamedTuple):
    """A micro-batch and what happens to the process meanwhile and after it.

    Attributes:
        size: records.
        passed: to where time is moved while the micro-batch waits for the model, in ten minutes; 0 for nowhere.
        killed: at which step the process ends, if any.
        then: how the next process finds the disk, None where this one goes on.
    """

    size: int
    passed: int = 0
    killed: str | None = None
    then: str | None = None


KINDS = [*["event"] * 8, "repeat", "replayed", "broken", "tombstone", "tombstone"]
STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(KINDS),
        st.sampled_from(USERS),
        st.one_of(st.integers(1, 60), st.just(900)),  # what is ahead of the clock is no event
        st.sampled_from([0, 1_800, 1_801, 4_000, 9_000]),
    ),
    max_size=24,
)
ACTS = st.lists(
    st.builds(
        Act,
        st.integers(0, 6),
        st.sampled_from([0, 0, 0, 20, 45, 90]),
        st.sampled_from([None, None, None, "scored", "committed"]),
        st.sampled_from(
            [None, None, None, "same", "kept", "older", "empty", "build before", "switched", "model"]
        ),
    ),
    max_size=8,
)


class Killed(Exception):
    """Stands for the end of the process."""


class Told:
    """``stream.silence_fold.Deadlines`` by offset: the step's own silence, or a share of it beforehand."""

    steps: list[Step]
    share: float

    def __init__(self, renderer: Any, folded: Any, scores: Any) -> None:
        self._folded = folded

    def least(self, events: np.ndarray) -> np.ndarray:
        known, _ = self.after(events)
        return np.where(known > 0, (known * self.share).astype(np.int64), int(9_999 * self.share))

    def after(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._of(self._folded.offsets()[self._folded.folded.applied][events])

    def carried(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._of(self._folded.position[rows])

    def _of(self, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.array([self.steps[at].silence_s for at in offset.tolist()], np.int64), offset.astype(
            np.int64
        )


class Machine:
    """One partition's life on one machine, its log and what is kept of its disk."""

    def __init__(self, models: list[ServedModel], steps: list[Step], folder: Path) -> None:
        self.models = models
        self.expected = Expected(steps)
        self.expected.seen = set()
        self.broker = SimulatedBroker()
        for step, (value, headers) in zip(steps, self.expected.values, strict=True):
            self.broker.produce(step.user.encode(), value)  # type: ignore[arg-type]  # a tombstone
            self.broker.source[-1].headers = headers
        self.alerts, self.passed_ms, self.values_are_known = True, 0, True
        self._now, self._kept = folder / "now", folder / "kept"

    async def start(self) -> None:
        """Fence, restore, open: as ``stream.engine.partition`` does."""
        self.log = SimulatedLog(self.broker)
        await self.log.fence()
        self.store = Store(self._now, moved_timers)
        self.store.open()
        await restore(self.store, self.log, NOW_MS, lambda _: None)
        mark = self.store.mark()
        options = SETTINGS[self.alerts]
        together = clicks_rounds(options, lambda: self.models[0], topic="clicks", topic_id=b"s" * 16)
        self.meanwhile_ms, self.killed_at = 0, None

        async def score(request: ClicksRequest) -> Rendered:
            self.pass_time(self.meanwhile_ms)
            folded = together.fold([request])
            return together.render(folded, together.step(folded))[0]

        watermark_ms, said_before = (mark.watermark_ms, mark.said_before) if mark else (0, FIRST_MOMENT)
        work = clicks_work(
            options,
            topic="clicks",
            topic_id=b"s" * 16,
            partition=0,
            score=score,
            names=PartitionNames([*self.store.reserved(NAME_KEY), *self.store.reserved(MODEL_KEY)]),
            timers=PartitionTimers(self.store, watermark_ms, said_before) if self.alerts else None,
        )
        self.stage: Stage[Any] = Stage(
            work,
            self.log,
            self.store,
            lambda: NOW_MS,
            mark.next_offset if mark else 0,
            self.broker.source_id,
            self.broker.changelog_id,
            watermark_ms,
            said_before,
            self._probe,
        )
        self.passed_ms = 0

    def _probe(self, step: str) -> None:
        if step == self.killed_at:
            raise Killed

    def pass_time(self, time_ms: int) -> None:
        """As an idle partition is moved on; it is known in memory only until a micro-batch says it."""
        self.stage.pass_time(time_ms)
        if self.alerts:
            self.passed_ms = max(self.passed_ms, time_ms)

    async def act(self, act: Act) -> None:
        start, passed_ms = self.stage.next_offset, self.passed_ms
        self.meanwhile_ms, self.killed_at = act.passed * TEN_MINUTES_MS, act.killed
        chunk = self.broker.source[start : start + act.size]
        end, alive = start + len(chunk), True
        if chunk or self.stage.due():
            try:
                await self.stage.micro_batch([Chunk(chunk, start, end)] if chunk else [])
            except Killed:
                alive = False
            if alive or act.killed == "committed":
                self.expected.take(start, end, passed_ms, self.alerts)
        else:
            self.pass_time(self.meanwhile_ms)
        if act.then is not None or not alive:
            await self.restart(act.then)
        self.judge_index()

    async def restart(self, then: str | None) -> None:
        self.store.close()
        if then == "kept":
            shutil.rmtree(self._kept, ignore_errors=True)
            shutil.copytree(self._now, self._kept)
        elif then == "older" and self._kept.exists():
            shutil.rmtree(self._now)
            shutil.copytree(self._kept, self._now)
        elif then in ("older", "empty"):
            shutil.rmtree(self._now)
        elif then == "switched":
            self.alerts = not self.alerts
        elif then == "model":
            self.models = self.models[::-1]
        elif then == "build before":
            await self._as_the_build_before()
        await self.start()

    async def _as_the_build_before(self) -> None:
        """Its rows noted what was said, its mark did not, and its timers had no values."""
        await self.start()
        mark = self.store.mark()
        if mark is not None:
            artefact = self.models[0].artefact
            layout = RowLayout(len(artefact.actions), artefact.state_width, artefact.window)
            changed: list[tuple[bytes, bytes]] = []
            for key, raw in self.store.items():
                row = layout.unpack([raw])
                silence_s, said = int(row["silence_s"][0]), int(row["said"][0])
                deadline = Moment(int(row["last_ms"][0]) + 1000 * silence_s, key)
                if silence_s and not said & LEAST and deadline < mark.said_before:
                    row["said"] = SAID
                    changed.append((key, layout.pack(row)[0]))
            changed.append((SOURCE_KEY, mark.encode()[:OFFSET_OF_MARK]))
            for key, value in changed:
                self.broker.changelog.append(Written(key, value, self.broker.epoch, "committed"))
            position = len(self.broker.changelog) - 1
            self.store.apply(changed, position, self.broker.changelog_id, NOW_MS)
            for timer, _ in list(self.store.reserved(TIMER_PREFIX)):
                self.store.database[timer] = b""
            self.values_are_known = False
        self.store.close()

    def judge_index(self) -> None:
        """Every timer is a row's, and of those that were not said none is missing."""
        rows = dict(self.store.items())
        wanted = dict(filter(None, timers_of(list(rows), list(rows.values()))))
        held = dict(self.store.reserved(TIMER_PREFIX))
        first = said_end(self.store.said_before())
        assert held.keys() <= wanted.keys()
        assert held.keys() >= {timer for timer in wanted if timer >= first}
        if self.values_are_known:
            assert held == {timer: wanted[timer] for timer in held}

    def said(self) -> list[tuple[bytes | None, bytes | None]]:
        return [(key, value) for key, value in self.broker.outputs if b'"kind":"churn.' in (value or b"")]

    def wanted(self) -> list[tuple[bytes, bytes]]:
        alerts: ChurnAlertRenderer | None = _of_model(self.models[0]).alerts
        assert alerts is not None
        return [(key, value) for key, value, _ in alerts.messages(self.expected.said, 0)]


def _of_model(served: ServedModel) -> ClicksModel:
    return clicks_rounds(SETTINGS[True], lambda: served, topic="clicks", topic_id=b"s" * 16)._model


async def lived(machine: Machine, acts: list[Act]) -> None:
    """All acts, the records that are left, and whatever is still due; alerts are on at the end."""
    await machine.start()
    for act in acts:
        await machine.act(act)
    if not machine.alerts:
        await machine.restart("switched")
    await machine.act(Act(len(machine.broker.source)))
    for _ in islice(iter(machine.stage.due, False), 99):
        await machine.act(Act(0))
    assert not machine.stage.due()
    machine.expected.take(0, 0, machine.expected.rules.watermark_ms, True)
    machine.store.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[ServedModel]:
    """Two whose rows are of different layouts."""
    root = tmp_path_factory.mktemp("models")
    artefacts = [load_artefact(untrained(root, name=f"m{width}", hidden=width)) for width in (16, 32)]
    return [ServedModel(artefact, StepEngine(artefact, "cpu")) for artefact in artefacts]


def by_user(said: list[Any]) -> dict[Any, list[Any]]:
    return {user: [one for one in said if one[0] == user] for user in {one[0] for one in said}}


def events(users: str, ten_minutes: int) -> list[Step]:
    return [Step("event", user, ten_minutes, 1_800) for user in users]


# Time passes while a micro-batch without the timers that this makes due waits for the model.
@example(steps=events("a", 1), acts=[Act(1, passed=20)], most=4096, share=0.0)
@example(steps=events("ab", 1), acts=[Act(2), Act(0, passed=5), Act(0, passed=20)], most=1, share=0.3)
# A tombstone ends a silence that ran out, and others' timers come before its own.
@example(
    steps=[*events("abc", 1), *events("é", 10), Step("tombstone", "c", 10, 0)],
    acts=[Act(3), Act(2)],
    most=1,
    share=0.0,
)
@settings(deadline=None, max_examples=30)
@given(steps=STEPS, acts=ACTS, most=st.sampled_from([1, 2, 4096]), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_whatever_happens_to_the_process_the_same_is_said(
    models: list[ServedModel], steps: list[Step], acts: list[Act], most: int, share: float
) -> None:
    """Each alert once, byte for byte and of each user in order; of all users where none has to wait for the next."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(silence, "MOST_DUE", most)
        patch.setattr(rounds, "_Silences", type("Steps", (Told,), {"steps": steps, "share": share}))
        machine = Machine(models, steps, Path(folder))
        asyncio.run(lived(machine, acts))
        said, wanted = machine.said(), machine.wanted()
        assert by_user(said) == by_user(wanted)
        if most == 4096:
            assert said == wanted
        moved = any(act.passed or act.then == "switched" for act in acts)
        if not moved and max((step.ten_minutes for step in steps), default=0) < 100:
            assert by_user(offline(models[0], machine)) == by_user(wanted)


def test_what_is_forgotten_with_the_process_is_said_again(models: list[ServedModel], tmp_path: Path) -> None:
    """The law can fail: with a mark that holds no moment, an empty disk brings back what was said."""
    steps, said = events("a", 1), {}
    for planted in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rounds, "_Silences", type("Steps", (Told,), {"steps": steps, "share": 0.0}))
            patch.setattr(SourceMark, "encode", SourceMark.encode)  # so that it comes back
            if planted:
                moment_only_in_memory()
            machine = Machine(models, steps, tmp_path / str(planted))
            asyncio.run(lived(machine, [Act(1), Act(0, passed=20), Act(0, then="empty")]))
            said[planted] = len(machine.said())
    assert said == {False: 1, True: 2}


def offline(served: ServedModel, machine: Machine) -> list[tuple[bytes | None, bytes | None]]:
    """What is said of the same records without a broker."""
    batches = score_batches(
        machine.broker.source,
        SETTINGS[True],
        served.artefact,
        served.engine,
        "clicks",
        topic_id=b"s" * 16,
        micro_batch=5,
    )
    return [
        (key, value)
        for one in batches
        for key, value, _ in one.messages.get(SETTINGS[True].alerts_churn_topic, ())
    ]
