"""What a network reads of one event: one table, one function, the same in training and in the stream.

Every feature knows its name, unit, source and what stands in when the value is missing. Nothing comes from after
the event. Arithmetic is done on whole tiles of a multiple of 64 rows, because vectorised functions treat a
remainder with other code, whose last bit may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


class _Reader:
    """Columns as float32 tensors of a padded number of rows."""

    def __init__(self, columns: Columns, rows: int, category_index: NDArray[np.int64], spec: FeatureSpec) -> None:
        self.columns, self.rows, self.spec, self.category_index = columns, rows, spec, category_index

    def padded(self, values: NDArray, dtype: str = "f4") -> Tensor:
        out = np.zeros((self.rows, *values.shape[1:]), dtype)
        out[: len(values)] = values
        return torch.from_numpy(out)

    def column(self, name: str) -> Tensor:
        return self.padded(self.columns[name])

    def local_ms(self) -> NDArray[np.int64]:
        return self.columns["event_time_ms"] + 1000 * self.spec.utc_offset_s

    def angle(self, part: NDArray, whole: int) -> Tensor:
        turn = self.padded(part * (tau / whole))
        return torch.stack([torch.sin(turn), torch.cos(turn)], dim=1)


def _log_gap(read: _Reader) -> Tensor:
    return read.padded(np.maximum(read.columns["gap_ms"], 0) * 1e-3).log1p_()


def _price(read: _Reader) -> Tensor:
    against = read.columns["log_price"] - read.spec.log_price_median.take(read.category_index)
    return read.padded(np.nan_to_num(against, nan=0.0))


def _age(read: _Reader) -> Tensor:
    age = read.columns["action_age_s"]
    return read.padded(np.where(age == NEVER_S, np.uint32(0), age)).log1p_()


@dataclass(frozen=True)
class Feature:
    """One line of the table. ``width``: numbers it gives, -1 = one an action. ``make``: None = an embedding."""

    name: str
    unit: str
    source: str
    default: str
    width: int
    make: Callable[[_Reader], Tensor] | None
    version: int = 1


FEATURES: tuple[Feature, ...] = (
    Feature("action", "index", "action", "other", 0, None),
    Feature("category", "index", "category", "index 0, and category_missing says so", 0, None),
    Feature("category_missing", "flag", "category", "1", 1, lambda r: r.padded(r.columns["category"] == 0)),
    Feature("log_gap", "log(1 + s)", "gap_ms", "0, and first_event says so", 1, _log_gap),
    Feature("first_event", "flag", "gap_ms", "-", 1, lambda r: r.padded(r.columns["gap_ms"] < 0)),
    Feature("hour", "sin, cos", "event_time_ms", "-", 2, lambda r: r.angle(r.local_ms() % _DAY_MS, _DAY_MS)),
    Feature("weekday", "sin, cos", "event_time_ms", "-", 2, lambda r: r.angle(r.local_ms() // _DAY_MS % 7, 7)),
    Feature("session_position", "log(1 + events)", "session_position", "-", 1,
            lambda r: r.column("session_position").log1p_()),
    Feature("new_session", "flag", "new_session", "-", 1, lambda r: r.column("new_session")),
    Feature("price", "log against the category's median", "log_price", "0, and price_missing says so", 1, _price),
    Feature("price_missing", "flag", "log_price", "1", 1, lambda r: r.padded(np.isnan(r.columns["log_price"]))),
    Feature("repeat_item", "flag", "repeat_item", "0", 1, lambda r: r.column("repeat_item")),
    Feature("repeat_category", "flag", "repeat_category", "0", 1, lambda r: r.column("repeat_category")),
    Feature("session_actions", "log(1 + events) an action", "action_session", "0", -1,
            lambda r: r.column("action_session").log1p_()),
    Feature("action_age", "log(1 + s) an action", "action_age_s", "0, and action_never says so", -1, _age),
    Feature("action_never", "flag an action", "action_age_s", "1", -1,
            lambda r: r.padded(r.columns["action_age_s"] == NEVER_S)),
    Feature("life_events", "log(1 + events)", "life_events", "-", 1, lambda r: r.column("life_events").log1p_()),
)


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
    read = _Reader(columns, rows, index, spec)
    x_NF = torch.empty(rows, numeric_width(len(spec.actions)))
    at = 0
    for feature in FEATURES:
        if feature.make is None:
            continue
        values = feature.make(read).view(rows, -1)
        width = values.shape[1]
        x_NF[:, at : at + width] = values
        at += width
    # A category that is not frequent shares one of 64 learned buckets, found by its code.
    bucket = len(spec.categories) + 1 + (columns["category"] % HASH_BUCKETS).astype(np.int64)
    embedded = np.where((index == 0) & (columns["category"] != 0), bucket, index)
    return Inputs(x_NF, read.padded(columns["action"], "i8"), read.padded(embedded, "i8"))


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
