"""Who is who: what a log or a file of labels says of its users, as 1, 0 or unknown.

A label is of a user. A row without one says nothing; rows that contradict each other are an error that names the user,
since nobody can tell which of them is right.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stream.errors import ConfigurationError, InputFileError
from stream.files import LogFile

__all__ = [
    "NEGATIVE",
    "POSITIVE",
    "Labels",
    "Said",
    "known_labels",
    "labels_of",
    "said_in_file",
    "said_in_logs",
]

#: What the head is to find, in the spellings that need no ``--positive``; case does not matter.
POSITIVE = frozenset(
    (
        "1",
        "true",
        "yes",
        "positive",
        "fraud",
        "fraudulent",
        "fake",
        "bot",
        "robot",
        "crawler",
        "spam",
        "abuse",
    )
)
#: What it is not to find.
NEGATIVE = frozenset(
    (
        "0",
        "false",
        "no",
        "negative",
        "genuine",
        "honest",
        "human",
        "normal",
        "legit",
        "legitimate",
        "real",
        "ok",
    )
)


class Said(NamedTuple):
    """One label of one user, and where it stands, in words."""

    user_id: str
    label: str
    where: str


@dataclass(frozen=True)
class Labels:
    """``of_user``: 1 to be found, 0 not. ``positive``: the spellings that meant 1. ``spellings``: all that occurred."""

    of_user: dict[str, int]
    positive: tuple[str, ...]
    spellings: tuple[str, ...]

    def of(self, user_ids: Sequence[str]) -> np.ndarray:
        """A label a user, int8, -1 where nothing was said."""
        return np.array([self.of_user.get(user, -1) for user in user_ids], np.int8)

    @property
    def lacking(self) -> str:
        """A sentence saying that there is nothing to learn from; empty if both kinds of users occur."""
        kinds = set(self.of_user.values())
        if not kinds:
            return "No user has a label, so there is no fake_order head."
        if kinds == {0, 1}:
            return ""
        kind = "positive" if kinds == {0} else "negative"
        found = ", ".join(self.spellings)
        return f"No user has a {kind} label (found: {found}; --positive names them), so there is no fake_order head."


def known_labels(logs: Sequence[LogFile], file: Path | None, positive: str | None) -> Labels | None:
    """The users' labels, of the logs' own column and of a file; None where neither is given.

    Raises:
        ConfigurationError: --positive without any labels to choose from.
        InputFileError: labels that nobody can tell apart, or that contradict each other.
    """
    said = said_in_logs(logs) + (said_in_file(file) if file is not None else [])
    if file is None and not any(log.has_labels for log in logs):
        if positive is not None:
            raise ConfigurationError(
                "--positive needs labels: name their column with label= in --columns, or a file with --labels."
            )
        return None
    return labels_of(said, positive)


def said_in_logs(files: Sequence[LogFile]) -> list[Said]:
    """The labels in the column that the files' layout names."""
    return [
        Said(record.key.decode(), record.label, f"{file.name} line {record.line}")
        for file in files
        for record in file.records
        if record.label is not None and record.unusable is None
    ]


def said_in_file(path: Path) -> list[Said]:
    """The labels of a file of JSON lines: ``user_id`` (or ``id`` where ``subject`` is user) and ``label``.

    Labels of orders and events are those of their user.

    Raises:
        InputFileError: the file cannot be read, or a line is none of this.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise InputFileError(
            f"The labels {path} cannot be read: {error}. Name a file of JSON lines."
        ) from None
    said = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        user = label = None
        if isinstance(value, dict):
            user = value.get("user_id") or (
                value.get("id") if value.get("subject", "user") == "user" else None
            )
            label = value.get("label")
        if not isinstance(user, str) or not isinstance(label, str | int) or label == "":
            raise InputFileError(
                f'{path} line {number} is no label. Write {{"user_id": "u17", "label": "fraud"}}, one a line.'
            )
        said.append(Said(user, str(label), f"{path.name} line {number}"))
    return said


def labels_of(said: Iterable[Said], positive: str | None = None) -> Labels:
    """Bring labels together.

    Args:
        said: of all users, in any order.
        positive: the spellings that mean 1, with commas between them; every other is 0. None goes by ``POSITIVE`` and
            ``NEGATIVE``.

    Raises:
        InputFileError: a spelling is in neither list, or a user has contradicting labels.
    """
    wanted = None if positive is None else {_plain(name) for name in positive.split(",")} - {""}
    of_user: dict[str, int] = {}
    first: dict[str, Said] = {}
    spellings: dict[str, None] = {}
    positives: dict[str, None] = {}
    contradicting: dict[str, tuple[Said, Said]] = {}
    for one in said:
        plain = _plain(one.label)
        value = _value(one, plain) if wanted is None else int(plain in wanted)
        spellings[one.label] = None
        if value:
            positives[one.label] = None
        if of_user.setdefault(one.user_id, value) != value:
            contradicting.setdefault(one.user_id, (first[one.user_id], one))
        first.setdefault(one.user_id, one)
    if contradicting:
        user, (before, after) = next(iter(contradicting.items()))
        others = f" (and {len(contradicting) - 1} more users)" if len(contradicting) > 1 else ""
        raise InputFileError(
            f"User {user!r} has contradicting labels: {before.label!r} at {before.where} and {after.label!r} at "
            f"{after.where}{others}. Give each user one label, or none where nobody knows."
        )
    return Labels(of_user, tuple(positives), tuple(spellings))


def _plain(label: str) -> str:
    plain = label.strip().casefold()
    return plain[:-2] if plain in ("0.0", "1.0") else plain


def _value(one: Said, plain: str) -> int:
    if plain in POSITIVE:
        return 1
    if plain in NEGATIVE:
        return 0
    raise InputFileError(
        f"The label {one.label[:40]!r} at {one.where} is neither one of {', '.join(sorted(POSITIVE))} nor of "
        f"{', '.join(sorted(NEGATIVE))}. Say which label is to be found with --positive NAME; all others are not."
    )
