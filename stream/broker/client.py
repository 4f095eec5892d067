"""The administrator's connection to a broker: one metadata request decides whether anybody answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from stream.broker.refusal import why_refused
from stream.errors import BrokerRefused, BrokerUnreachable, ConfigurationError

ADDRESS_VARIABLE: Final = "FORECLICK_KAFKA__BOOTSTRAP_SERVERS"
MEND: Final = (
    f"Start one with `foreclick broker start`, or set {ADDRESS_VARIABLE} to the address of one that runs."
)

# librdkafka prints each refused connection on stderr; the error below says it once.
_silent = logging.getLogger("foreclick.librdkafka")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


def connect(client: Mapping[str, Any], timeout_s: float = 5.0, mend: str = MEND) -> AdminClient:
    """A client of a broker that has answered.

    Args:
        client: librdkafka's settings by name; ``bootstrap.servers`` is needed, security settings may follow.
        timeout_s: how long to wait for the answer.
        mend: what the error tells to do.

    Raises:
        BrokerUnreachable: nobody answered in time; the message has the address and what librdkafka saw last.
        BrokerRefused: somebody did, who wants another password, certificate or protocol.
        ConfigurationError: librdkafka cannot use the settings.
    """
    seen: list[KafkaError] = []

    def remember(error: KafkaError) -> None:
        # "all brokers are down" follows every real reason and explains nothing.
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            seen.append(error)

    settings: dict[str, Any] = {**client, "error_cb": remember}
    try:
        admin = AdminClient(settings, logger=_silent)
    except KafkaException as problem:
        raise ConfigurationError(
            f"The settings FORECLICK_KAFKA__* make no client: {problem.args[0].str()}. Correct them."
        ) from None
    try:
        admin.list_topics(timeout=timeout_s)
    except KafkaException as problem:
        admin.poll(0)  # hands the remembered errors over
        refusal = why_refused(client, seen)
        if refusal is not None:
            raise BrokerRefused(refusal) from problem
        reason = (seen[-1] if seen else problem.args[0]).str()
        raise BrokerUnreachable(
            f"No Kafka broker answers at {client['bootstrap.servers']}: {reason}. {mend}"
        ) from problem
    return admin
