"""What hostile records are made of: events whose fields are raw JSON text, foreign shapes, and awkward names."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

NOON_MS = 1_735_000_000_000
MARK = "injected"  # stands behind every line break that is smuggled in: no line of a log may begin with it
EVENT = "event"
USER = "hostile"


class Poison(NamedTuple):
    """One record; ``expected`` is None where only the laws that hold for all records are asked of it."""

    name: str
    key: bytes | None
    value: bytes | None
    expected: str | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


def raw_event(**texts: str | None) -> bytes:
    """A canonical event whose fields are given as JSON text, so that no encoder mends them; None leaves one out."""
    fields: dict[str, str | None] = {
        "user_id": f'"{USER}"',
        "event_time_ms": str(NOON_MS),
        "action": '"view"',
        "event_id": '"e1"',
        "item_id": '"i1"',
        "category_id": '"c1"',
        "price": "9.5",
        **texts,
    }
    pairs = (f'"{name}":{text}' for name, text in fields.items() if text is not None)
    return ("{" + ",".join(pairs) + "}").encode("utf-8", "surrogatepass")


def event_of(user: str, **texts: str | None) -> tuple[bytes, bytes]:
    """Key and value of an event of a user with an awkward name."""
    return user.encode(), raw_event(user_id=json.dumps(user), **texts)


def segment(**given: Any) -> bytes:
    """A Segment call as Segment would send it, but for what is given."""
    properties = {
        "product_id": "i1",
        "category": "c1",
        "price": 9.5,
        "products": [{"product_id": "i1", "price": 1}],
    }
    call = {
        "type": "track",
        "event": "Product Viewed",
        "messageId": "m1",
        "userId": USER,
        "timestamp": "2024-12-24T00:26:40.000Z",
        "properties": properties,
        "context": {"ip": "::1", "device": {"id": "d"}},
    }
    return json.dumps({**call, **given}).encode()


def ga4(**given: Any) -> bytes:
    """A row of GA4's export, but for what is given."""
    row = {
        "event_name": "view_item",
        "event_timestamp": NOON_MS * 1000,
        "user_id": USER,
        "event_params": [{"key": "value", "value": {"double_value": 9.5}}],
        "items": [{"item_id": "i1", "price": 9.5}],
        "device": {"vendor_id": "d"},
    }
    return json.dumps({**row, **given}).encode()


#: Names of users, items and actions that somebody downstream might take for something else.
HOSTILE_NAMES = (
    f"a\n{MARK}",
    f"a\r\n{MARK}: yes\r\n\r\n",
    f"a\u2028{MARK}\u2029{MARK}\x85{MARK}\x0b{MARK}\x0c{MARK}",
    "a\0b",
    "\x1b[2J\x1b]0;title\x07",
    "\x7f\x80\x9b",
    "\u202egpj.exe\u202c \u2066x\u2069",
    "\ufeff",
    "\ufffe\uffff",
    "e\u0301" * 60,
    "👩‍👩‍👧‍👦" * 15,
    "../../../../etc/passwd",
    "..\\..\\windows",
    "/state/../healthz?x=1#y",
    "file:///dev/zero",
    "%0d%0aSet-Cookie: a=b",
    "%00%2e%2e",
    '","event_id":"',
    '"}],"user_id":"u1"',
    "\\",
    '\\"',
    "'; DROP TABLE clicks; --",
    "${jndi:ldap://localhost/a}",
    "{{7*7}}",
    "{0.__class__}",
    "%s%n%d",
    "<script>alert(1)</script>",
    "null",
    "NaN",
    "-1",
    " ",
    "\t",
    "a" * 512,
)

#: Texts of numbers that are none, or none that fits.
WRONG_NUMBERS = ("1e400", "-1e400", "9" * 400, "-" + "9" * 5000, "NaN", "Infinity", "-Infinity")
NO_JSON = (
    "+1",
    ".5",
    "1.",
    "0x10",
    "1_000",
    "01",
    "--1",
    "1e",
    "nan",
    "True",
    "undefined",
    "'a'",
    '"\x01"',
    "",
)
WRONG_TIMES = (
    "1735000000000.0",
    "0",
    "-1",
    "-9007199254740993",
    "9007199254740992",
    "9223372036854775808",
    "1e15",
    "1.5",
    "true",
    '"5"',
)
