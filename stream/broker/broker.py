"""Where a broker comes from, and its life.

    1. an address in the environment wins: nothing is started, nothing is stopped
    2. a Docker engine that answers: Apache's image
    3. Java and Maven: Apache Kafka as a local process

A broker that already runs in the data directory is taken as it is, whatever started it.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from stream.broker.client import ADDRESS_VARIABLE, connect
from stream.broker.docker_kafka import DockerKafka, docker_answers
from stream.broker.java_kafka import JavaKafka
from stream.broker.secured import Security
from stream.errors import BrokerUnreachable, ConfigurationError, StoreError

Source = Literal["auto", "docker", "java"]


def default_data_dir() -> Path:
    """The user's state folder: a broker is not a matter of the working directory."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "foreclick" / "broker"


def say_on_stderr(line: str) -> None:
    """One line for the person who waits; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class BrokerStatus:
    """What is known of a broker without asking it.

    Attributes:
        running: whether its process or container is there; of an address in the environment, whether it
        answers. source: ``environment``, ``docker``, ``java``, or None when nothing runs.
        bootstrap_servers: its address, or None.
        pid: its process, when it is one of this machine.
        data_dir: where it keeps its data.
        log: what it says.
        client_env: the settings of its clients, when it is a secured one that was started here.
    """

    running: bool
    source: str | None
    bootstrap_servers: str | None
    pid: int | None
    data_dir: Path
    log: Path | None
    client_env: Path | None = None


class Broker:
    """A Kafka broker to use: found, or started and then stopped again by ``with``.

    ``start(detached=True)`` leaves the broker to outlive this process. Without it the broker ends with this
    process at the latest, even if that is killed; ``with Broker() as broker`` ends it in order.

    Args:
        data_dir: what it keeps; two brokers with two directories run side by side. See ``default_data_dir``.
        port: where clients connect on loopback; None takes the port of the last start here, else a free one.
        log: file for what the broker says; ``data_dir/kafka.log`` when None.
        source: ``auto`` decides as the module says; ``docker`` and ``java`` insist.
        secure: SASL_SSL with SCRAM-SHA-512 and a CA of its own, see secured.py; from Java only.
        environment: where an address may stand; this process' own when None.
        client: security settings for an address in the environment, by librdkafka's names.
        start_timeout_s: how long to wait until it answers.
        say: told what takes long, a line at a time.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int | None = None,
        log: Path | None = None,
        source: Source = "auto",
        secure: bool = False,
        environment: Mapping[str, str] | None = None,
        client: Mapping[str, Any] | None = None,
        start_timeout_s: float = 90.0,
        say: Callable[[str], None] = say_on_stderr,
    ) -> None:
        self.data_dir = (data_dir or default_data_dir()).absolute()
        self._given = (os.environ if environment is None else environment).get(ADDRESS_VARIABLE, "").strip()
        self._client = dict(client or {})
        if secure and source == "docker":
            raise ConfigurationError(
                "A secured broker is started from Java only. Leave out --source docker or --secure."
            )
        self._source: Source = "java" if secure else source
        self._start_timeout_s = start_timeout_s
        self._java = JavaKafka(self.data_dir, port, log, say, secure)
        self._docker = DockerKafka(self.data_dir, port, say)
        self._started: JavaKafka | DockerKafka | None = None

    @property
    def bootstrap_servers(self) -> str:
        """host:port of the broker; the same after a restart.

        Raises:
            BrokerUnreachable: it was not started.
        """
        address = self._given or (self._started or self._java).address
        if address is None:
            raise BrokerUnreachable(
                f"The broker of {self.data_dir} was never started: foreclick broker start"
            )
        return address

    @property
    def client(self) -> dict[str, Any]:
        """What a client of this broker sets, by librdkafka's names; secrets in the clear."""
        if self._given:
            return self._client | {"bootstrap.servers": self._given}
        return (self._started or self._java).client

    @property
    def security(self) -> Security | None:
        """Certificates and passwords of a secured broker in the data directory."""
        return self._java.security if self._java.security.made else None

    def start(self, detached: bool = False) -> str:
        """Find or start the broker, wait until it answers, and return its address.

        Raises:
            BrokerUnreachable: nobody answers at the address in the environment; or there is no way to start
                one here; or it died or did not answer in time, with the end of its log.
            PortTaken: the port that was asked for is in use.
            StoreError: the data directory cannot be written.
        """
        if self._given:
            mend = f"The address stands in {ADDRESS_VARIABLE}: start that broker, or unset the variable."
            connect(self._client | {"bootstrap.servers": self._given}, mend=mend)
            return self._given
        with self._alone():
            running = self._running()
            if running is None:
                running = self._choose()
                self._launch(running, detached)
        return str(running.address)

    def stop(self) -> bool:
        """End what runs in the data directory; True when something did. An address in the environment stays."""
        running = self._running()
        if running is not None:
            running.stop()
        return running is not None

    def kill(self) -> None:
        """SIGKILL the broker, for tests of what happens then.

        Raises:
            ConfigurationError: it is not ours to kill.
        """
        self._ours("killed").kill()

    def restart(self) -> str:
        """Start again on the same data and the same port, after ``kill`` or a stop; ends it first if it runs.

        Raises:
            ConfigurationError: it is not ours to restart.
            BrokerUnreachable: as of ``start``.
        """
        started = self._ours("restarted")
        started.stop()
        self._launch(started, detached=False)
        return self.bootstrap_servers

    def status(self) -> BrokerStatus:
        """What the environment names, else what runs in the data directory."""
        running = self._running()
        address = running.address if running else None
        if running is not None and self._given in {"", address}:
            client_env = self._java.security.client_env if self._java.security.made else None
            return BrokerStatus(
                True, running.source, address, running.pid, self.data_dir, running.log, client_env
            )
        if not self._given:
            return BrokerStatus(False, None, None, None, self.data_dir, None)
        try:
            connect(self._client | {"bootstrap.servers": self._given}, timeout_s=2)
        except BrokerUnreachable:
            return BrokerStatus(False, "environment", self._given, None, self.data_dir, None)
        return BrokerStatus(True, "environment", self._given, None, self.data_dir, None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started is not None:
            self._started.stop()

    def _running(self) -> JavaKafka | DockerKafka | None:
        if self._java.pid is not None:
            return self._java
        return self._docker if self._docker.exists() and self._docker.running() else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One start at a time in a data directory: of two at once the second finds what the first has started."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            lock = (self.data_dir / "broker.lock").open("ab")
        except OSError as problem:
            raise StoreError(
                f"The broker's data directory {self.data_dir} cannot be written: {problem}. Make it writable, or "
                f"name another: foreclick broker start --data-dir DIR"
            ) from problem
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _choose(self) -> JavaKafka | DockerKafka:
        if self._java.security.made:
            return self._java
        if self._source == "docker" or (self._source == "auto" and docker_answers()):
            return self._docker
        return self._java

    def _launch(self, kafka: JavaKafka | DockerKafka, detached: bool) -> None:
        try:
            kafka.launch(detached)
            self._wait_until_it_answers(kafka)
        except BaseException:
            # Also on a Ctrl-C while waiting: nothing half-started may stay.
            kafka.kill()
            raise
        self._started = kafka

    def _wait_until_it_answers(self, kafka: JavaKafka | DockerKafka) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        while True:
            try:
                admin = connect(kafka.client, timeout_s=1.0)
                # For a moment it answers without counting itself among the brokers that may hold topics.
                if admin.list_topics(timeout=1.0).brokers:
                    return
            except BrokerUnreachable:
                words = kafka.last_words()
                if words is not None:
                    raise BrokerUnreachable(
                        f"The broker of {self.data_dir} died while it started: {words}. Its log is "
                        f"{kafka.log or 'docker logs'}."
                    ) from None
                if time.monotonic() > deadline_s:
                    raise BrokerUnreachable(
                        f"The broker at {kafka.address} did not answer within {self._start_timeout_s:.0f} s. Its "
                        f"log is {kafka.log or 'docker logs'}."
                    ) from None

    def _ours(self, what: str) -> JavaKafka | DockerKafka:
        if self._started is None:
            raise ConfigurationError(
                f"The broker at {self._given or self.data_dir} cannot be {what} here: it was not started here."
            )
        return self._started
