"""The measure of alerts: logs with attacks whose labels are known, simulated, injected or given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import numpy as np

from models.fraud.measuring import SCORE, Measured, Truth, measure
from stream.engagements import Coded, coded
from stream.errors import ConfigurationError, InputFileError
from stream.events import Event, decode_events
from stream.injecting import clean_log, inject_into

__all__ = ["given_log", "injected_logs", "measured", "simulated_logs", "summary"]

FOLDS = 5
_FAKE = ("fake", "fraud")
_HONEST = ("honest", "genuine", "human", "normal")


class _Label(msgspec.Struct):
    """The truth about a user, as ``simulate --labels`` writes it; ``kind`` is the label's own name by default."""

    user_id: str
    label: str
    kind: str = ""
    source_user: str | None = None
    fake_from_ms: int | None = None


def simulated_logs(
    seeds: Sequence[int],
    users: int,
    events: int,
    days: float,
    attacks: Mapping[str, int],
    negatives: Mapping[str, int],
    tell: Callable[[str], None],
) -> Iterator[tuple[list[Event], list[Any]]]:
    """People, attackers and negatives who never were: events in time order and labels, a seed each."""
    from models.simulator.dirt import Record
    from models.simulator.simulate import simulate

    encode = msgspec.json.Encoder().encode
    for seed in seeds:
        tell(f"simulating {users} users (seed {seed})")
        simulation = simulate(users, events, seed, days=days)
        crawlers = {label.user_id for label in simulation.labels if label.label == "crawler"}
        own = [Record(event.user_id.encode(), encode(event)) for event in simulation.events]
        mixed = inject_into(own, simulation.events, attacks, negatives, seed, crawlers=crawlers)
        yield _events(mixed.records), mixed.labels


def injected_logs(
    log: Any, seeds: Sequence[int], attacks: Mapping[str, int], negatives: Mapping[str, int]
) -> Iterator[tuple[list[Event], list[Any]]]:
    """A real log (a ``stream.files.LogFile``) with attackers and negatives put in, a seed each."""
    clean = clean_log(log)
    for seed in seeds:
        mixed = inject_into(clean.records, clean.events, attacks, negatives, seed)
        yield _events(mixed.records), mixed.labels


def given_log(log: Any, labels: str) -> Iterator[tuple[list[Event], list[Any]]]:
    """A log that has its attacks already, and a file of labels, a JSON object a line.

    Raises:
        InputFileError: the labels cannot be read, or nobody among them is fake or honest.
    """
    yield clean_log(log).events, read_labels(labels)


def read_labels(path: str) -> list[_Label]:
    """Labels a line, as ``simulate --labels`` writes them; of each only ``user_id`` and ``label`` are needed.

    Raises:
        InputFileError: missing, or a line is no label.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise InputFileError(
            f"{path} cannot be read: {error.strerror}. Name the labels with --labels."
        ) from None
    labels = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                labels.append(msgspec.json.decode(line, type=_Label))
            except msgspec.DecodeError as error:
                raise InputFileError(
                    f"{path}, line {number} is no label: {error}. "
                    'Expected {"user_id": …, "label": "fake" or "honest", "kind": …}, as simulate --labels writes.'
                ) from None
    return labels


def _events(records: Sequence[Any]) -> list[Event]:
    decoded = decode_events([record.key for record in records], [record.value for record in records])
    return [event for event in decoded if isinstance(event, Event)]


def truth_of(log: Coded, labels: Sequence[Any]) -> Truth:
    """Labels by the log's numbers; a user without one does not count.

    Raises:
        InputFileError: nobody of the log is fake, or nobody honest.
    """
    by_user = {label.user_id: label for label in labels}
    originals = {label.source_user for label in labels if label.source_user}
    kinds, fake, counted, since = [], [], [], []
    for user in log.users:
        label = by_user.get(user)
        says = "" if label is None else label.label
        attacks = says in _FAKE
        kinds.append("" if label is None else label.kind or ("attack" if attacks else "normal"))
        fake.append(attacks)
        counted.append(says in _HONEST and kinds[-1] != "original" and user not in originals)
        since.append(0 if label is None else label.fake_from_ms or 0)
    if not any(fake) or not any(counted):
        raise InputFileError(
            f"Of the log's {len(log.users)} users the labels call {sum(fake)} fake and {sum(counted)} honest; "
            f"both are needed. Labels are {', '.join(_FAKE)} and {', '.join(_HONEST)}; check that they are this log's."
        )
    fold = np.array([crc32(user.encode()) % FOLDS for user in log.users])
    return Truth(np.array(kinds), np.array(fake), np.array(counted), np.array(since, np.int64), fold)


def measured(
    events: list[Event],
    labels: Sequence[Any],
    target_fpr: float,
    advance: Callable[[int], None],
    memory: int = 1,
) -> Measured:
    """The figures of one log."""
    if not 0 < target_fpr < 1:
        raise ConfigurationError(f"--target-fpr {target_fpr} is no share between 0 and 1. Use 0.01.")
    events.sort(key=lambda event: event.event_time_ms)
    log = coded(events)
    return measure(log.log, truth_of(log, labels), target_fpr, advance, memory)


def summary(runs: Sequence[Measured]) -> dict[str, Any]:
    """Means over the logs, and beside each attack the best baseline by average precision."""
    attacks: dict[str, Any] = {}
    for kind in dict.fromkeys(figure.attack for run in runs for figure in run.attacks):
        by_detector: dict[str, Any] = {}
        for name in dict.fromkeys(figure.detector for figure in runs[0].attacks):
            figures = [f for run in runs for f in run.attacks if f.attack == kind and f.detector == name]
            by_detector[name] = {
                "auc": _mean([f.auc for f in figures]),
                "average_precision": _mean([f.average_precision for f in figures]),
                "recall": _mean([f.recall for f in figures]),
                "average_precisions": [round(f.average_precision, 4) for f in figures],
                "recalls": [round(f.recall, 4) for f in figures],
            }
            if name == SCORE:
                by_detector[name] |= {
                    "median_seconds": _mean([f.median_seconds for f in figures]),
                    "median_events": _mean([f.median_events for f in figures]),
                }
        rivals = {name: each["average_precision"] for name, each in by_detector.items() if name != SCORE}
        best = max(rivals, key=rivals.__getitem__)
        lead = by_detector[SCORE]["average_precision"] - rivals[best]
        attacks[kind] = {"detectors": by_detector, "best_baseline": best, "lead": round(lead, 4)}
    return {
        "attacks": attacks,
        "false_positives": _means([run.false_positives for run in runs]),
        "flagged": _means([run.flagged for run in runs]),
        "honest": [run.honest for run in runs],
        "attackers": [run.attackers for run in runs],
    }


def _means(shares: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    kinds = sorted({kind for each in shares for kind in each})
    return {kind: _mean([each.get(kind) for each in shares]) for kind in kinds}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None
