"""Segment's e-commerce events, version 2 of the specification: ``track`` calls as Segment delivers them.

Source: segment.com/docs/connections/spec/ecommerce/v2 and /spec/common.
Events that the specification does not name keep their own name and so count as ``other``.
"""

from __future__ import annotations

from typing import Any

from stream.formats.shapes import JsonLines
from stream.formats.values import Rejected, iso_ms, lines_of, number, required, text

__all__ = ["ACTIONS", "SEGMENT", "adapt_object"]

ACTIONS = {
    "Products Searched": "search",
    "Product List Viewed": "view",
    "Product List Filtered": "search",
    "Promotion Viewed": "view",
    "Promotion Clicked": "click",
    "Product Clicked": "click",
    "Product Viewed": "view",
    "Product Added": "cart",
    "Product Removed": "remove",
    "Cart Viewed": "view",
    "Checkout Started": "checkout",
    "Checkout Step Viewed": "checkout",
    "Checkout Step Completed": "checkout",
    "Payment Info Entered": "checkout",
    "Order Completed": "purchase",
    "Order Refunded": "return",
    "Product Added to Wishlist": "favourite",
    "Wishlist Product Added to Cart": "cart",
    "Product Reviewed": "review",
}
_LINE = {
    "item_id": ("product_id", "sku"),
    "category_id": ("category",),
    "price": ("price",),
    "quantity": ("quantity",),
}
_CALLS = frozenset(("track", "page", "screen", "identify", "group", "alias"))


def _recognises(call: dict[str, Any]) -> bool:
    if "messageId" in call or "anonymousId" in call or "userId" in call:
        return "event" in call or _is_call(call)
    return _is_call(call) and ("event" in call or "properties" in call)


def _is_call(call: dict[str, Any]) -> bool:
    kind = call.get("type")
    return type(kind) is str and kind in _CALLS


def _object(value: Any, path: str) -> dict[str, Any]:
    if value is None:
        return {}
    if type(value) is not dict:
        raise Rejected("wrong_type", f"expected object, got {type(value).__name__} at {path}")
    return value


def adapt_object(call: dict[str, Any]) -> dict[str, Any] | None:
    """A Segment call as a canonical event, or None when it is not one.

    The user is ``userId``, else ``anonymousId``. The price of an order is its total, of anything else the
    product's. An order of a single product is also an event of that product. Calls other than ``track`` have
    their type as action.

    Raises:
        Rejected: a field of the specification is missing or of another type.
    """
    if not _recognises(call):
        return None
    name = call.get("event")
    if name is None and _is_call(call) and call["type"] != "track":
        name = call["type"]
    name = required(text(name, "$.event"), "$.event")
    properties = _object(call.get("properties"), "$.properties")
    context = _object(call.get("context"), "$.context")
    device = _object(context.get("device"), "$.context.device")
    lines = lines_of(properties.get("products"), _LINE, "$.properties.products")
    only = lines[0] if lines and len(lines) == 1 else {}
    price = None
    for field in ("price", "total", "revenue", "value"):
        price = number(properties.get(field), f"$.properties.{field}")
        if price is not None:
            break
    event = {
        "user_id": required(
            text(call.get("userId"), "$.userId") or text(call.get("anonymousId"), "$.anonymousId"),
            "$.userId and $.anonymousId",
        ),
        "event_time_ms": iso_ms(call.get("timestamp"), "$.timestamp"),
        "action": ACTIONS.get(name, name),
        "event_id": text(call.get("messageId"), "$.messageId"),
        "item_id": text(properties.get("product_id"), "$.properties.product_id")
        or text(properties.get("sku"), "$.properties.sku")
        or only.get("item_id"),
        "category_id": text(properties.get("category"), "$.properties.category") or only.get("category_id"),
        "order_id": text(properties.get("order_id"), "$.properties.order_id"),
        "price": price,
        "quantity": number(properties.get("quantity"), "$.properties.quantity"),
        "currency": text(properties.get("currency"), "$.properties.currency"),
        "device_id": text(device.get("id"), "$.context.device.id"),
        "ip": text(context.get("ip"), "$.context.ip"),
        "lines": lines,
    }
    return {field: value for field, value in event.items() if value is not None}


SEGMENT = JsonLines("segment", adapt_object)
