"""RetailRocket's public log: ``timestamp,visitorid,event,itemid,transactionid``, times in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream.formats.shapes import Delimited
from stream.formats.values import required, scaled_ms, text

__all__ = ["RETAILROCKET", "adapt_row"]

_ACTIONS = {"view": "view", "addtocart": "cart", "transaction": "purchase"}


def adapt_row(row: Mapping[str, str]) -> dict[str, Any]:
    """A row as a canonical event; the transaction is the order. Raises ``Rejected``."""
    action = required(text(row.get("event"), "column event"), "column event")
    event: dict[str, Any] = {
        "user_id": required(text(row.get("visitorid"), "column visitorid"), "column visitorid"),
        "event_time_ms": scaled_ms(row.get("timestamp"), 1000, "column timestamp"),
        "action": _ACTIONS.get(action, action),
    }
    if item := text(row.get("itemid"), "column itemid"):
        event["item_id"] = item
    if order := text(row.get("transactionid"), "column transactionid"):
        event["order_id"] = order
    return event


RETAILROCKET = Delimited(
    "retailrocket", ("timestamp", "visitorid", "event", "itemid", "transactionid"), True, adapt_row
)
