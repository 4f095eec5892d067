"""Cells and JSON values read into canonical types, or rejected with the reason that a dead letter carries.

Every function takes ``path``, the place of the value as the producer knows it (``$.properties.price``,
``column price``). ``None`` and the empty string both mean absent: delimited text cannot tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["Rejected", "iso_ms", "lines_of", "number", "required", "scaled_ms", "text", "time_reader"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_MS = timedelta(milliseconds=1)
# Beyond this a double no longer holds whole milliseconds; no clock of a shop is there.
_END_MS = 2**53
# Seconds reach this in the year 5138, milliseconds did in March 1973: what separates them when nobody said.
_SECONDS_END = 100_000_000_000


class Rejected(Exception):
    """An input that is recognised but not usable: a value with a destination, the dead letters.

    Attributes:
        reason: one of the reasons of ``stream.events.Rejection``.
        message: what was expected, and where.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def required(value: str | None, path: str) -> str:
    """The value; rejects None as ``missing_field``."""
    if value is None:
        raise Rejected("missing_field", f"missing value at {path}")
    return value


def text(value: Any, path: str) -> str | None:
    """A name or an id: strings as they are, whole numbers as decimal text, absent as None."""
    if type(value) is str:
        return value or None
    if value is None:
        return None
    # str() of an integer refuses more than 4,300 digits; no id is that long.
    if type(value) is int and abs(value) < 10**40:
        return str(value)
    raise Rejected("wrong_type", f"expected str, got {type(value).__name__} at {path}")


def number(value: Any, path: str) -> float | int | None:
    """A finite number, also when written as text; absent as None."""
    if value is None or value == "":
        return None
    if type(value) not in (str, int, float):
        raise Rejected("wrong_type", f"expected a number, got {type(value).__name__} at {path}")
    try:
        as_float = float(value)
    except ValueError:
        raise Rejected("wrong_type", f"expected a number, got {value[:40]!r} at {path}") from None
    except OverflowError:
        as_float = math.inf
    if not math.isfinite(as_float):
        raise Rejected("not_finite", f"expected a finite number at {path}")
    return value if type(value) is int else as_float


def scaled_ms(value: Any, per_second: int, path: str) -> int:
    """Unix time counted ``per_second`` (1, 1000 or 1,000,000) as whole milliseconds, rounded down.

    Whole numbers stay whole: microseconds of today do not pass through a double.
    """
    try:
        whole: int | float = int(value) if type(value) in (str, int) else value
    except ValueError:
        whole = 0.0
    if type(whole) is not int or not value:
        read = number(value, path)
        if read is None:
            raise Rejected("missing_field", f"missing value at {path}")
        whole = read
    ms = whole * 1000 // per_second
    if not 0 < ms < _END_MS:
        raise Rejected("wrong_type", f"expected Unix time after 1970, {per_second} units a second, at {path}")
    return int(ms)


def iso_ms(value: Any, path: str) -> int:
    """ISO 8601 as Unix milliseconds; without an offset, or with the word UTC after it, the time is UTC."""
    if not value:
        raise Rejected("missing_field", f"missing value at {path}")
    try:
        moment = datetime.fromisoformat(value.removesuffix(" UTC"))
    except (AttributeError, TypeError, ValueError):
        raise Rejected("wrong_type", f"expected ISO 8601 time at {path}") from None
    return _moment_ms(moment, path)


def _moment_ms(moment: datetime, path: str) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    ms = (moment - _EPOCH) // _ONE_MS
    if ms <= 0:
        raise Rejected("wrong_type", f"expected a time after 1970 at {path}")
    return ms


def _told_apart_ms(value: Any, path: str) -> int:
    """Seconds, milli-, micro- or nanoseconds since 1970 or ISO 8601, told apart by the value itself."""
    try:
        size = float(value)
    except (TypeError, ValueError):
        return iso_ms(value, path)
    per_second = 1
    while size >= _SECONDS_END * per_second and per_second < 1_000_000_000:
        per_second *= 1000
    return scaled_ms(value, per_second, path)


def time_reader(time_format: str | None) -> Callable[[Any, str], int]:
    """The reader of ``--time-format``: ``s``, ``ms``, ``iso``, a strptime pattern; None goes by each value.

    Raises:
        ValueError: the pattern has no ``%`` and is none of the names.
    """
    if time_format is None:
        return _told_apart_ms
    if time_format in ("s", "ms"):
        per_second = 1 if time_format == "s" else 1000
        return lambda value, path: scaled_ms(value, per_second, path)
    if time_format == "iso":
        return iso_ms
    if "%" not in time_format:
        raise ValueError(f"unknown time format {time_format!r}")

    def by_pattern(value: Any, path: str) -> int:
        if not value:
            raise Rejected("missing_field", f"missing value at {path}")
        try:
            moment = datetime.strptime(value, time_format)
        except (TypeError, ValueError):
            raise Rejected("wrong_type", f"expected time like {time_format!r} at {path}") from None
        return _moment_ms(moment, path)

    return by_pattern


def lines_of(products: Any, names: Mapping[str, tuple[str, ...]], path: str) -> list[dict[str, Any]] | None:
    """Order lines from a list of product objects.

    Args:
        products: a list of objects, or None.
        names: canonical field (item_id, category_id, price, quantity) -> the source's names, best first.
        path: of the list.
    """
    if products is None:
        return None
    if type(products) is not list:
        raise Rejected("wrong_type", f"expected array, got {type(products).__name__} at {path}")
    lines = []
    for position, product in enumerate(products):
        if type(product) is not dict:
            raise Rejected(
                "wrong_type", f"expected object, got {type(product).__name__} at {path}[{position}]"
            )
        line = {}
        for field, candidates in names.items():
            read = text if field.endswith("_id") else number
            for name in candidates:
                value = read(product.get(name), f"{path}[{position}].{name}")
                if value is not None:
                    line[field] = value
                    break
        if line:
            lines.append(line)
    return lines or None
