"""The shapes of input that an adapter can describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Delimited", "JsonLines", "Sequences"]


@dataclass(frozen=True)
class Delimited:
    """Delimited text, a row an event.

    Attributes:
        name: as ``--format`` knows it.
        columns: names in the order of the layout. A header may order them otherwise and have others besides.
        has_header: whether the first row names the columns.
        adapt_row: cells by column name -> canonical dict; raises ``Rejected``.
        delimiter: one character.
        fits: whether the first row looks like this layout, where no header tells.
        left_out: whether a row belongs to nobody: the reader of a file leaves it out and counts it.
        join: where a row is a line of an order, adds one to the first of the same user and order. Such a layout is for
            files only, as a record is one event.
        label: the column that says what somebody found the row's user to be; for training, never part of the event.
    """

    name: str
    columns: tuple[str, ...]
    has_header: bool
    adapt_row: Callable[[Mapping[str, str]], dict[str, Any]]
    delimiter: str = ","
    fits: Callable[[list[str]], bool] | None = None
    left_out: Callable[[Mapping[str, str]], bool] | None = None
    join: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
    label: str | None = None


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line.

    Attributes:
        name: as ``--format`` knows it.
        adapt_object: object -> canonical dict, or None when it has another shape; raises ``Rejected``.
    """

    name: str
    adapt_object: Callable[[dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Sequences:
    """One JSON object a line with several events of one user; for files only, as a record is one event.

    Attributes:
        name: as ``--format`` knows it.
        events_of: object -> canonical dicts, or None when it has another shape; raises ``Rejected``.
    """

    name: str
    events_of: Callable[[dict[str, Any]], list[dict[str, Any]] | None]
