"""``foreclick worker`` as an operator meets it: how it ends, what it refuses, and the commands beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.registry import untrained
from stream.broker import Broker
from stream.broker.server_settings import free_port
from stream.broker.topics import delete_topics
from stream.settings import Settings, load_settings
from stream.topics import create, topic_specs
from tests.command_line import Ran, foreclick

pytestmark = pytest.mark.broker

READY_S = 90.0
USERS = 20


@dataclass
class Started:
    """A worker's process."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def ended(self) -> tuple[int, str, list[dict[str, str]]]:
        """Exit code, standard output, and the lines of standard error, each of which must be JSON."""
        code = self.process.wait(60)
        return code, self.out.read_text(), [json.loads(line) for line in self.err.read_text().splitlines()]


Start = Callable[..., Started]


@pytest.fixture(scope="module")
def settings(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Topics of this file, with 200 events of 20 users in the input."""
    name = f"w{uuid.uuid4().hex[:8]}"
    folder = tmp_path_factory.mktemp("worker")
    made = load_settings(
        {},
        kafka__bootstrap_servers=broker.bootstrap_servers,
        topics__prefix=f"{name}.",
        topics__partitions=2,
        app_id=name,
        data_dir=folder / "data",
        http__port=free_port(),
        model=untrained(folder / "models", hidden=16),
    )
    create(made)
    event = {"event_time_ms": 1_700_000_000_000, "action": "view"}
    log = folder / "clicks.jsonl"
    log.write_text("".join(json.dumps({"user_id": f"u{n % USERS}", **event}) + "\n" for n in range(200)))
    assert beside(made, "replay", log).code == 0
    yield made
    delete_topics(made.kafka.librdkafka(), [spec.name for spec in topic_specs(made)])


def variables(settings: Settings) -> dict[str, object]:
    return {
        "KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "TOPICS__PREFIX": settings.topics.prefix,
        "APP_ID": settings.app_id,
        "DATA_DIR": settings.data_dir,
        "HTTP__PORT": settings.http.port,
        "MODEL": settings.model,
    }


def beside(settings: Settings, *arguments: object) -> Ran:
    """Another command with the worker's settings."""
    return foreclick(*arguments, "--json", **variables(settings))


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker with flags of its own; all of them are gone after the test."""
    started: list[Started] = []

    def run(*flags: object) -> Started:
        out, err = tmp_path / f"{len(started)}.out", tmp_path / f"{len(started)}.err"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FORECLICK_")}
        environment |= {f"FORECLICK_{name}": str(value) for name, value in variables(settings).items()}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "stream.cli", "worker", *map(str, flags)],
                env=environment,
                stdout=stdout,
                stderr=stderr,
            )
        started.append(Started(process, out, err))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def wait_drained(settings: Settings, worker: Started) -> None:
    """Until every record of the input is committed."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert worker.process.poll() is None, worker.err.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{settings.http.port}/state", timeout=5) as answer:
                stats = json.load(answer)
            if (
                stats["open"] == 2
                and sum(each["next_offset"] for each in stats["partitions"].values()) >= 200
            ):
                return
        except OSError:
            pass
        time.sleep(0.1)
    pytest.fail("the worker did not read its input in time\n" + worker.err.read_text())


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_worker_cleanly(settings: Settings, start: Start, stop: signal.Signals) -> None:
    """Exit code 0, nothing on standard output, no banner and no traceback between the log lines."""
    worker = start()
    wait_drained(settings, worker)
    worker.process.send_signal(stop)
    code, out, lines = worker.ended()
    assert (code, out) == (0, "")
    # A broker that has just started may still move the groups' coordinator about: aiokafka says so and asks again.
    told = [line for line in lines if not line["event"].startswith("Marking the coordinator dead")]
    assert [line for line in told if line["level"] != "info"] == []
    assert lines[-1]["event"] == "partitions released"


def test_the_commands_beside_a_running_worker(settings: Settings, start: Start, tmp_path: Path) -> None:
    """State through its HTTP, a reset refused, and a second worker refused for each thing that it would share."""
    worker = start()
    wait_drained(settings, worker)
    shown = beside(settings, "state", "show", "u7").json
    assert (shown["user_id"], shown["events"]) == ("u7", 10)
    assert beside(settings, "state", "stats").json["open"] == 2
    assert "no row of user nobody" in beside(settings, "state", "show", "nobody").error

    refused = beside(settings, "state", "reset", "--to", "earliest", "--yes", "--data-dir", tmp_path)
    assert refused.code == 1
    assert "has 1 members" in refused.error

    code, _, lines = start("--http-port", 0).ended()
    assert code == 1
    assert f"is locked by another worker (pid {worker.process.pid})" in lines[-1]["message"]

    code, _, lines = start("--data-dir", tmp_path).ended()
    assert code == 1
    assert f"Port {settings.http.port} on 127.0.0.1 is taken" in lines[-1]["message"]
    assert "FORECLICK_HTTP__PORT" in lines[-1]["message"]

    worker.process.terminate()
    assert worker.ended()[0] == 0
    verified = beside(settings, "state", "verify").json
    assert verified["sound"], verified
    # A row of each user; of each of the two partitions the position, and the vocabularies of its model.
    assert sum(each["equal"] for each in verified["partitions"] if each["table"] == "state") == USERS + 2 * 2
    assert beside(settings, "state", "show", "u7").json["events"] == 10


def test_after_a_reset_the_worker_begins_where_it_was_told(settings: Settings, start: Start) -> None:
    """At the end nothing is read again; at the beginning everything is."""
    assert beside(settings, "state", "reset", "--to", "latest", "--yes").code == 0
    worker = start()
    wait_drained(settings, worker)
    assert beside(settings, "state", "show", "u7").code == 1
    worker.process.terminate()
    assert worker.ended()[0] == 0
    assert beside(settings, "state", "reset", "--to", "earliest", "--yes").code == 0
    worker = start()
    wait_drained(settings, worker)
    assert beside(settings, "state", "show", "u7").json["events"] == 10


def test_a_model_that_is_not_there_ends_the_worker_in_one_line(start: Start, tmp_path: Path) -> None:
    """With the folder's name, before the group is joined."""
    code, _, lines = start("--model", tmp_path / "no", "--data-dir", tmp_path).ended()
    assert code == 1
    assert f"Model folder {tmp_path / 'no'} does not exist" in lines[-1]["message"]


def test_a_data_directory_that_cannot_be_written_is_named(start: Start, tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "data").write_text("")
    worker = start("--data-dir", tmp_path / "data")
    assert worker.process.wait(60) == 1
    said = worker.err.read_text()
    assert "cannot be written" in said
    assert "FORECLICK_DATA_DIR" in said
    assert "Traceback" not in said
