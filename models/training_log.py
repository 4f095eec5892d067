"""What a network learns from: folded events of many users, a split by user, and what came next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from models.columns import WINDOW, Columns, histories, take
from models.errors import TrainingError
from models.vocabulary import ActionVocabulary

SESSION_GAP_MS = 1_800_000
MOST_FREQUENT = 1024


@dataclass(frozen=True)
class TrainingLog:
    """A file of events after the fold.

    ``columns``: as ``models.columns.LAYOUT``, each user's events contiguous and in time order, ``row`` = the user.
    ``user_ids``: one a row. ``category_names``: name of each category code. ``digest``: SHA-256 of the files.
    ``extras``: names of the columns of ``extra``, further numbers that the model is to read. ``given_labels``: of each
    user, 1 for those whom the ``fake_order`` head is to find, 0 for others, -1 where nobody said; never a feature.
    ``positive``: the spellings that meant 1.
    """

    columns: Columns
    user_ids: list[str]
    category_names: Mapping[int, str]
    actions: ActionVocabulary
    utc_offset_s: int = 0
    digest: str = ""
    files: tuple[str, ...] = field(default=())
    extras: tuple[str, ...] = ()
    given_labels: NDArray[np.int8] | None = None
    positive: tuple[str, ...] = ()

    @property
    def labels(self) -> NDArray[np.int8]:
        """``given_labels``, all unknown if there are none."""
        return np.full(len(self.user_ids), -1, np.int8) if self.given_labels is None else self.given_labels

    def shares(self) -> NDArray[np.int64]:
        """crc32(user id) % 100 of each user, by which logs are split."""
        return np.array([crc32(user.encode()) % 100 for user in self.user_ids], np.int64)

    def of_users(self, first: int, end: int) -> Columns:
        """Events of the users whose share is in [first, end), rows numbered anew from 0."""
        share = self.shares()
        return self.part((share >= first) & (share < end))

    def part(self, users: NDArray[np.bool_]) -> Columns:
        """Events of the users that a mask names (one a row), rows numbered anew from 0."""
        return histories(self.columns, np.flatnonzero(users[self.columns["row"]]))


def by_user(columns: Columns) -> Columns:
    """Columns sorted so that each user's events are contiguous and in their order."""
    return take(columns, np.lexsort((columns["wave"], columns["row"])))


def check_bounds(bounds: tuple[int, int]) -> None:
    """Refuse shares that contradict each other.

    Raises:
        TrainingError: they do.
    """
    fit, tune = bounds
    if not 0 < fit < tune <= 100:
        raise TrainingError(
            f"--bounds {fit},{tune} must be two shares with 0 < fit < tune <= 100, for example 60,70."
        )


def check_parts(log: TrainingLog, bounds: tuple[int, int], fit: Columns, tune: Columns) -> None:
    """Refuse parts of a log that nothing can be learned from.

    Raises:
        TrainingError: a part has no user with two events, or a declared extra has no value.
    """
    for label, part in (("fit", fit), ("tune", tune)):
        if not (part["wave"] > 0).any():
            raise TrainingError(
                f"No user with two or more events falls into the part to {label} on (the log has "
                f"{len(log.columns['row']):,} events of {len(log.user_ids):,} users, split at {bounds[0]},{bounds[1]} "
                f"of crc32(user) % 100). Give a larger log, other --bounds or another --split-time."
            )
    for place, name in enumerate(log.extras):
        if np.isnan(fit["extra"][:, place]).all():
            raise TrainingError(
                f"No event of the users to fit on has a number extra.{name}. Leave it out of --extra, or with "
                f"--columns name its column: extra.{name}=COLUMN."
            )


@dataclass(frozen=True)
class Targets:
    """What came after each event, and what stood in the window before it; N rows like the columns.

    ``follows``: the user has a next event. ``log_gap_s``: of the gap to it, or of the silence until the log ends
    (then the gap is censored). ``purchase``: one follows in this session; ``purchase_known`` is false while the
    session may still go on when the log ends.
    """

    follows: NDArray[np.bool_]
    log_gap_s: NDArray[np.float32]
    purchase: NDArray[np.bool_]
    purchase_known: NDArray[np.bool_]


def targets_of(columns: Columns, purchase_code: int) -> Targets:
    """Look one event ahead, and to the end of each session."""
    row, time_ms = columns["row"], columns["event_time_ms"]
    n = len(row)
    follows = np.zeros(n, np.bool_)
    follows[:-1] = row[1:] == row[:-1]
    end_ms = int(time_ms.max()) if n else 0
    gap_ms = np.maximum(end_ms - time_ms, 0)
    gap_ms[:-1][follows[:-1]] = np.maximum(columns["gap_ms"][1:][follows[:-1]], 0)

    starts = columns["new_session"] | (columns["wave"] == 0)
    session = np.cumsum(starts) - 1
    bought = np.cumsum(columns["action"] == purchase_code)
    last = np.append(np.flatnonzero(starts)[1:], n) - 1
    purchase = bought[last][session] > bought if n else follows
    open_ = ~follows[last] & (end_ms - time_ms[last] < SESSION_GAP_MS) if n else follows
    return Targets(
        follows=follows,
        log_gap_s=np.log(np.maximum(gap_ms * 1e-3, 1.0)).astype(np.float32),
        purchase=purchase,
        purchase_known=purchase | ~open_[session] if n else follows,
    )


def windows_before(columns: Columns) -> NDArray[np.uint32]:
    """Category codes of each event's window before it, (N, 32)."""
    before = np.zeros((len(columns["row"]), WINDOW), np.uint32)
    before[1:] = columns["window_category"][:-1]
    before[columns["wave"] == 0] = 0
    return before


def frequent_categories(
    columns: Columns, names: Mapping[int, str], most: int = MOST_FREQUENT
) -> tuple[str, ...]:
    """Names of the categories that at least two users had, most frequent first, at most ``most``."""
    code, inverse = np.unique(columns["category"], return_inverse=True)
    events = np.bincount(inverse, minlength=len(code))
    pairs = np.unique(np.stack([inverse, columns["row"]]), axis=1)
    users = np.bincount(pairs[0], minlength=len(code))
    ranked = sorted((-int(e), int(c)) for c, e, u in zip(code, events, users, strict=True) if c and u >= 2)
    return tuple(names[c] for _, c in ranked if c in names)[:most]


def log_price_medians(columns: Columns, index: NDArray[np.int32], n_categories: int) -> NDArray[np.float32]:
    """The median log price of each category index, of all categories together where one has no price."""
    priced = ~np.isnan(columns["log_price"])
    price, at = columns["log_price"][priced], index[priced]
    overall = float(np.median(price)) if len(price) else 0.0
    medians = np.full(n_categories + 1, overall, np.float32)
    order = np.lexsort((price, at))
    present, first, count = np.unique(at[order], return_index=True, return_counts=True)
    medians[present] = price[order][first + count // 2]
    medians[0] = overall
    return medians
