"""What a network reads of one event: one table, one function, the same in training and in the stream.

Every feature knows its name, unit, source and what stands in when the value is missing. Nothing comes from after
the event. Arithmetic is done on whole tiles of a multiple of 64 rows, because vectorised functions treat a
remainder with other code, whose last bit may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import tau

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.columns import NEVER_S, Columns
from models.errors import ModelError
from models.vocabulary import ActionVocabulary, CategoryVocabulary

TILE_ROWS = 64
HASH_BUCKETS = 64
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class FeatureSpec:
    """What features need to know beside the event, fitted on training users only.

    ``log_price_median``: float32 [V + 1], index 0 = all categories together. ``mean`` and ``sd``: float32 [F],
    one a number of the input (no unit). ``utc_offset_s``: the shop's clock against UTC, seconds.
    """

    actions: ActionVocabulary
    categories: CategoryVocabulary
    utc_offset_s: int
    log_price_median: NDArray[np.float32]
    mean: NDArray[np.float32]
    sd: NDArray[np.float32]


@dataclass(frozen=True)
class Inputs:
    """N rows, padded to a multiple of 64: ``x_NF`` float32 scaled, and indices int64 of the embeddings."""

    x_NF: Tensor
    action_N: Tensor
    category_N: Tensor

    def to(self, device: str) -> Inputs:
        """The same on another device."""
        return Inputs(self.x_NF.to(device), self.action_N.to(device), self.category_N.to(device))


class _Event:
    """What the table reads: the columns, the category's index, and the shop's clock."""

    def __init__(self, columns: Columns, category_index: NDArray[np.int32], spec: FeatureSpec) -> None:
        self.columns = columns
        local_ms = columns["event_time_ms"] + 1000 * spec.utc_offset_s
        self.hour = local_ms % _DAY_MS * (tau / _DAY_MS)
        self.weekday = local_ms // _DAY_MS % 7 * (tau / 7)
        self.price = columns["log_price"] - spec.log_price_median.take(category_index)
        self.never = columns["action_age_s"] == NEVER_S


@dataclass(frozen=True)
class Feature:
    """One line of the table.

    ``make`` gives the raw values, (N,) or (N, width); None = an embedding. ``width``: numbers it gives, -1 = one an
    action. ``transform``: a function of torch, applied to all neighbours in the table that share it at once.
    """

    name: str
    unit: str
    source: str
    default: str
    make: Callable[[_Event], NDArray] | None
    transform: str = ""
    width: int = 1
    version: int = 1


FEATURES: tuple[Feature, ...] = (
    Feature("action", "index", "action", "other", None, width=0),
    Feature("category", "index", "category", "index 0, and category_missing says so", None, width=0),
    Feature("log_gap", "log(1 + s)", "gap_ms", "0, and first_event says so",
            lambda e: np.maximum(e.columns["gap_ms"], 0) * 1e-3, "log1p"),
    Feature("session_position", "log(1 + events)", "session_position", "-",
            lambda e: e.columns["session_position"], "log1p"),
    Feature("life_events", "log(1 + events)", "life_events", "-", lambda e: e.columns["life_events"], "log1p"),
    Feature("session_actions", "log(1 + events) an action", "action_session", "0",
            lambda e: e.columns["action_session"], "log1p", width=-1),
    Feature("action_age", "log(1 + s) an action", "action_age_s", "0, and action_never says so",
            lambda e: np.where(e.never, np.uint32(0), e.columns["action_age_s"]), "log1p", width=-1),
    Feature("hour_sin", "sine", "event_time_ms", "-", lambda e: e.hour, "sin"),
    Feature("weekday_sin", "sine", "event_time_ms", "-", lambda e: e.weekday, "sin"),
    Feature("hour_cos", "cosine", "event_time_ms", "-", lambda e: e.hour, "cos"),
    Feature("weekday_cos", "cosine", "event_time_ms", "-", lambda e: e.weekday, "cos"),
    Feature("price", "log against the category's median", "log_price", "0, and price_missing says so",
            lambda e: np.where(np.isnan(e.price), np.float32(0), e.price)),
    Feature("price_missing", "flag", "log_price", "1", lambda e: np.isnan(e.price)),
    Feature("category_missing", "flag", "category", "1", lambda e: e.columns["category"] == 0),
    Feature("first_event", "flag", "gap_ms", "-", lambda e: e.columns["gap_ms"] < 0),
    Feature("new_session", "flag", "new_session", "-", lambda e: e.columns["new_session"]),
    Feature("repeat_item", "flag", "repeat_item", "0", lambda e: e.columns["repeat_item"]),
    Feature("repeat_category", "flag", "repeat_category", "0", lambda e: e.columns["repeat_category"]),
    Feature("action_never", "flag an action", "action_age_s", "1", lambda e: e.never, width=-1),
)  # fmt: skip


def declared() -> list[dict[str, object]]:
    """The table as a manifest keeps it: name, version and unit of every feature."""
    return [{"name": f.name, "version": f.version, "unit": f.unit} for f in FEATURES]


def numeric_width(n_actions: int) -> int:
    """How many numbers F one event gives beside its two embedding indices."""
    return sum(n_actions if f.width < 0 else f.width for f in FEATURES)


def missing_features(wanted: Sequence[dict[str, object]]) -> list[str]:
    """Names of wanted features that this build lacks or makes in another version."""
    made = {(f.name, f.version) for f in FEATURES}
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
    n = len(columns["action"])
    rows = padded_rows(n)
    index = spec.categories.index_of(columns["category"])
    event = _Event(columns, index, spec)
    x_NF = torch.zeros(rows, numeric_width(len(spec.actions)))
    filled = x_NF.numpy()
    start = 0
    for transform, group in groupby(FEATURES, key=lambda feature: feature.transform):
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
    bucket = len(spec.categories) + 1 + (columns["category"] % HASH_BUCKETS).astype(np.int64)
    embedded = np.where((index == 0) & (columns["category"] != 0), bucket, index)
    return Inputs(x_NF, _padded(columns["action"], rows), _padded(embedded, rows))


def _padded(index_N: NDArray, rows: int) -> Tensor:
    out = np.zeros(rows, np.int64)
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
    raw.x_NF.sub_(torch.from_numpy(spec.mean)).div_(torch.from_numpy(spec.sd))
    return raw
