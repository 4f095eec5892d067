"""Another model in running workers, on a real broker: nothing lost, nothing twice, each event scored by one model."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from models.errors import ArtefactError
from models.registry import untrained
from stream.audit import audit, read_topic
from stream.broker.server_settings import free_port
from stream.demo import Worker
from stream.model_store import activate, activations, announce, checked
from stream.settings import Settings
from stream.stage import FENCE_KEY
from tests.broker.conftest import Make
from tests.broker.test_pipeline import click, drained, send, traffic

CATEGORIES = tuple(f"c{number}" for number in range(12))
pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store: the worker's first LSTM and one retrained, a GRU, and a transformer with other actions."""
    folder = tmp_path_factory.mktemp("models")
    untrained(folder, categories=CATEGORIES, name="shop", version="1")
    untrained(folder, categories=CATEGORIES, name="shop", version="2", seed=2)
    untrained(folder, categories=CATEGORIES[:5], name="gru", version="1", seed=3, architecture="gru")
    actions = ("purchase", "dance", "cart", "click", "view")
    untrained(
        folder,
        categories=CATEGORIES,
        name="former",
        version="1",
        seed=4,
        architecture="transformer",
        actions=actions,
    )
    return folder


@pytest.fixture(scope="module")
def model(root: Path) -> Path:
    """The configured model."""
    return root / "shop" / "1"


class Load(threading.Thread):
    """Steady traffic of 60 users until it is told to end."""

    def __init__(self, settings: Settings, per_s: int = 400):
        super().__init__(daemon=True)
        self.sent = 0
        self._settings, self._per_s = settings, per_s
        self._ended = threading.Event()

    def run(self) -> None:
        quiet = {"enable.idempotence": True, "partitioner": "murmur2_random", "log_level": 0}
        producer = Producer({**self._settings.kafka.librdkafka(), **quiet})
        rng = random.Random(7)
        while not self._ended.wait(0.02):
            for _ in range(self._per_s // 50):
                user = f"u{rng.randrange(60)}"
                event = click(rng, self.sent, user, 1_735_000_000_000 + self.sent * 700)
                producer.produce(self._settings.clicks_topic, json.dumps(event).encode(), user.encode())
                self.sent += 1
            producer.poll(0)
        assert producer.flush(30) == 0

    def end(self) -> None:
        self._ended.set()
        self.join(40)


@pytest.fixture
def load(settings: Settings) -> Iterator[Load]:
    running = Load(settings)
    running.start()
    yield running
    running.end()


def until(worker: Worker, reached: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Until something is true of the worker."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        worker.check()
        assert time.monotonic() < deadline, worker.log.read_text()
        time.sleep(0.05)


def wait_for(worker: Worker, model: str) -> None:
    """Until the worker serves the model."""
    until(worker, lambda: worker.stats().get("model") == model)


def served(settings: Settings) -> dict[int, list[tuple[int, str]]]:
    """Source offset and model of each prediction, by partition, in the order of the offsets."""
    found: dict[int, list[tuple[int, str]]] = {}
    for message in read_topic(settings.kafka.librdkafka(), settings.predictions_topic):
        if message.key() != FENCE_KEY:
            value: dict[str, Any] = json.loads(message.value() or b"")
            place = value["source"]
            label = f"{value['model']['name']}/{value['model']['version']}"
            found.setdefault(place["partition"], []).append((place["offset"], label))
    return {partition: sorted(entries) for partition, entries in found.items()}


def runs(entries: list[tuple[int, str]]) -> list[str]:
    """The models in the order in which they scored, each stretch once."""
    return [label for place, (_, label) in enumerate(entries) if not place or entries[place - 1][1] != label]


def assert_once(settings: Settings) -> None:
    found = audit(
        settings.kafka.librdkafka(),
        settings.clicks_topic,
        settings.predictions_topic,
        settings.dead_letters_topic,
    )
    assert (found.missing, found.twice) == ([], [])


def log_lines(worker: Worker, event: str) -> list[str]:
    return [line for line in worker.log.read_text().splitlines() if event in line]


def activation_counts(worker: Worker) -> dict[str, float]:
    page = worker.get("/metrics")[1].decode()
    lines = [line for line in page.splitlines() if line.startswith("foreclick_model_activations_total{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_models_are_exchanged_under_load_and_back(
    settings: Settings,
    start: Make,
    load: Load,
    root: Path,
) -> None:
    """LSTM, retrained, GRU, transformer with other actions, and back: every partition in that order."""
    worker = start()
    order = ["shop/1", "shop/2", "gru/1", "former/1", "shop/1"]
    for label in order[1:]:
        time.sleep(1)
        activate(settings, label, root, "test")
        wait_for(worker, label)
    time.sleep(1)
    load.end()
    drained(settings, worker)
    assert_once(settings)
    by_partition = served(settings)
    assert len(by_partition) == 3
    for entries in by_partition.values():
        assert runs(entries) == order
    assert activation_counts(worker) == {"activated": 4, "refused": 0}


def test_a_killed_worker_comes_back_with_the_activated_model(
    settings: Settings,
    start: Make,
    load: Load,
    root: Path,
    tmp_path: Path,
) -> None:
    """SIGKILL after the activation, wherever the exchange stands: the heir has an empty disk and loses nothing."""
    first = start()
    for number, label in enumerate(("gru/1", "former/1")):
        time.sleep(1)
        activate(settings, label, root, "test")
        time.sleep(0.15 * (number + 1))  # in the middle of loading, or of the first rebuilt rows
        first._process.kill()
        first._process.wait()
        first = start(data_dir=tmp_path / f"heir-{number}")
        assert first.stats()["model"] == label
    load.end()
    drained(settings, first)
    assert_once(settings)
    for entries in served(settings).values():
        found = runs(entries)  # a heir may be killed before it has scored in every partition
        assert found == [label for label in ("shop/1", "gru/1", "former/1") if label in found]
        assert found[-1] == "former/1"


def test_two_workers_exchange_and_share_rows(
    settings: Settings,
    start: Make,
    load: Load,
    root: Path,
    tmp_path: Path,
) -> None:
    """Every worker reads the topic itself; a partition that moves meanwhile takes rows of both models along."""
    first = start()
    http = settings.http.model_copy(update={"port": free_port()})
    second = start(data_dir=tmp_path / "second", http=http)
    activate(settings, "gru/1", root, "test")
    wait_for(first, "gru/1")
    wait_for(second, "gru/1")
    second.stop()
    load.end()
    drained(settings, first)
    assert_once(settings)
    assert set(Counter(label for entries in served(settings).values() for _, label in entries)) == {
        "shop/1",
        "gru/1",
    }


def test_what_cannot_be_served_is_refused_and_the_old_one_stays(
    settings: Settings, start: Make, tmp_path: Path
) -> None:
    """Damaged, another's, missing: log and metric say why, and scoring goes on, also after a restart."""
    for name, seed in (("good", 5), ("bad", 6), ("other", 7)):
        untrained(tmp_path, categories=CATEGORIES, name=name, version="1", seed=seed)
    worker = start()
    activate(settings, "good/1", tmp_path, "test")
    wait_for(worker, "good/1")
    whole, _ = checked(settings, "bad/1", tmp_path, "mary")
    other, _ = checked(settings, "other/1", tmp_path, "mary")
    weights = bytearray((tmp_path / "bad/1/model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "bad/1/model.safetensors").write_bytes(weights)
    for refused in (whole, replace(other, sha256="cd" * 32), replace(other, name="nobody")):
        announce(settings, refused)
    send(settings, traffic(300))
    drained(settings, worker)
    until(worker, lambda: activation_counts(worker) == {"activated": 1, "refused": 3})
    worker.stop()
    again = start()
    assert again.stats()["model"] == "good/1"
    assert activation_counts(again) == {"activated": 1, "refused": 3}
    for each in (worker, again):
        lines = log_lines(each, "model refused")
        assert len(lines) == 3
        for reason in ("the weights were changed", "another model under the same name", "does not exist"):
            assert sum(reason in line and "mary" in line for line in lines) == 1
    send(settings, traffic(300, first=300))
    drained(settings, again)
    assert_once(settings)
    assert {label for entries in served(settings).values() for _, label in entries} == {"good/1"}


def test_the_command_refuses_what_the_workers_would_refuse(settings: Settings, tmp_path: Path) -> None:
    """Nothing is written for a damaged model, nor for another shop's."""
    bad = untrained(tmp_path, name="bad", version="1")
    (bad / "manifest.json").write_text("{")
    with pytest.raises(ArtefactError, match="truncated or damaged"):
        activate(settings, "bad/1", tmp_path, "test")
    untrained(tmp_path, name="foreign", version="1", actions=("tap", "swipe"))
    send(settings, traffic(60))
    with pytest.raises(ArtefactError, match="made for another shop"):
        activate(settings, "foreign/1", tmp_path, "test")
    assert activations(settings) == []
    activate(settings, "foreign/1", tmp_path, "test", force=True)
    assert [asked.label for asked in activations(settings)] == ["foreign/1"]
