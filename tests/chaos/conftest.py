"""What the chaos tests share: a round with its traffic and workers, and a broker that may be killed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from models.errors import ForeclickError
from stream.broker import Broker
from tests.chaos.cluster import Round
from tests.chaos.driver import Driver
from tests.chaos.fleet import Fleet
from tests.chaos.forgotten import Record, half_end
from tests.chaos.oracle import Input, judge
from tests.chaos.verdict import Verdict

SESSION_TIMEOUT_S = 3.0  # the shortest that the engine's settings allow: a test waits for it after every kill


class Scene:
    """One round played step by step: topics, traffic, workers, and in the end the oracle's word.

    Micro-batches are small (``--batch 25``), so that a few thousand events make many transactions.
    """

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        partitions: int = 2,
        switches: Sequence[str] = (),
        **fleet: bool,
    ):
        self.round = Round(bootstrap, f"fault-{uuid.uuid4().hex[:10]}", partitions)
        self.round.create()
        self.fleet = Fleet(self.round, folder, ["--batch", "25", *switches], SESSION_TIMEOUT_S, **fleet)
        self.input = Input(self.round)
        self._sequences: dict[int, int] = {}
        self._drives = 0
        self._driver: Driver | None = None

    def drive(self, events: int, rate: float = 0, users: int = 60, **shares: float) -> None:
        """Send events in the background; without a rate, all at once."""
        self.drove()
        self._drives += 1
        self._driver = Driver(
            self.round.bootstrap,
            self.round.source,
            events=events,
            rate=rate,
            users=users,
            seed=self._drives,
            sequences=self._sequences,
            **shares,
        )
        self._driver.start()

    def poison(self, count: int) -> None:
        """Hostile records among the events that are being sent."""
        assert self._driver is not None
        self._driver.poison(count)

    def drove(self) -> None:
        """Wait until the broker has all of them."""
        if self._driver is not None:
            self._driver.finish()
            self._driver = None

    def recreate_source(self) -> None:
        """Delete and recreate the topic, after the oracle has read what it held."""
        self.drove()
        self.input.read()
        self.round.recreate_source()

    def forget_transaction(self, topics: Sequence[str]) -> None:
        """Leave an open transaction of partition 0's id in these topics that the coordinator does not know.

        It holds what must never be seen: a prediction that says nonsense, a row of nobody.
        """
        source_id = self.round.topic_id(self.round.source).hex()
        headers = [("ce_id", f"{source_id}/0/{self.round.ends(self.round.source)[0]}/prediction/u0".encode())]
        records = [Record(topic, 0, b"u0", b"{}" + bytes(198), headers) for topic in topics]
        asyncio.run(half_end(self.round.bootstrap, self._transactional_id, [], records))
        for topic in topics:
            assert self.round.ends(topic, committed=True)[0] < self.round.ends(topic)[0]

    def forget_outputs(self) -> bytes:
        """Leave an output of the newest transaction of partition 0 without its marker; its value.

        The rows of that transaction, here of nobody, are committed.
        """
        value = b'{"forgotten": true}' + bytes(180)
        rows = Record(self.round.changelog, 0, b"\0nobody", b"", [])
        record = Record(self.round.predictions, 0, b"u0", value, [])
        asyncio.run(half_end(self.round.bootstrap, self._transactional_id, [rows], [record]))
        return value

    @property
    def _transactional_id(self) -> str:
        return f"{self.round.app_id}-{self.round.source}-0"

    def settle(self) -> None:
        """Everything sent is committed."""
        self.drove()
        if not self.fleet.catch_up():
            ends = self.round.ends(self.round.source)
            pytest.fail(f"committed {self.round.committed()} of {ends}; {self.fleet.last_words()}")

    def judged(self) -> Verdict:
        """Everything committed, the workers stopped in order, everything compared."""
        self.settle()
        self.fleet.stop()
        return judge(self.round, self.input.read(), self.fleet.data_dirs)

    def assert_exact(self) -> Verdict:
        """Nothing lost, nothing twice, nothing contradicting, no row different anywhere."""
        verdict = self.judged()
        assert verdict.events > 0
        assert verdict.stores > 0
        assert verdict.exact(), str(verdict)
        assert verdict.repeats == 0, str(verdict)
        return verdict

    def end(self) -> None:
        """No process and no topic stays behind."""
        self.fleet.end()
        self.round.delete()


@pytest.fixture
def scene(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """A factory of scenes on the session's broker."""
    yield from _scenes(broker, tmp_path)


@pytest.fixture(scope="session")
def mortal_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of our own that may be killed, whatever address stands in the environment."""
    try:
        running = Broker(tmp_path_factory.mktemp("mortal-broker"), environment={})
        running.start()
    except ForeclickError as error:
        pytest.fail(str(error), pytrace=False)
    with running:
        yield running


@pytest.fixture
def mortal_scene(mortal_broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """A factory of scenes on the broker that may be killed."""
    yield from _scenes(mortal_broker, tmp_path)


def _scenes(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def create(**options: object) -> Scene:
        folder = tmp_path / str(len(scenes))
        scenes.append(Scene(broker.bootstrap_servers, folder, **options))  # type: ignore[arg-type]
        return scenes[-1]

    yield create
    for played in scenes:
        played.end()
