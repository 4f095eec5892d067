"""One Kafka broker as a container: Apache's own image, on loopback only.

This path is thin and was never run where it was written, for want of a Docker engine. Whoever has one and
finds it wanting can go around it: ``foreclick broker start --source java``.

The data lives in the container, which is stopped and started again but not removed;
``data_dir/broker.container`` holds its name. Containers that must not outlive this process are removed by
testcontainers' own watcher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from stream.broker.server_settings import KAFKA_VERSION, LOOPBACK, free_port, refuse_taken, server_settings
from stream.errors import BrokerUnreachable

IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"
PORT_INSIDE: Final = "9092/tcp"


def docker_answers() -> bool:
    """Whether a Docker engine can be asked to start a container."""
    import docker
    from docker.errors import DockerException

    try:
        engine = docker.from_env(timeout=5)
    except DockerException:
        return False
    try:
        return bool(engine.ping())
    except (DockerException, OSError):
        return False
    finally:
        engine.close()


class DockerKafka:
    """The same life as ``JavaKafka``, in a container.

    Args:
        data_dir: holds the container's name only.
        port: where clients connect; None takes a free one when the container is made.
        say: told what takes long, a line at a time.
    """

    source: Final = "docker"
    pid: Final = None
    log: Final = None

    def __init__(self, data_dir: Path, port: int | None, say: Callable[[str], None]) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._say = say
        self._name_file = self.data_dir / "broker.container"

    def exists(self) -> bool:
        """Whether a container was made for this data directory, without asking Docker."""
        return self._name_file.exists()

    def running(self) -> bool:
        """Whether the container runs."""
        container = self._container()
        return container is not None and container.status == "running"

    @property
    def client(self) -> dict[str, Any]:
        """What a client of this broker sets, by librdkafka's names."""
        return {"bootstrap.servers": self.address}

    @property
    def address(self) -> str | None:
        """host:port that clients connect to, fixed when the container is made."""
        container = self._container()
        if container is None:
            return None
        bindings = container.attrs["HostConfig"]["PortBindings"]
        return f"{LOOPBACK}:{bindings[PORT_INSIDE][0]['HostPort']}"

    def launch(self, detached: bool) -> None:
        """Start the container, made when there is none; it answers some seconds later.

        Args:
            detached: whether the broker outlives this process.

        Raises:
            BrokerUnreachable: Docker refused.
            PortTaken: the port that was asked for is in use.
        """
        from docker.errors import DockerException

        self.data_dir.mkdir(parents=True, exist_ok=True)
        try:
            container = self._container()
            if container is None:
                self._make(detached)
            else:
                container.start()
        except DockerException as problem:
            raise BrokerUnreachable(
                f"Docker could not start {IMAGE}: {problem}. Mend that, or take Java: "
                f"foreclick broker start --source java"
            ) from problem

    def last_words(self) -> str | None:
        """Why the container ended, from its log; None while it runs."""
        container = self._container()
        if container is not None and container.status in {"running", "created"}:
            return None
        return (
            "no container" if container is None else container.logs(tail=4).decode(errors="replace").strip()
        )

    def stop(self) -> None:
        """End the broker in order; the container and its data stay."""
        container = self._container()
        if container is not None:
            container.stop(timeout=30)

    def kill(self) -> None:
        """SIGKILL, as a lost machine would end it."""
        container = self._container()
        if container is not None and container.status == "running":
            container.kill()

    def _container(self) -> Any:
        import docker
        from docker.errors import DockerException, NotFound

        if not self.exists():
            return None
        try:
            return docker.from_env().containers.get(self._name_file.read_text().strip())
        except NotFound:
            return None
        except DockerException as problem:
            raise BrokerUnreachable(
                f"The broker of {self.data_dir} is a container, and Docker does not answer: {problem}. Start "
                f"Docker, or name another data directory: foreclick broker start --data-dir DIR"
            ) from problem

    def _make(self, detached: bool) -> None:
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        if self._port is not None:
            refuse_taken(self._port)
        port = self._port or free_port()
        name = f"foreclick-broker-{hashlib.sha256(str(self.data_dir).encode()).hexdigest()[:12]}"
        settings = server_settings(
            listeners="PLAINTEXT://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093",  # inside the container
            advertised=f"{LOOPBACK}:{port}",
            controller="127.0.0.1:9093",
            log_dir="/var/lib/kafka/data",
        )
        # The broker asks itself at the advertised port now and then, which inside is another one: it gets a
        # listener of its own.
        settings["listeners"] += ",INSIDE://127.0.0.1:9094"
        settings["advertised.listeners"] += ",INSIDE://127.0.0.1:9094"
        settings["inter.broker.listener.name"] = "INSIDE"
        settings["listener.security.protocol.map"] += ",INSIDE:PLAINTEXT"
        self._say(f"starting {IMAGE} with Docker; the first time it has to be pulled")
        testcontainers_config.ryuk_disabled = detached
        container = DockerContainer(IMAGE, name=name)
        container.env = {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()}
        # Declared as plain numbers, handed to Docker's client as they are; that one takes an address as well.
        container.ports = {PORT_INSIDE: (LOOPBACK, port)}  # type: ignore[dict-item]
        container.start()
        self._name_file.write_text(name + "\n")
