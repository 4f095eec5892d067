"""Google Analytics 4 e-commerce: rows of the BigQuery export, Measurement Protocol payloads of one event.

Source: developers.google.com/analytics/devguides/collection/ga4/reference/events (names and parameters) and
    support.google.com/analytics/answer/7029846 (the export's schema).
Events that have no canonical action keep their own name and so count as ``other``.
"""

from __future__ import annotations

from typing import Any

from stream.formats.shapes import JsonLines
from stream.formats.values import Rejected, lines_of, number, required, scaled_ms, text

__all__ = ["ACTIONS", "GA4", "adapt_object"]

ACTIONS = {
    "view_item": "view",
    "view_item_list": "view",
    "view_promotion": "view",
    "view_cart": "view",
    "select_item": "click",
    "select_promotion": "click",
    "view_search_results": "search",
    "search": "search",
    "add_to_cart": "cart",
    "remove_from_cart": "remove",
    "add_to_wishlist": "favourite",
    "begin_checkout": "checkout",
    "add_shipping_info": "checkout",
    "add_payment_info": "checkout",
    "purchase": "purchase",
    "ecommerce_purchase": "purchase",
    "refund": "return",
}
_LINE = {
    "item_id": ("item_id", "item_name"),
    "category_id": ("item_category",),
    "price": ("price",),
    "quantity": ("quantity",),
}
_PARAMETER_KINDS = ("string_value", "int_value", "float_value", "double_value")


def _parameters(event: dict[str, Any]) -> dict[str, Any]:
    """Parameters from wherever this shape keeps them; what stands nearest to the event wins."""
    found: dict[str, Any] = {}
    exported = event.get("event_params")
    if type(exported) is list:
        for entry in exported:
            if type(entry) is dict and type(entry.get("key")) is str and type(entry.get("value")) is dict:
                kinds = entry["value"]
                found[entry["key"]] = next(
                    (kinds[k] for k in _PARAMETER_KINDS if kinds.get(k) is not None), None
                )
    for place in ("ecommerce", "params"):
        if type(event.get(place)) is dict:
            found.update(event[place])
    found.update(event)
    return found


def _single_event(payload: dict[str, Any]) -> dict[str, Any]:
    """The event of a Measurement Protocol payload, with the payload's user and time."""
    events = payload["events"]
    if type(events) is not list or len(events) != 1 or type(events[0]) is not dict:
        raise Rejected("wrong_type", "expected an array of one event at $.events; write one record an event")
    event = {field: value for field, value in payload.items() if field != "events"}
    event.update(events[0])
    event["event_name"] = event.get("name")
    return event


def adapt_object(event: dict[str, Any]) -> dict[str, Any] | None:
    """A GA4 event as a canonical event, or None when it is not one.

    The user is ``user_id``, else ``user_pseudo_id``, else ``client_id``. The price is ``value`` (an order's
    ``purchase_revenue`` in the export), else that of a single item. An event of one item is
    an event of that item.

    Raises:
        Rejected: a field is missing or of another type.
    """
    if "events" in event and ("client_id" in event or "app_instance_id" in event):
        event = _single_event(event)
    elif "event_name" not in event:
        return None
    name = required(text(event.get("event_name"), "$.event_name"), "$.event_name")
    fields = _parameters(event)
    lines = lines_of(fields.get("items"), _LINE, "$.items")
    only = lines[0] if lines and len(lines) == 1 else {}
    action = ACTIONS.get(name, name)
    price = number(fields.get("value"), "$.value")
    if price is None:
        price = number(fields.get("purchase_revenue"), "$.ecommerce.purchase_revenue")
    user_id = None
    for field in ("user_id", "user_pseudo_id", "client_id"):
        user_id = user_id or text(fields.get(field), f"$.{field}")
    # A session's number is unique only together with its user.
    session = text(fields.get("ga_session_id"), "$.ga_session_id")
    micros = "event_timestamp" if fields.get("event_timestamp") is not None else "timestamp_micros"
    device = fields.get("device")
    adapted = {
        "user_id": required(user_id, "$.user_id and $.user_pseudo_id"),
        "event_time_ms": scaled_ms(fields.get(micros), 1_000_000, f"$.{micros}"),
        "action": action,
        "event_id": text(fields.get("event_id"), "$.event_id"),
        "session_id": session and f"{user_id}.{session}",
        "item_id": only.get("item_id"),
        "category_id": only.get("category_id"),
        "order_id": text(fields.get("transaction_id"), "$.transaction_id"),
        "price": only.get("price") if price is None else price,
        "quantity": only.get("quantity"),
        "currency": text(fields.get("currency"), "$.currency"),
        "device_id": text(device.get("vendor_id"), "$.device.vendor_id") if type(device) is dict else None,
        "lines": lines if action in ("purchase", "return", "checkout") else None,
    }
    return {field: value for field, value in adapted.items() if value is not None}


GA4 = JsonLines("ga4", adapt_object)
