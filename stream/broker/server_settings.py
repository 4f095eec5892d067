"""How the embedded Kafka is set up: one node that is broker and controller, on loopback."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from typing import Final

from stream.errors import PortTaken

KAFKA_VERSION: Final = "4.3.1"
LOOPBACK: Final = "127.0.0.1"

# Below every system's range for the outgoing connections of clients. A client that keeps asking a killed
# broker could otherwise be given the broker's own port for its end, connect to itself and so keep the port
# taken.
FREE_PORTS: Final = range(20_000, 30_000)


def server_settings(listeners: str, advertised: str, controller: str, log_dir: str) -> dict[str, str]:
    """Kafka's settings by name.

    Args:
        listeners: where broker and controller listen, as Kafka writes it.
        advertised: host:port that clients are told.
        controller: host:port of the controller, as the broker sees it.
        log_dir: where the data lies.
    """
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{controller}",
        "listeners": listeners,
        "advertised.listeners": f"PLAINTEXT://{advertised}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": log_dir,
        "num.partitions": "8",
        # One node has one copy of everything; the defaults ask for three and would never be met.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # The default waits 3 s for further members whenever an empty group gets its first one.
        "group.initial.rebalance.delay.ms": "0",
        # A misspelt topic is an error, not a topic.
        "auto.create.topics.enable": "false",
        # Tests of paused workers wait for a session to time out; the default allows no less than 6 s.
        "group.min.session.timeout.ms": "3000",
        # Compaction, deletion and abandoned transactions are looked after within seconds, so tests can see
        # them.
        "log.cleaner.backoff.ms": "1000",
        "log.cleaner.threads": "1",
        "log.segment.delete.delay.ms": "2000",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "2000",
    }


def free_port(besides: Iterable[int] = ()) -> int:
    """A port on loopback that nobody listens on just now."""
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        if port not in besides and not is_taken(port):
            return port
    raise PortTaken(f"Every port from {FREE_PORTS.start} to {FREE_PORTS.stop - 1} on {LOOPBACK} is in use.")


def is_taken(port: int) -> bool:
    """Whether somebody listens on this port of loopback."""
    with socket.socket() as probe:
        # Connections of a broker that was killed linger in TIME_WAIT; they do not keep a new one from
        # listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def refuse_taken(port: int) -> None:
    """Raise PortTaken when somebody listens on the port that the broker was asked to take."""
    if is_taken(port):
        raise PortTaken(
            f"Port {port} on {LOOPBACK} is in use by another process. Stop that process, or take another port: "
            f"foreclick broker start --port {free_port()}"
        )
