"""What a network reads of one event: one table, one function, the same in training and in the stream.

Every feature knows its name, unit, source and what stands in when the value is missing. Nothing comes from after
the event. Arithmetic is done on whole tiles of a multiple of 64 rows, because vectorised functions treat a
remainder with other code, whose last bit may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import groupby
from math import tau

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.columns import WINDOW, Columns
from models.errors import ModelError
from models.vocabulary import ActionVocabulary, CategoryVocabulary

TILE_ROWS = 64
# Powers of two: the lower bits of a code are its bucket.
HASH_BUCKETS = 64
ITEM_BUCKETS = 1024
ITEM_MISSING, ITEM_UNSEEN = 0, 1
ITEM_USERS = 5
LAGS = 4
# In spreads from the mean: an absurd price must not decide alone.
FURTHEST = 8.0
# Events' worth of the shop's shares in a user's own, and of a user's own in those after one action.
HABIT_MASS = 4.0
_MINUTE_MS = 60_000


def _clock() -> NDArray[np.float32]:
    """Sine and cosine of the hour and of the weekday, at each minute of a week that begins on a Thursday, (M, 4)."""
    minute = np.arange(7 * 1440)
    hour, weekday = minute % 1440 * (tau / 1440), minute // 1440 * (tau / 7)
    return np.stack([np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday)], axis=1).astype(np.float32)


_CLOCK = _clock()


@dataclass(frozen=True)
class FeatureSpec:
    """What features need to know beside the event, fitted on training users only.

    ``log_price_median``: float32 [V + 1], index 0 = all categories together. ``mean`` and ``sd``: float32 [F],
    one a number of the input (no unit). ``utc_offset_s``: the shop's clock against UTC, seconds. ``known_items``:
    bool [ITEM_BUCKETS], the hash buckets that hold an item of several training users; an item of another bucket
    counts as unseen. ``action_share``: float32 [A], of all training events, none 0. ``extras``: names of the event's
    further numbers that are read, in the order of their columns.
    """

    actions: ActionVocabulary
    categories: CategoryVocabulary
    utc_offset_s: int
    log_price_median: NDArray[np.float32]
    mean: NDArray[np.float32]
    sd: NDArray[np.float32]
    known_items: NDArray[np.bool_]
    action_share: NDArray[np.float32]
    extras: tuple[str, ...] = ()

    @cached_property
    def item_index(self) -> NDArray[np.int64]:
        """The index of each bucket's embedding."""
        own = np.arange(ITEM_BUCKETS, dtype=np.int64) + ITEM_UNSEEN + 1
        return np.where(self.known_items, own, ITEM_UNSEEN)


@dataclass(frozen=True)
class Inputs:
    """N rows, padded to a multiple of 64: ``x_NF`` float32 scaled, and indices int64 of the embeddings.

    ``action_NL``: the event's own action, then those of the events before it, newest first; A where there is none.
    """

    x_NF: Tensor
    action_NL: Tensor
    category_N: Tensor
    item_N: Tensor

    def to(self, device: str) -> Inputs:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def take(self, index_N: Tensor) -> Inputs:
        """The rows at ``index_N``, in that order."""
        return self._each(lambda tensor: tensor[index_N])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return Inputs(change(self.x_NF), change(self.action_NL), change(self.category_N), change(self.item_N))


class _Event:
    """What the table reads: the columns, the category's index, and the shop's clock."""

    def __init__(
        self, columns: Columns, category_index: NDArray[np.int32], window: _Window, spec: FeatureSpec
    ) -> None:
        self.columns = columns
        minute = (columns["event_time_ms"] + 1000 * spec.utc_offset_s) // _MINUTE_MS
        self.clock = _CLOCK.take(minute % len(_CLOCK), axis=0)
        self.price = columns["log_price"] - spec.log_price_median.take(category_index)
        followed, self.window_share = _window_counts(window, len(spec.actions))
        # Of a user without events they are the shop's shares, then the user's own by and by.
        life = _smoothed(columns["action_life"], columns["life_events"], spec.action_share)
        next_ = _smoothed(followed, followed.sum(axis=1), life)
        self.category_run, self.category_share = _category_counts(columns["window_category"])
        self.habit, self.next_habit = life / spec.action_share, next_ / spec.action_share


class _Window:
    """The actions of the last 32 events, turned so that one operation runs over all events: (W, N), newest last."""

    def __init__(self, columns: Columns) -> None:
        self.action_WN = columns["window_action"].T.copy()
        self.count_N = columns["window_count"]
        length = len(self.action_WN)
        self.empty_WN = np.arange(length, dtype=np.uint8)[:, None] < length - self.count_N


def _window_counts(window: _Window, n_actions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the last 31 events: how often each action followed the current one there, and the share of each at all.

    The first, (N, A), is the user's own row of a Markov chain; the event itself is the last that can have followed.
    The second, (N, A), sums to 1.
    """
    action_WN, empty_WN = window.action_WN, window.empty_WN
    n = action_WN.shape[1]
    after_same = action_WN[:-1] == action_WN[-1]
    after_same &= ~empty_WN[:-1]
    # One count for both: an action's bin is its code, A higher where it followed the current one; the last is empty.
    bins = 2 * n_actions + 1
    place = after_same * np.uint8(n_actions)
    place += action_WN[1:]
    np.maximum(place, empty_WN[1:] * np.uint8(bins - 1), out=place)
    flat = place.astype(np.int64)
    flat *= n
    flat += np.arange(n)
    counts_CN = np.bincount(flat.ravel(), minlength=bins * n).astype(np.float32).reshape(bins, n)
    share, followed = counts_CN[:n_actions], counts_CN[n_actions:-1]
    share += followed
    share /= np.minimum(window.count_N, np.uint8(WINDOW - 1))
    return followed.T, share.T


def _category_counts(window_NW: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """How many of the last events in a row had the newest one's category, and its share of the whole window.

    Both are 0 for an event without category.
    """
    same_NW = (window_NW == window_NW[:, -1:]) & (window_NW[:, -1:] != 0)
    other_NW = ~same_NW[:, ::-1]
    run_N = np.where(other_NW.any(axis=1), other_NW.argmax(axis=1), window_NW.shape[1])
    share_N = same_NW.sum(axis=1, dtype=np.float32) / np.float32(window_NW.shape[1])
    return run_N, share_N


def _smoothed(count_NA: NDArray, total_N: NDArray, prior_NA: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shares of counts to which ``HABIT_MASS`` events distributed like the prior are added."""
    mass = np.float32(HABIT_MASS)
    return (count_NA.astype(np.float32) + mass * prior_NA) / (total_N.astype(np.float32) + mass)[:, None]


@dataclass(frozen=True)
class Feature:
    """One line of the table.

    ``make`` gives the raw values, (N,) or (N, width); None = an embedding. ``width``: numbers it gives, -1 = one an
    action. ``transform``: a function of torch, applied to all neighbours in the table that share it at once.
    ``one_scale``: its numbers are divided by one spread, their root mean square, and not centred: they stay
    comparable, and 0 stays 0.
    """

    name: str
    unit: str
    source: str
    default: str
    make: Callable[[_Event], NDArray] | None
    transform: str = ""
    width: int = 1
    version: int = 1
    one_scale: bool = False


FEATURES: tuple[Feature, ...] = (
    Feature("action", "index", "action", "other", None, width=0),
    Feature("last_actions", "index a lag", "window_action", "an index of its own", None, width=0),
    Feature("category", "index", "category", "index 0, and category_missing says so", None, width=0),
    Feature("item", "index", "item", "index 0; 1 for an unseen one", None, width=0),
    Feature("log_gap", "log(1 + s)", "gap_ms", "0, and first_event says so",
            lambda e: np.maximum(e.columns["gap_ms"], 0) * 1e-3, "log1p"),
    Feature("session_position", "log(1 + events)", "session_position", "-",
            lambda e: e.columns["session_position"], "log1p"),
    Feature("life_events", "log(1 + events)", "life_events", "-", lambda e: e.columns["life_events"], "log1p"),
    Feature("session_actions", "log(1 + events) an action", "action_session", "0",
            lambda e: e.columns["action_session"], "log1p", width=-1),
    Feature("life_actions", "log(1 + events) an action", "action_life", "0",
            lambda e: e.columns["action_life"], "log1p", width=-1),
    # NEVER_S, the greatest number, becomes 0 by adding one.
    Feature("action_age", "log(2 + s) an action", "action_age_s", "0",
            lambda e: e.columns["action_age_s"] + np.uint32(1), "log1p", width=-1, version=2),
    Feature("hour", "sine and cosine", "event_time_ms", "-", lambda e: e.clock[:, :2], width=2),
    Feature("weekday", "sine and cosine", "event_time_ms", "-", lambda e: e.clock[:, 2:], width=2),
    Feature("price", "log against the category's median", "log_price", "0, and price_missing says so",
            lambda e: np.where(np.isnan(e.price), np.float32(0), e.price)),
    Feature("price_missing", "flag", "log_price", "1", lambda e: np.isnan(e.price)),
    Feature("category_missing", "flag", "category", "1", lambda e: e.columns["category"] == 0),
    Feature("first_event", "flag", "gap_ms", "-", lambda e: e.columns["gap_ms"] < 0),
    Feature("new_session", "flag", "new_session", "-", lambda e: e.columns["new_session"]),
    Feature("repeat_item", "flag", "repeat_item", "0", lambda e: e.columns["repeat_item"]),
    Feature("repeat_category", "flag", "repeat_category", "0", lambda e: e.columns["repeat_category"]),
    Feature("category_run", "log(1 + events)", "window_category", "0", lambda e: e.category_run, "log1p"),
    Feature("category_share", "share of 32 events", "window_category", "0", lambda e: e.category_share),
    Feature("window_actions", "share an action", "window_action", "-", lambda e: e.window_share, width=-1),
    Feature("habit", "log share an action, against the shop's", "action_life", "-",
            lambda e: e.habit, "log", width=-1, one_scale=True),
    Feature("next_habit", "log share an action after this one, against the shop's", "window_action", "-",
            lambda e: e.next_habit, "log", width=-1, one_scale=True),
)  # fmt: skip


_EXTRA, _EXTRA_MISSING = "extra.", "extra_missing."


@lru_cache
def features_of(extras: tuple[str, ...] = ()) -> tuple[Feature, ...]:
    """The table with two lines more for each declared extra."""
    values = [
        Feature(_EXTRA + name, "asinh(value)", f"extra.{name}", f"0, and {_EXTRA_MISSING}{name} says so",
                partial(_extra, place), "asinh")
        for place, name in enumerate(extras)
    ]  # fmt: skip
    flags = [
        Feature(_EXTRA_MISSING + name, "flag", f"extra.{name}", "1", partial(_extra_missing, place))
        for place, name in enumerate(extras)
    ]
    return (*FEATURES, *values, *flags)


def _extra(place: int, event: _Event) -> NDArray:
    return np.nan_to_num(event.columns["extra"][:, place])


def _extra_missing(place: int, event: _Event) -> NDArray:
    return np.isnan(event.columns["extra"][:, place])


def declared(extras: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """The table as a manifest keeps it: name, version and unit of every feature."""
    return [{"name": f.name, "version": f.version, "unit": f.unit} for f in features_of(extras)]


def extras_of(wanted: Sequence[dict[str, object]]) -> tuple[str, ...]:
    """The extras among the features of a manifest."""
    names = [str(feature["name"]) for feature in wanted]
    return tuple(name.removeprefix(_EXTRA) for name in names if name.startswith(_EXTRA))


def numeric_width(n_actions: int, n_extras: int = 0) -> int:
    """How many numbers F one event gives beside its embeddings' indices."""
    return sum(n_actions if f.width < 0 else f.width for f in FEATURES) + 2 * n_extras


def numbers_of(name: str, n_actions: int) -> slice:
    """Which of the F numbers a feature gives."""
    start = 0
    for feature in FEATURES:
        width = n_actions if feature.width < 0 else feature.width
        if feature.name == name:
            return slice(start, start + width)
        start += width
    raise KeyError(name)


def missing_features(wanted: Sequence[dict[str, object]]) -> list[str]:
    """Names of wanted features that this build lacks or makes in another version."""
    made = {(f.name, f.version) for f in features_of(extras_of(wanted))}
    return [str(f["name"]) for f in wanted if (f["name"], f["version"]) not in made]


def padded_rows(rows: int) -> int:
    """The number of rows after padding to whole tiles."""
    return -(-rows // TILE_ROWS) * TILE_ROWS


def raw_inputs(columns: Columns, spec: FeatureSpec) -> Inputs:
    """Features before scaling; ``spec.mean`` and ``spec.sd`` are not read."""
    if columns["action_session"].shape[1] != len(spec.actions):
        raise ModelError(
            f"The columns count {columns['action_session'].shape[1]} actions, the model knows {len(spec.actions)}. "
            f"Fold the events with the model's own vocabulary."
        )
    if columns["extra"].shape[1] != len(spec.extras):
        raise ModelError(
            f"The columns hold {columns['extra'].shape[1]} extras, the model declares {len(spec.extras)} "
            f"({', '.join(spec.extras) or 'none'}). Fold the events with the model's own extras."
        )
    n = len(columns["action"])
    rows = padded_rows(n)
    index = spec.categories.index_of(columns["category"])
    window = _Window(columns)
    event = _Event(columns, index, window, spec)
    # The padding is 1, which every transform takes.
    x_NF = torch.ones(rows, numeric_width(len(spec.actions), len(spec.extras)))
    filled = x_NF.numpy()
    start = 0
    for transform, group in groupby(features_of(spec.extras), key=lambda feature: feature.transform):
        stop = start
        for feature in group:
            if feature.make is not None:
                width = len(spec.actions) if feature.width < 0 else feature.width
                filled[:n, stop : stop + width] = feature.make(event).reshape(n, width)
                stop += width
        if transform:
            # A contiguous copy: the function then sees whole tiles and no row's remainder.
            x_NF[:, start:stop] = getattr(torch, transform)(x_NF[:, start:stop].contiguous())
        start = stop
    # A category that is not frequent shares one of 64 learned buckets, found by its code.
    category = columns["category"]
    bucket = (category & np.uint32(HASH_BUCKETS - 1)) + np.uint32(len(spec.categories) + 1)
    embedded = np.where((index == 0) & (category != 0), bucket, index)
    item = spec.item_index.take(columns["item"] & np.uint32(ITEM_BUCKETS - 1))
    item *= columns["item"] != 0
    newest = slice(None, -2 - LAGS, -1)
    no_action = window.empty_WN[newest] * np.uint8(len(spec.actions))
    last_LN = np.maximum(window.action_WN[newest], no_action)
    return Inputs(x_NF, _padded(last_LN.T, rows), _padded(embedded, rows), _padded(item, rows))


def item_buckets(columns: Columns, least_users: int = ITEM_USERS) -> NDArray[np.bool_]:
    """Which hash buckets hold an item that at least so many users had, bool [ITEM_BUCKETS]."""
    pairs = np.unique(np.stack([columns["item"], columns["row"].astype(np.uint32)]), axis=1)
    item, users = np.unique(pairs[0], return_counts=True)
    known = np.zeros(ITEM_BUCKETS, np.bool_)
    known[item[(users >= least_users) & (item != 0)] & np.uint32(ITEM_BUCKETS - 1)] = True
    return known


def _padded(index_N: NDArray, rows: int) -> Tensor:
    out = np.zeros((rows, *index_N.shape[1:]), np.int64)
    out[: len(index_N)] = index_N
    return torch.from_numpy(out)


def inputs(columns: Columns, spec: FeatureSpec) -> Inputs:
    """Scaled features of N events, padded to a multiple of 64 rows; the padding is finite and means nothing.

    Args:
        columns: as ``models.columns.LAYOUT``; row n of every column is event n.
        spec: vocabularies, medians and scaling of the model's training users.

    Raises:
        ModelError: the columns were folded with another vocabulary of actions.
    """
    raw = raw_inputs(columns, spec)
    raw.x_NF.sub_(torch.from_numpy(spec.mean)).div_(torch.from_numpy(spec.sd)).clamp_(-FURTHEST, FURTHEST)
    return raw
