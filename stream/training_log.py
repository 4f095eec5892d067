"""Files of events, folded as the worker folds them, into what models are trained and measured on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from models.training_log import TrainingLog, by_user
from models.vocabulary import DEFAULT_ACTIONS, MAX_ACTIONS, OTHER, ActionVocabulary
from stream.errors import InputFileError
from stream.event_columns import NameCodes, columns_of
from stream.events import Event, decode_events
from stream.files import LogFile
from stream.formats import adapt_object
from stream.labels import Labels
from stream.rows import RowLayout
from stream.sessions import FoldRules, fold

_RARE_CATEGORIES = 1_000_000  # codes remembered while a file is folded


def training_log(
    files: Sequence[LogFile],
    rules: FoldRules | None = None,
    utc_offset_s: int = 0,
    actions: ActionVocabulary | None = None,
    below_share: int = 100,
    extras: tuple[str, ...] = (),
    labels: Labels | None = None,
) -> TrainingLog:
    """Fold whole files, one user's events in their order, every user from a blank row.

    Args:
        files: read by ``stream.files.read_log``; lines that are no events are left out.
        rules: of sessions and lateness, those of the worker that will serve the model.
        utc_offset_s: the shop's clock against UTC.
        actions: of the model that will be measured; without, those of the events (``actions_of``).
        below_share: only users with crc32(user id) % 100 below this are asked for actions, since a vocabulary must not
            know what only other users did; all are asked if there are none.
        extras: names of numbers in the events' ``extra`` that a model reads.
        labels: of users, where there are any; users who are not in the files do not matter.

    Raises:
        InputFileError: no line of the files is an event.
    """
    events: list[Event] = []
    digest = hashlib.sha256()
    for file in files:
        records = file.records
        for record in records:
            digest.update(record.value)
            digest.update(b"\n")
        decoded = decode_events(
            [record.key for record in records], [record.value for record in records], adapt_object
        )
        events += [event for event in decoded if isinstance(event, Event)]
    names = ", ".join(file.name for file in files)
    if not events:
        first = next((record for file in files for record in file.records if record.unusable), None)
        because = f" (line {first.line}: {first.unusable})" if first else ""
        raise InputFileError(
            f"No line of {names} is an event{because}. Name the right --format, --columns or --time-format."
        )
    asked = [event for event in events if crc32(event.user_id.encode()) % 100 < below_share]
    vocabulary = actions or actions_of(asked or events)
    users = {user: row for row, user in enumerate(dict.fromkeys(event.user_id for event in events))}
    row = np.fromiter((users[event.user_id] for event in events), np.int32, len(events))
    count = len(events)
    columns = columns_of(
        events,
        row,
        np.arange(count),
        np.zeros(count, np.bool_),
        vocabulary,
        codes := NameCodes(_RARE_CATEGORIES),
        names.encode(),
        extras,
    )
    blank = RowLayout(len(vocabulary), state_width=0).blank(len(users))
    folded = fold(blank, columns, rules or FoldRules(), None, bytes(8), len(vocabulary))
    return TrainingLog(
        columns=by_user(folded.columns),
        user_ids=list(users),
        category_names={codes[name]: name for name in {event.category_id for event in events} if name},
        actions=vocabulary,
        utc_offset_s=utc_offset_s,
        digest=digest.hexdigest(),
        files=tuple(Path(file.name).name for file in files),
        extras=extras,
        given_labels=None if labels is None else labels.of(list(users)),
        positive=() if labels is None else labels.positive,
    )


def actions_of(events: Sequence[Event]) -> ActionVocabulary:
    """The usual actions if the events have no others, else the log's own, at most 64, most frequent first."""
    count = Counter(event.action for event in events)
    if not count.keys() - {*DEFAULT_ACTIONS, OTHER}:
        return ActionVocabulary(DEFAULT_ACTIONS)
    own = sorted((name for name in count if name != OTHER), key=lambda name: (-count[name], name))
    return ActionVocabulary(own[:MAX_ACTIONS])
