"""Shopee's order log: ``orderid,shopid,userid,event_time``, times like ``2019-12-27 00:00:08``, read as UTC.

A row is one order, so its id is the event's id too: the same order twice is one event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream.formats.shapes import Delimited
from stream.formats.values import iso_ms, required, text

__all__ = ["SHOPEE", "adapt_row"]


def adapt_row(row: Mapping[str, str]) -> dict[str, Any]:
    """A row as a canonical purchase; an order without a shop or a buyer is none. Raises ``Rejected``."""
    order = required(text(row.get("orderid"), "column orderid"), "column orderid")
    return {
        "user_id": required(text(row.get("userid"), "column userid"), "column userid"),
        "event_time_ms": iso_ms(text(row.get("event_time"), "column event_time"), "column event_time"),
        "action": "purchase",
        "event_id": order,
        "order_id": order,
        "shop_id": required(text(row.get("shopid"), "column shopid"), "column shopid"),
    }


SHOPEE = Delimited("shopee", ("orderid", "shopid", "userid", "event_time"), True, adapt_row)
