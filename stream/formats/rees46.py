"""REES46's public store logs: times like ``2019-10-01 00:00:00 UTC``, categories, prices, sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream.formats.shapes import Delimited
from stream.formats.values import iso_ms, number, required, text

__all__ = ["REES46", "adapt_row"]

_ACTIONS = {"view": "view", "cart": "cart", "remove_from_cart": "remove", "purchase": "purchase"}
_COLUMNS = (
    "event_time", "event_type", "product_id", "category_id", "category_code", "brand", "price",
    "user_id", "user_session",
)  # fmt: skip


def adapt_row(row: Mapping[str, str]) -> dict[str, Any]:
    """A row as a canonical event. Brand and category code are not fields of it. Raises ``Rejected``."""
    action = required(text(row.get("event_type"), "column event_type"), "column event_type")
    time = text(row.get("event_time"), "column event_time")
    event: dict[str, Any] = {
        "user_id": required(text(row.get("user_id"), "column user_id"), "column user_id"),
        "event_time_ms": iso_ms(time, "column event_time"),
        "action": _ACTIONS.get(action, action),
    }
    if session := text(row.get("user_session"), "column user_session"):
        event["session_id"] = session
    if item := text(row.get("product_id"), "column product_id"):
        event["item_id"] = item
    if category := text(row.get("category_id"), "column category_id"):
        event["category_id"] = category
    if (price := number(row.get("price"), "column price")) is not None:
        event["price"] = price
    return event


REES46 = Delimited("rees46", _COLUMNS, True, adapt_row)
