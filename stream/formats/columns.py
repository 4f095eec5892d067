"""Any delimited text, by naming its columns: ``user=visitor,time=ts,action=kind,extra.width=w``.

A log's own action names are kept. With a header a column is its name, without one its position from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stream.errors import ConfigurationError
from stream.formats.shapes import Delimited
from stream.formats.values import Rejected, number, text, time_reader

__all__ = ["by_columns", "delimiter_of", "extras_named"]

_FIELDS: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "user": ("user_id", text),
    "action": ("action", text),
    "event": ("event_id", text),
    "session": ("session_id", text),
    "item": ("item_id", text),
    "category": ("category_id", text),
    "shop": ("shop_id", text),
    "order": ("order_id", text),
    "price": ("price", number),
    "quantity": ("quantity", number),
    "currency": ("currency", text),
    "device": ("device_id", text),
    "ip": ("ip", text),
}
# Names under which people know a field, those of the canonical event among them.
_ALIASES = {
    "user_id": "user",
    "timestamp": "time",
    "event_time": "time",
    "event_time_ms": "time",
    "event_type": "action",
    "event_id": "event",
    "session_id": "session",
    "item_id": "item",
    "category_id": "category",
    "shop_id": "shop",
    "order_id": "order",
    "device_id": "device",
}
_EXAMPLE = "--columns user=visitor,time=timestamp,action=event,item=product"


def by_columns(
    columns: str, *, delimiter: str | None = None, time_format: str | None = None, header: bool = True
) -> Delimited:
    r"""The layout that ``--columns`` describes.

    Args:
        columns: ``field=column`` pairs with commas between them; a field may also be given the name that it has in
            the canonical event (``user_id``). ``user`` and ``time`` are required, and
            ``action`` unless ``order`` is given: a log of orders has only purchases. ``label`` is no part of the event.
        delimiter: one character, ``\t`` or ``tab`` for a tab; a comma by default.
        time_format: ``s``, ``ms``, ``iso`` or a strptime pattern; None goes by each value.
        header: whether the first row names the columns.

    Raises:
        ConfigurationError: an unknown or repeated field, a required one missing, a position that is none.
    """
    pairs = _pairs(columns, header)
    try:
        read_time = time_reader(time_format)
    except ValueError as error:
        raise ConfigurationError(
            f"--time-format: {error}. Use s, ms, iso or a pattern like '%d/%m/%Y %H:%M'."
        ) from None
    delimiter = delimiter_of(delimiter or ",")
    plain = [(*_FIELDS[f], c, _place(c, header)) for f, c in pairs.items() if f in _FIELDS]
    extra = [
        (f.removeprefix("extra."), c, _place(c, header)) for f, c in pairs.items() if f.startswith("extra.")
    ]
    time_column, time_place = pairs["time"], _place(pairs["time"], header)

    def adapt_row(row: Mapping[str, str]) -> dict[str, Any]:
        event: dict[str, Any] = {"event_time_ms": read_time(row.get(time_column), time_place)}
        for field, read, column, place in plain:
            if (value := read(row.get(column), place)) is not None:
                event[field] = value
        if "user_id" not in event:
            raise Rejected("missing_field", f"missing value at {_place(pairs['user'], header)}")
        if "action" not in event:
            if "action" in pairs:
                raise Rejected("missing_field", f"missing value at {_place(pairs['action'], header)}")
            event["action"] = "purchase"
        numbers = {name: number(row.get(column), place) for name, column, place in extra}
        if numbers := {name: value for name, value in numbers.items() if value is not None}:
            event["extra"] = numbers
        return event

    names = tuple(dict.fromkeys(pairs.values()))
    return Delimited("columns", names, header, adapt_row, delimiter, label=pairs.get("label"))


def extras_named(columns: str | None) -> tuple[str, ...]:
    """The extras that a ``--columns`` names, in its order."""
    fields = (part.partition("=")[0].strip() for part in (columns or "").split(","))
    return tuple(
        dict.fromkeys(field.removeprefix("extra.") for field in fields if field.startswith("extra."))
    )


def delimiter_of(name: str) -> str:
    """The character that ``--delimiter`` means; raises ``ConfigurationError`` when it is none."""
    delimiter = {"\\t": "\t", "tab": "\t"}.get(name, name)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ConfigurationError(f"--delimiter {name!r} is not one character. Use for example ';' or tab.")
    return delimiter


def _place(column: str, header: bool) -> str:
    return f"column {column}" if header else f"column number {column}"


def _pairs(columns: str, header: bool) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in columns.split(","):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        field = _ALIASES.get(field, field)
        known = (
            field in _FIELDS
            or field in ("time", "label")
            or (field.startswith("extra.") and len(field) > len("extra."))
        )
        if not equals or not column or not known:
            raise ConfigurationError(
                f"--columns: {part.strip()!r} is not FIELD=COLUMN with FIELD one of "
                f"time, {', '.join(_FIELDS)}, label, extra.NAME. Example: {_EXAMPLE}"
            )
        if field in pairs:
            raise ConfigurationError(
                f"--columns: {field} is given twice. Keep one of {pairs[field]} and {column}."
            )
        if not header and not (column.isascii() and column.isdigit() and 0 < int(column[:6]) <= 10_000):
            raise ConfigurationError(
                f"--columns: {field}={column} needs a position from 1 when --no-header is given. "
                f"Example: user=1,time=5,action=4"
            )
        pairs[field] = column if header else str(int(column))
    needed = ("user", "time") if "order" in pairs else ("user", "time", "action")
    if missing := [field for field in needed if field not in pairs]:
        raise ConfigurationError(f"--columns: {', '.join(missing)} is missing. Example: {_EXAMPLE}")
    return pairs
