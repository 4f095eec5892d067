"""Log files as the records that a replay would produce: every line becomes one record, good or not.

(A line of a format of sequences becomes as many as it holds; the rows of an order become one.)

    bytes -> lines -> FileRecord(line, key, value, event_time_ms) -> ordered by event time

A file is read as a whole before anything is handed out, so that a truncated archive or a missing column is
an error before a consumer has written half of its output. A line that no adapter can use keeps its original
bytes as value, and ends where a bad record of the topic ends: in the dead letters, with the decoder's reason.
"""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from stream.errors import ConfigurationError, InputFileError
from stream.formats import (
    FILE_FORMATS,
    FORMATS,
    Delimited,
    JsonLines,
    Rejected,
    Sequences,
    adapt_object,
    by_columns,
    delimiter_of,
    file_format_named,
)
from stream.formats.tpp import TPP

__all__ = ["FileRecord", "LogFile", "read_log", "read_records"]

#: A quoted cell that runs over more lines than this is a stray quote: only its first line is rejected.
_MAX_CELL_LINES = 100


class FileRecord(NamedTuple):
    """One line of a file as a Kafka record.

    Attributes:
        line: number of the (first) line in the file, from 1.
        key: user id in UTF-8; empty when the line has none, so that the value's own fault is reported.
        value: canonical JSON, or the line's original bytes when it is canonical already or cannot be used.
        event_time_ms: Unix milliseconds, None when the line has none.
        unusable: why a row of delimited text is no event, None of one that is.
        label: what somebody found the user to be, where the layout has a column of it; never part of the value.
    """

    line: int
    key: bytes
    value: bytes
    event_time_ms: int | None
    unusable: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class LogFile:
    """A file read to its end: its name, the format found, and its records in the order asked for.

    ``left_out`` counts the rows that belong to nobody (orders without a customer) and so are no record. ``has_labels``:
    the layout names a column of labels, however many rows have one.
    """

    name: str
    format: str
    records: list[FileRecord]
    left_out: int = 0
    has_labels: bool = False


class _Head(msgspec.Struct):
    """What of a canonical line is needed to route and order it."""

    user_id: str
    event_time_ms: int
    action: str


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def read_records(
    path: str | Path,
    format: str = "auto",  # noqa: A002 - the flag's name
    **options: Any,
) -> list[FileRecord]:
    """The records of a file; arguments and errors as `read_log`."""
    return read_log(path, format, **options).records


def read_log(
    path: str | Path,
    format: str = "auto",  # noqa: A002 - the flag's name
    *,
    columns: str | None = None,
    delimiter: str | None = None,
    time_format: str | None = None,
    header: bool = True,
    order: str = "time",
    limit: int | None = None,
) -> LogFile:
    """Read a log, plain or gzip, as records.

    Args:
        path: a file, or ``-`` for standard input.
        format: a name of ``stream.formats.FILE_FORMATS``, or ``auto`` to go by the shape of the first line.
        columns: field=column pairs that describe delimited text, instead of a format (``by_columns``).
        delimiter: of delimited text, a comma by default.
        time_format: of ``columns``: ``s``, ``ms``, ``iso`` or a strptime pattern.
        header: whether the first row of delimited text names its columns.
        order: ``time`` sorts stably by event time, ``file`` does not. A line without a time stays behind the
            line before it.
        limit: at most so many records, the first ones of that order.

    Raises:
        InputFileError: missing, unreadable, truncated, empty, binary, or not of the format.
        ConfigurationError: a flag is unknown or contradicts another.
    """
    if order not in ("time", "file"):
        raise ConfigurationError(f"--order {order!r} is unknown. Use time or file.")
    if limit is not None and limit < 0:
        raise ConfigurationError(f"--limit {limit} is negative. Use 0 or more.")
    layout = _layout_of(format, columns, delimiter, time_format, header)
    name = "standard input" if str(path) == "-" else str(path)
    data = _text_bytes(path, name)
    if layout is None:
        layout = _detected(data, name, delimiter)
    left_out = 0
    if isinstance(layout, JsonLines):
        records = _json_records(data, layout, detected=format == "auto")
    elif isinstance(layout, Sequences):
        records = _sequence_records(data, layout)
    else:
        records, left_out = _delimited_records(data, layout, name)
    if not records and left_out:
        raise InputFileError(f"{name} has {left_out} rows, none with a customer: there is nobody to score.")
    if not records:
        raise InputFileError(f"{name} has a header but no rows. Check that it was written to its end.")
    if order == "time":
        records = _by_time(records)
    has_labels = isinstance(layout, Delimited) and layout.label is not None
    return LogFile(name, layout.name, records if limit is None else records[:limit], left_out, has_labels)


def _layout_of(
    named: str, columns: str | None, delimiter: str | None, time_format: str | None, header: bool
) -> Delimited | JsonLines | Sequences | None:
    """The format that the flags name; None leaves it to the file's first line."""
    if columns is not None:
        if named not in ("auto", "columns"):
            raise ConfigurationError(
                f"--format {named} and --columns contradict each other. Give one of them."
            )
        return by_columns(columns, delimiter=delimiter, time_format=time_format, header=header)
    if named == "columns":
        raise ConfigurationError("--format columns needs --columns user=…,time=…,action=… beside it.")
    if time_format is not None:
        raise ConfigurationError(
            "--time-format belongs to --columns; a named format has its own. Leave it out."
        )
    if named == "auto":
        return None
    layout = file_format_named(named)
    if not isinstance(layout, Delimited):
        return layout
    return replace(
        layout,
        has_header=layout.has_header and header,
        delimiter=layout.delimiter if delimiter is None else delimiter_of(delimiter),
    )


# ---- bytes


def _text_bytes(path: str | Path, name: str) -> bytes:
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise InputFileError(f"There is no file {name}. Check the path; - reads standard input.") from None
    except IsADirectoryError:
        raise InputFileError(f"{name} is a directory. Name one file in it.") from None
    except OSError as error:
        raise InputFileError(
            f"{name} cannot be read: {error.strerror}. Check its permissions with ls -l."
        ) from None
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except EOFError:
            raise InputFileError(
                f"{name} is a truncated .gz: it ends in the middle. Fetch it again, then: gzip -t {name}"
            ) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise InputFileError(
                f"{name} is a damaged .gz: {error}. Fetch it again and check it with: gzip -t {name}"
            ) from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data[:65536]:
        raise InputFileError(
            f"{name} is binary, not text. Logs are UTF-8 lines, plain or .gz: decompress or export it first."
        )
    if not data.strip():
        raise InputFileError(f"{name} is empty. Check that it was written, or name another file.")
    return data


def _detected(data: bytes, name: str, delimiter: str | None) -> Delimited | JsonLines | Sequences:
    first = data.lstrip().partition(b"\n")[0].decode(errors="replace").strip()
    if first.startswith("{"):
        return TPP if _holds_sequence(first, TPP) else FORMATS["canonical"]
    if first.startswith("["):
        raise InputFileError(
            f"{name} is one JSON array. Write an object a line: jq -c '.[]' {name} > events.jsonl"
        )
    separator = "," if delimiter is None else delimiter_of(delimiter)
    row = [cell.strip() for cell in next(csv.reader([first], delimiter=separator))]
    layouts = [
        replace(layout, delimiter=separator)
        for layout in FILE_FORMATS.values()
        if isinstance(layout, Delimited)
    ]
    for layout in layouts:
        if layout.fits(row) if layout.fits else set(layout.columns) <= set(row):
            return layout
    for layout in layouts:
        # Most of the header is there: which column is missing helps more than that nothing is known.
        if layout.has_header and 2 * len(set(layout.columns) & set(row)) > len(layout.columns):
            return layout
    raise InputFileError(
        f"{name} has no known format; its first line is {first[:80]!r}. Describe it with "
        f"--columns user=…,time=…,action=… (and --no-header if that line is data), "
        f"or name one with --format {'|'.join(FILE_FORMATS)}."
    )


def _holds_sequence(line: str, layout: Sequences) -> bool:
    try:
        document = _decode_any(line)
        return type(document) is dict and layout.events_of(document) is not None
    except (msgspec.DecodeError, UnicodeError, RecursionError, Rejected):
        return False


# ---- lines


def _json_records(data: bytes, layout: JsonLines, detected: bool) -> list[FileRecord]:
    records = []
    for line, value in enumerate(data.split(b"\n"), 1):
        if not (value := value.strip()):
            continue
        if layout.name == "canonical":
            try:
                head = _decode_head(value)
                records.append(FileRecord(line, head.user_id.encode(), value, head.event_time_ms))
                continue
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass
        records.append(_judged(line, value, adapt_object if detected else layout.adapt_object))
    return records


def _judged(line: int, value: bytes, adapt: Any) -> FileRecord:
    """A line of JSON that is not canonical: adapted, else its own bytes under the best key that it has."""
    try:
        document = _decode_any(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return FileRecord(line, b"", value, None)
    if type(document) is not dict:
        return FileRecord(line, b"", value, None)
    try:
        if (event := adapt(document)) is not None:
            return _encoded(line, event)
    except Rejected:
        pass
    user, time = document.get("user_id"), document.get("event_time_ms")
    key = user.encode(errors="replace") if type(user) is str else b""
    return FileRecord(line, key, value, time if type(time) is int else None)


def _sequence_records(data: bytes, layout: Sequences) -> list[FileRecord]:
    records: list[FileRecord] = []
    for line, value in enumerate(data.split(b"\n"), 1):
        if not (value := value.strip()):
            continue
        try:
            document = _decode_any(value)
            if type(document) is dict and (events := layout.events_of(document)) is not None:
                records += [_encoded(line, event) for event in events]
                continue
        except (msgspec.DecodeError, UnicodeError, RecursionError, Rejected):
            pass
        records.append(FileRecord(line, b"", value, None))
    return records


def _encoded(line: int, event: dict[str, Any]) -> FileRecord:
    try:
        return FileRecord(line, event["user_id"].encode(), _encode(event), event["event_time_ms"])
    except UnicodeEncodeError:
        raise Rejected("undecodable", "expected UTF-8") from None


def _delimited_records(data: bytes, layout: Delimited, name: str) -> tuple[list[FileRecord], int]:
    """The records, and how many rows belong to nobody."""
    # Bytes that are no UTF-8 matter only in the columns that are used; escaped, they come back as they were.
    lines = data.decode(errors="surrogateescape").split("\n")
    rows = _rows(lines, layout.delimiter)
    header: list[str] | None = None
    records: list[FileRecord] = []
    orders: dict[tuple[str, str], tuple[int, int, dict[str, Any]]] = {}  # place, line, event
    left_out = 0
    for line, n_lines, cells in rows:
        if header is None:
            header = _header_of(cells or [], layout, name)
            if layout.has_header:
                continue
        unusable = f"expected {len(header)} columns"
        if cells is not None and len(cells) == len(header):
            row = dict(zip(header, cells, strict=True))
            if layout.left_out is not None and layout.left_out(row):
                left_out += 1
                continue
            try:
                event = layout.adapt_row(row)
                record = _encoded(line, event)
                if layout.label is not None and (label := row[layout.label].strip()):
                    record = record._replace(label=label)
                if layout.join is not None:
                    order = (event["user_id"], event["order_id"])
                    if order in orders:
                        layout.join(orders[order][2], event)
                        continue
                    orders[order] = (len(records), line, event)
                records.append(record)
                continue
            except Rejected as rejected:
                unusable = rejected.message
        original = "\n".join(lines[line - 1 : line - 1 + n_lines])
        records.append(FileRecord(line, b"", original.encode(errors="surrogateescape"), None, unusable))
    for place, line, event in orders.values():
        records[place] = _encoded(line, event)
    return records, left_out


def _header_of(first_row: list[str], layout: Delimited, name: str) -> list[str]:
    """The names of a row's cells; raises InputFileError when the layout's columns are not all among them."""
    if layout.has_header:
        header = [cell.strip() for cell in first_row]
    elif layout.name == "columns":
        header = [str(position) for position in range(1, len(first_row) + 1)]
    else:
        header = list(layout.columns)
        if len(first_row) != len(header):
            raise InputFileError(
                f"{name} has {len(first_row)} columns in its first row, {layout.name} has "
                f"{len(header)}: {', '.join(header)}. Name another --format, or use --columns."
            )
    if missing := [column for column in layout.columns if column not in header]:
        kind = "--columns" if layout.name == "columns" else f"the format {layout.name}"
        raise InputFileError(
            f"{name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {kind}; "
            f"it has {', '.join(header)[:200]}. Map its columns with --columns user=…,time=…,action=… "
            f"(and --delimiter, --no-header)."
        )
    return header


def _rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, int, list[str] | None]]:
    """First line (from 1), number of lines, and cells of every row that is not blank.

    The cells are None where quotes do not close.
    """
    at = 0
    while at < len(lines):
        text = lines[at].rstrip("\r")
        n_lines = 1
        cells: list[str] | None
        if '"' not in text:
            cells = text.split(delimiter)
        else:
            ahead = (f"{line}\n" for line in lines[at : at + _MAX_CELL_LINES])
            reader = csv.reader(ahead, delimiter=delimiter, strict=True)
            try:
                cells = next(reader)
                n_lines = reader.line_num
            except csv.Error:
                cells = None
        if text.strip():
            yield at + 1, n_lines, cells
        at += n_lines


def _by_time(records: list[FileRecord]) -> list[FileRecord]:
    times = []
    last_ms = 0
    for record in records:
        last_ms = last_ms if record.event_time_ms is None else record.event_time_ms
        times.append(last_ms)
    return [records[index] for index in sorted(range(len(records)), key=times.__getitem__)]
