"""Versions in a model store, and asking the workers to serve one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError

from models.errors import ArtefactError
from stream.activation import Activation, Familiarity, familiarity, newest_first, parse_label, refusal
from stream.diagnosis import SAMPLE_RECORDS, newest
from stream.errors import ConfigurationError, TopicError
from stream.events import Event, decode_events
from stream.formats import record_adapter
from stream.replay import producer_of
from stream.settings import Settings
from stream.topic_reader import read_all
from stream.topics import existing

DELIVERY_S = 30.0


def versions(root: Path) -> Iterator[dict[str, Any]]:
    """What the manifests in a model store say, by name and version; nothing is verified.

    Raises:
        ConfigurationError: there is no such folder.
    """
    if not root.is_dir():
        raise ConfigurationError(f"There is no model store {root}. Name one with --root.")
    for file in sorted(root.glob("*/*/manifest.json"), key=_by_version):
        if file.parent.name.startswith("."):
            continue  # a version that is being written
        told: dict[str, Any] = {"name": file.parent.parent.name, "version": file.parent.name}
        try:
            manifest = json.loads(file.read_bytes())
            told |= {
                "architecture": manifest["architecture"]["kind"],
                "actions": len(manifest["actions"]),
                "categories": len(manifest["categories"]),
                "metrics": manifest["metrics"],
                "bytes": manifest["weights"]["bytes"],
                "sha256": manifest["weights"]["sha256"],
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            told["damaged"] = f"{type(error).__name__}: {error}"
        yield told


def _by_version(file: Path) -> tuple[str, int, str]:
    version = file.parent.name
    return file.parent.parent.name, int(version) if version.isdigit() else -1, version


def activations(settings: Settings) -> list[Activation]:
    """What was activated, the newest first.

    Raises:
        TopicError: the control topic is missing.
        BrokerUnreachable: nobody answers.
    """
    topic = existing(settings, settings.control_topic)
    records = read_all(settings.kafka.librdkafka(), topic.name, topic.partitions)
    return newest_first(record.value for record in records)


def activate(
    settings: Settings, label: str, root: Path, by: str, force: bool = False
) -> tuple[Activation, Familiarity]:
    """Check a version, hold it against the input, and ask all workers to serve it; arguments as of ``checked``."""
    asked, known = checked(settings, label, root, by, force)
    announce(settings, asked)
    return asked, known


def checked(
    settings: Settings, label: str, root: Path, by: str, force: bool = False
) -> tuple[Activation, Familiarity]:
    """An activation of a version that is whole, could take over, and knows what is in the input.

    Args:
        label: NAME/VERSION.
        root: the model store.
        by: who asks, for the workers' logs.
        force: also when the model hardly knows what is in the input.

    Raises:
        ArtefactError: it is damaged, or cannot take over, or is another shop's.
        TopicError: the input topic is missing.
    """
    from models.registry import load_artefact  # torch takes a second to load

    name, version = parse_label(label)
    artefact = load_artefact(root / name / version)
    if (because := refusal(artefact.manifest)) is not None:
        raise ArtefactError(because)
    known = _familiarity(settings, artefact)
    if known.refusal is not None and not force:
        raise ArtefactError(known.refusal)
    sha256 = artefact.manifest["weights"]["sha256"]
    asked = Activation(name, version, sha256, str(root.resolve()), int(time.time() * 1000), by)
    if asked.label != f"{artefact.name}/{artefact.version}":
        raise ArtefactError(
            f"The folder of {asked.label} holds {artefact.name}/{artefact.version}. Copy the right one there."
        )
    return asked, known


def announce(settings: Settings, asked: Activation) -> None:
    """Write an activation where every worker reads it.

    Raises:
        TopicError: the control topic is missing, or refused the record.
    """
    control = existing(settings, settings.control_topic)
    refused: list[KafkaError | None] = []
    producer = producer_of(settings.kafka.librdkafka())
    producer.produce(
        control.name, asked.encode(), asked.key, on_delivery=lambda error, _: refused.append(error)
    )
    left = producer.flush(DELIVERY_S)
    problem = next((error.str() for error in refused if error is not None), "no answer" if left else None)
    if problem is not None:
        raise TopicError(f"Topic {control.name} did not take the activation: {problem}. Run it again.")


def _familiarity(settings: Settings, artefact: Any) -> Familiarity:
    """The model's vocabularies against the newest records of the input."""
    records = list(newest(settings, existing(settings, settings.clicks_topic), SAMPLE_RECORDS))
    adapt = record_adapter(settings.input_format)
    decoded = decode_events([record.key for record in records], [record.value for record in records], adapt)
    events = [event for event in decoded if isinstance(event, Event)]
    return familiarity(
        (event.action for event in events),
        (event.category_id for event in events),
        artefact.actions.names,
        artefact.categories.names,
    )


def told(asked: Activation, known: Familiarity) -> dict[str, Any]:
    """An activation as plain values."""
    return {"model": asked.label, "sha256": asked.sha256, "root": asked.root, "input": asdict(known)}
