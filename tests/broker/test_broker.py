"""The embedded Kafka: where it comes from, its life, and what it says when it cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from stream.broker import Broker
from stream.broker.client import ADDRESS_VARIABLE
from stream.broker.jars import fetch_jars, jars_dir
from stream.broker.server_settings import free_port
from stream.broker.topics import TopicSpec, describe, ensure_topics
from stream.errors import BrokerUnreachable, ConfigurationError, PortTaken, StoreError

NOTHING: dict[str, str] = {}  # an environment without an address: a broker of one's own is started


def foreclick(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != ADDRESS_VARIABLE}
    return subprocess.run(
        [sys.executable, "-m", "stream.cli", "broker", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)


def test_command_line_starts_finds_and_stops_one_broker(tmp_path: Path) -> None:
    """A broker outlives the command that started it, a second start finds it, and stop ends it."""
    there = ("--data-dir", str(tmp_path / "a broker, with a comma"), "--json")
    try:
        started = said(foreclick("start", "--port", "0", *there))
        assert said(foreclick("start", "--port", "0", *there)) == started
        assert said(foreclick("status", *there)) == started
        assert started["running"] is True
    finally:
        stopped = foreclick("stop", *there)
    assert said(stopped) == {"stopped": True}
    after = foreclick("status", *there)
    assert after.returncode == 1
    assert json.loads(after.stdout)["running"] is False
    assert said(foreclick("stop", *there)) == {"stopped": False}


def test_killed_broker_restarts_with_its_data_at_its_address(tmp_path: Path) -> None:
    """After SIGKILL and a restart the address, the topics and every acknowledged record are the same."""
    with Broker(tmp_path, environment=NOTHING) as broker:
        address = broker.bootstrap_servers
        client = {"bootstrap.servers": address, "log_level": 0}
        ensure_topics(client, [TopicSpec("kept", partitions=1)])
        before = describe(client, "kept")
        producer = Producer({**client, "acks": "all"})
        for number in range(100):
            producer.produce("kept", str(number).encode())
        assert producer.flush(30) == 0

        broker.kill()
        assert broker.status().running is False
        assert broker.restart() == address

        assert describe(client, "kept") == before
        consumer = Consumer({**client, "group.id": "reader", "enable.auto.commit": False})
        consumer.assign([TopicPartition("kept", 0, 0)])
        records = consumer.consume(100, timeout=30)
        consumer.close()
        assert [record.value() for record in records] == [str(number).encode() for number in range(100)]
    assert broker.status().running is False


HOLDER = """
import sys, time
from pathlib import Path
from stream.broker import Broker
with Broker(Path(sys.argv[1]), environment={}) as broker:
    print(broker.status().pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=lambda ending: ending.name)
def test_broker_does_not_outlive_the_process_that_holds_it(tmp_path: Path, ending: signal.Signals) -> None:
    """However the holder of a broker ends, killed or interrupted, no broker stays behind."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        pid = int(holder.stdout.readline())
        assert psutil.pid_exists(pid)
        holder.send_signal(ending)
        holder.wait(60)
    wait_until(lambda: not psutil.pid_exists(pid), "the broker is gone")


def test_address_in_the_environment_wins(broker: Broker, tmp_path: Path) -> None:
    """With an address in the environment nothing is started, and nothing is stopped or killed either."""
    data_dir = tmp_path / "unused"
    given = Broker(data_dir, environment={ADDRESS_VARIABLE: broker.bootstrap_servers})
    with given:
        assert given.bootstrap_servers == broker.bootstrap_servers
        assert given.status().source == "environment"
        with pytest.raises(ConfigurationError, match="not started here"):
            given.kill()
    assert given.stop() is False
    assert not data_dir.exists()
    assert given.status().running is True


def test_unreachable_address_is_named_with_the_way_out(tmp_path: Path) -> None:
    """An address where nobody answers is an error that names the address, the variable and what to do."""
    address = f"127.0.0.1:{free_port()}"
    given = Broker(tmp_path, environment={ADDRESS_VARIABLE: address})
    with pytest.raises(BrokerUnreachable) as caught:
        given.start()
    message = str(caught.value)
    assert address in message
    assert "refused" in message
    assert f"{ADDRESS_VARIABLE}: start that broker, or unset the variable" in message
    assert given.status().running is False


def test_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A port that another process holds is an error that names it and offers a free one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port} .* --port \d+"):
            Broker(tmp_path, port=port, environment=NOTHING).start()


def test_pid_file_of_a_foreign_process_is_not_believed(tmp_path: Path) -> None:
    """A number that was given out again is not our broker: it is neither reported nor stopped."""
    with subprocess.Popen(["sleep", "600"]) as foreign:
        (tmp_path / "broker.pid").write_text(str(foreign.pid))
        stale = Broker(tmp_path, environment=NOTHING)
        assert stale.status().running is False
        assert stale.stop() is False
        assert foreign.poll() is None
        foreign.kill()


def test_broker_that_dies_at_start_leaves_its_last_words(tmp_path: Path) -> None:
    """When Kafka refuses its data directory, the error carries the end of its log."""
    storage = tmp_path / "kafka-data"
    storage.mkdir()
    (storage / "meta.properties").write_text("version=1\nnode.id=77\ncluster.id=elsewhere\n")
    with pytest.raises(BrokerUnreachable, match=r"died while it started: exit code [1-9].*77"):
        Broker(tmp_path, source="java", environment=NOTHING).start()


def test_unusable_data_directory_is_named(tmp_path: Path) -> None:
    """A data directory that cannot be made is an error that names it and the flag that chooses another."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/broker .*--data-dir"):
        Broker(tmp_path / "file" / "broker", environment=NOTHING).start()


def test_missing_java_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java the error names it and every other way to a broker."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnreachable, match=rf"no java on the PATH.*Java 17.*Docker.*{ADDRESS_VARIABLE}"):
        Broker(tmp_path, source="java", environment=NOTHING).start()


def test_missing_maven_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Maven and without fetched files the error names Maven."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerUnreachable, match=r"mvn was not found.*Install Maven"):
        fetch_jars(print)


def test_failed_fetch_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When Maven fails its reason is told, and the cache holds no half-fetched Kafka."""
    maven = tmp_path / "mvn"
    maven.write_text(
        '#!/bin/sh\nfor last; do :; done\nmkdir -p "${last#*=}"\necho "[ERROR] no route"\nexit 1\n'
    )
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(BrokerUnreachable, match="no route"):
        fetch_jars(print)
    assert list(jars_dir().parent.iterdir()) == []


def test_fetched_files_are_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are there are not fetched again, so a second start needs no Maven and no network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jars_dir().mkdir(parents=True)
    monkeypatch.setattr(shutil, "which", lambda _: pytest.fail("looked for a program"))
    assert fetch_jars(print) == jars_dir()
