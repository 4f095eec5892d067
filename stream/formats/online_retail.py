"""UCI Online Retail: a row a line of an invoice, times like ``2010-12-01 08:26:00``, which become purchases with lines.

An invoice whose number starts with C takes goods back: a ``return``, with pieces and sums as positive numbers. Rows
without a customer belong to nobody's history: the reader leaves them out and counts them. Customers are written as
decimals (``17850.0``); the id is the whole number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream.formats.shapes import Delimited
from stream.formats.values import iso_ms, number, required, text

__all__ = ["ONLINE_RETAIL", "adapt_row", "is_nobodys", "join"]

_COLUMNS = (
    "InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country",
)  # fmt: skip
#: Sums of prices of hundredths: a double would show more digits than they have.
_DECIMALS = 6


def is_nobodys(row: Mapping[str, str]) -> bool:
    """Whether a row has no customer."""
    return not row.get("CustomerID")


def adapt_row(row: Mapping[str, str]) -> dict[str, Any]:
    """A row as an order of one line; ``join`` makes one event of those of an invoice. Raises ``Rejected``."""
    order = required(text(row.get("InvoiceNo"), "column InvoiceNo"), "column InvoiceNo")
    customer = required(text(row.get("CustomerID"), "column CustomerID"), "column CustomerID")
    item = required(text(row.get("StockCode"), "column StockCode"), "column StockCode")
    event: dict[str, Any] = {
        "user_id": customer.removesuffix(".0"),
        "event_time_ms": iso_ms(row.get("InvoiceDate"), "column InvoiceDate"),
        "action": "purchase",
        "order_id": order,
    }
    quantity = number(row.get("Quantity"), "column Quantity")
    price = number(row.get("UnitPrice"), "column UnitPrice")
    if order[0] in "Cc":
        event["action"] = "return"
        quantity = None if quantity is None else abs(quantity)
    line: dict[str, Any] = {"item_id": item}
    if price is not None:
        line["price"] = price
    if quantity is not None:
        line["quantity"] = event["quantity"] = quantity
        if price is not None:
            event["price"] = round(price * quantity, _DECIMALS)
    return {**event, "lines": [line]}


def join(order: dict[str, Any], line: dict[str, Any]) -> None:
    """Add another line's event of the same invoice: the sums grow, the time is the earliest."""
    order["event_time_ms"] = min(order["event_time_ms"], line["event_time_ms"])
    order["lines"] += line["lines"]
    for name in ("quantity", "price"):
        if name in line:
            order[name] = round(order.get(name, 0) + line[name], _DECIMALS)


ONLINE_RETAIL = Delimited("online_retail", _COLUMNS, True, adapt_row, left_out=is_nobodys, join=join)
