"""Adapters: other people's events as canonical ones. One adapter a file, all pure.

An adapter maps actions that mean the same (``pv``, ``Product Viewed`` and ``view_item`` are ``view``), takes
ids as text and times as Unix milliseconds, leaves absent fields out, and raises nothing but ``Rejected``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from stream.errors import ConfigurationError
from stream.formats import ga4, segment
from stream.formats.canonical import CANONICAL
from stream.formats.columns import by_columns, delimiter_of
from stream.formats.ga4 import GA4
from stream.formats.online_retail import ONLINE_RETAIL
from stream.formats.rees46 import REES46
from stream.formats.retailrocket import RETAILROCKET
from stream.formats.segment import SEGMENT
from stream.formats.shapes import Delimited, JsonLines, Sequences
from stream.formats.shopee import SHOPEE
from stream.formats.taobao import TAOBAO
from stream.formats.tpp import TPP
from stream.formats.values import Rejected

__all__ = [
    "FILE_FORMATS",
    "FORMATS",
    "Delimited",
    "JsonLines",
    "Rejected",
    "Sequences",
    "adapt_object",
    "adapt_record",
    "by_columns",
    "delimiter_of",
    "file_format_named",
    "format_named",
    "record_adapter",
]

FORMATS: dict[str, Delimited | JsonLines] = {
    layout.name: layout for layout in (CANONICAL, SEGMENT, GA4, RETAILROCKET, REES46, TAOBAO, SHOPEE)
}
#: What a file may hold; a topic holds an event a record, so no sequences and no orders of several rows.
FILE_FORMATS: dict[str, Delimited | JsonLines | Sequences] = {
    **FORMATS,
    ONLINE_RETAIL.name: ONLINE_RETAIL,
    TPP.name: TPP,
}


def format_named(name: str) -> Delimited | JsonLines:
    """A topic's format of that name; raises ``ConfigurationError`` with the names that exist."""
    if name not in FORMATS:
        raise _unknown_format(name, FORMATS)
    return FORMATS[name]


def file_format_named(name: str) -> Delimited | JsonLines | Sequences:
    """A file's format of that name; raises ``ConfigurationError`` with the names that exist."""
    if name not in FILE_FORMATS:
        raise _unknown_format(name, FILE_FORMATS)
    return FILE_FORMATS[name]


def _unknown_format(name: str, known: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(
        f"Unknown format {name!r}. Use one of {', '.join(known)}, or --columns user=…,time=…,action=…"
    )


def adapt_object(event: dict[str, Any]) -> dict[str, Any] | None:
    """A JSON object of a foreign shape (Segment, GA4) as a canonical dict; None when it is neither.

    Raises:
        Rejected: the shape is recognised, but a field is missing or of another type.
    """
    adapted = ga4.adapt_object(event)
    return segment.adapt_object(event) if adapted is None else adapted


def record_adapter(format_name: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """What adapts a topic's JSON objects that are not canonical; ``auto`` goes by the shape of each.

    For a delimited format these are objects with the layout's columns as names; whole lines are `adapt_record`'s.

    Raises:
        ConfigurationError: no format has that name.
    """
    if format_name == "auto":
        return adapt_object
    layout = format_named(format_name)
    if isinstance(layout, JsonLines):
        return layout.adapt_object
    return lambda row: layout.adapt_row(row) if layout.columns[0] in row else None


def adapt_record(format_name: str) -> Callable[[bytes], dict[str, Any]]:
    """The decoder of one record's value that is in the named format: a JSON object, or one delimited line.

    A line has the columns of the layout, in its order. What is returned raises only ``Rejected``.

    Raises:
        ConfigurationError: no format has that name.
    """
    layout = format_named(format_name)
    return _json_reader(layout) if isinstance(layout, JsonLines) else _line_reader(layout)


def _json_reader(layout: JsonLines) -> Callable[[bytes], dict[str, Any]]:
    decode = msgspec.json.Decoder().decode

    def read(value: bytes) -> dict[str, Any]:
        try:
            decoded = decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected("undecodable", str(error)) from None
        if type(decoded) is not dict:
            raise Rejected("wrong_type", f"expected object, got {type(decoded).__name__}")
        adapted = layout.adapt_object(decoded)
        if adapted is None:
            raise Rejected("missing_field", f"expected an event of the format {layout.name}")
        return adapted

    return read


def _line_reader(layout: Delimited) -> Callable[[bytes], dict[str, Any]]:
    def read(value: bytes) -> dict[str, Any]:
        try:
            rows = list(csv.reader([value.decode()], delimiter=layout.delimiter, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise Rejected("undecodable", str(error)) from None
        if len(rows) != 1 or len(rows[0]) != len(layout.columns):
            raise Rejected("undecodable", f"expected one line of the columns {', '.join(layout.columns)}")
        return layout.adapt_row(dict(zip(layout.columns, rows[0], strict=True)))

    return read
