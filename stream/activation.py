"""Which model the workers shall serve: the records of the control topic, and what they amount to.

The topic is compacted and has a key a model version, so that it holds every version that was ever activated, the
newest activation of each, in the order in which they were asked for. A worker serves the newest that it can: one that
it has to refuse leaves the one before it in use, after a restart too. Pure: reading and loading is done elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stream.errors import ConfigurationError

SCHEMA: Final = "foreclick.control.v1"
FEW_KNOWN: Final = 0.5  # of the input's actions: below it the model was made for another shop
# Names become folders, so they may not climb out of the model store.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Activation:
    """A request to serve a version of a model.

    Attributes:
        sha256: of the weights that were checked when it was asked for.
        root: the model store as seen by who asked.
    """

    name: str
    version: str
    sha256: str
    root: str
    time_ms: int
    by: str

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.name}/{self.version}"

    @property
    def key(self) -> bytes:
        """The record's key: compaction keeps the newest activation of each version."""
        return f"model/{self.label}".encode()

    def folder(self, root: Path | None = None) -> Path:
        """Where the version lies, in another model store than who asked saw if one is given."""
        return (root or Path(self.root)) / self.name / self.version

    def encode(self) -> bytes:
        """The record's value, schema ``foreclick.control``."""
        model = {"name": self.name, "version": self.version, "sha256": self.sha256}
        record = {"schema": SCHEMA, "kind": "activate", "model": model, "root": self.root}
        return json.dumps({**record, "time_ms": self.time_ms, "by": self.by}).encode()


def parse_label(text: str) -> tuple[str, str]:
    """Name and version out of ``NAME/VERSION``.

    Raises:
        ConfigurationError: it is something else, or could lead out of the model store.
    """
    name, slash, version = text.partition("/")
    if not (slash and _PART.fullmatch(name) and _PART.fullmatch(version)):
        raise ConfigurationError(
            f"{text!r} is not NAME/VERSION of letters, digits, dots, dashes and underscores. `foreclick models list` "
            "shows what there is."
        )
    return name, version


def decode(value: bytes | None) -> Activation | None:
    """An activation out of a record's value; None for a tombstone and for what is no activation of ours."""
    try:
        record: Any = json.loads(value or b"null")
        model = record["model"]
        if (record["schema"], record["kind"]) != (SCHEMA, "activate"):
            return None
        name, version = parse_label(f"{model['name']}/{model['version']}")
        found = Activation(
            name, version, model["sha256"], record["root"], int(record["time_ms"]), str(record["by"])
        )
        return found if isinstance(found.root, str) and _SHA256.fullmatch(found.sha256) else None
    except (ValueError, TypeError, KeyError, ConfigurationError):
        return None


def newest_first(values: Iterable[bytes | None]) -> list[Activation]:
    """The activations among the values of records in their order, the newest of each version, the newest first."""
    newest: dict[str, Activation] = {}
    for value in values:
        if (found := decode(value)) is not None:
            newest.pop(found.label, None)
            newest[found.label] = found
    return list(reversed(newest.values()))


def refusal(manifest: dict[str, Any], sha256: str | None = None) -> str | None:
    """Why a whole artefact may still not replace another one under the rows of a running pipeline, or None.

    A row's state vector is rebuilt from its window when the model changes, so a model that reads what windows do not
    hold cannot take over; the actions that rows count are translated by their names and need no refusal.

    Args:
        manifest: of an artefact that the registry has checked.
        sha256: of the weights that were asked for.
    """
    label = f"{manifest['name']}/{manifest['version']}"
    if sha256 is not None and manifest["weights"]["sha256"] != sha256:
        return (
            f"Model {label} here has weights {manifest['weights']['sha256'][:12]}…, the activation names "
            f"{sha256[:12]}…: another model under the same name. Copy the folder from where it was activated."
        )
    declared = [str(feature["name"]) for feature in manifest["features"]]
    if extras := [name for name in declared if name.split(".")[0] == "extra"]:
        return (
            f"Model {label} declares {', '.join(extras)}, which the window of a row does not hold: states could not be "
            "rebuilt. Start workers with it as FORECLICK_MODEL and an app id of its own, or train it without them."
        )
    return None


@dataclass(frozen=True)
class Familiarity:
    """How well a model knows what stands in the input: shares of sampled events, and names that it lacks."""

    events: int
    known_actions: float
    known_categories: float
    unknown_actions: tuple[str, ...]

    @property
    def refusal(self) -> str | None:
        """Why the model should not be activated on this input, or None."""
        if not self.events or self.known_actions >= FEW_KNOWN:
            return None
        names = ", ".join(self.unknown_actions[:5])
        return (
            f"The model knows the actions of only {100 * self.known_actions:.0f} % of {self.events} events of the "
            f"input (it does not know {names}): it was made for another shop. Train one on this shop's log, or add "
            "--force."
        )


def familiarity(
    actions: Iterable[str],
    categories: Iterable[str | None],
    known_actions: Iterable[str],
    known: Iterable[str],
) -> Familiarity:
    """Compare sampled events with a model's vocabularies.

    Args:
        actions: of the events.
        categories: of the events; None is an event without one.
        known_actions: of the model.
        known: categories of the model.
    """
    seen, named = list(actions), [category for category in categories if category]
    vocabulary, frequent = set(known_actions), set(known)
    unknown: dict[str, int] = {}
    for action in seen:
        if action not in vocabulary:
            unknown[action] = unknown.get(action, 0) + 1
    return Familiarity(
        len(seen),
        1 - sum(unknown.values()) / len(seen) if seen else 1.0,
        sum(category in frequent for category in named) / len(named) if named else 1.0,
        tuple(sorted(unknown, key=lambda name: (-unknown[name], name))),
    )
