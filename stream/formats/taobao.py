"""Taobao's UserBehavior log: user, item, category, behaviour, Unix seconds; no header."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream.formats.shapes import Delimited
from stream.formats.values import required, scaled_ms, text

__all__ = ["TAOBAO", "adapt_row"]

_ACTIONS = {"pv": "view", "fav": "favourite", "cart": "cart", "buy": "purchase"}


def adapt_row(row: Mapping[str, str]) -> dict[str, Any]:
    """A row as a canonical event. Raises ``Rejected``."""
    action = required(text(row.get("behaviour"), "column behaviour"), "column behaviour")
    event: dict[str, Any] = {
        "user_id": required(text(row.get("user"), "column user"), "column user"),
        "event_time_ms": scaled_ms(row.get("timestamp"), 1, "column timestamp"),
        "action": _ACTIONS.get(action, action),
    }
    if item := text(row.get("item"), "column item"):
        event["item_id"] = item
    if category := text(row.get("category"), "column category"):
        event["category_id"] = category
    return event


def _fits(row: list[str]) -> bool:
    return len(row) == 5 and row[3] in _ACTIONS and row[4].isdigit()


TAOBAO = Delimited(
    "taobao", ("user", "item", "category", "behaviour", "timestamp"), False, adapt_row, fits=_fits
)
