"""The canonical event as it stands: nothing is mapped, only what reading a file needs is checked.

The full check (every field, sizes, the key) is the decoder's, in ``stream.events``.
"""

from __future__ import annotations

from typing import Any

from stream.formats.shapes import JsonLines
from stream.formats.values import Rejected

__all__ = ["CANONICAL", "adapt_object"]

_REQUIRED = (("user_id", str), ("event_time_ms", int), ("action", str))


def adapt_object(event: dict[str, Any]) -> dict[str, Any]:
    """The object itself; raises ``Rejected`` when user, time or action is absent or of another type."""
    for field, kind in _REQUIRED:
        value = event.get(field)
        if type(value) is not kind:
            if value is None:
                raise Rejected("missing_field", f"Object missing required field `{field}`")
            raise Rejected("wrong_type", f"expected {kind.__name__}, got {type(value).__name__} at $.{field}")
    return event


CANONICAL = JsonLines("canonical", adapt_object)
