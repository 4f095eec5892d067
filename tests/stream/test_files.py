"""Laws of reading log files: what becomes of each line, in which order, and what a bad file says."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from stream.errors import ConfigurationError, InputFileError
from stream.events import Event, decode_events
from stream.files import FileRecord, read_log, read_records
from stream.simulated import simulated_records, soiled_records

TAOBAO = b"7,1,9,pv,1511550520\n8,2,9,buy,1511550510\n7,3,9,cart,1511550520\n"
RETAILROCKET = b"timestamp,visitorid,event,itemid,transactionid\n1430636062541,5,view,9,\n"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write bytes to a file and give its path."""

    def write_bytes(data: bytes, name: str = "log") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_bytes


def test_records_are_ordered_by_event_time_stably(write: Any) -> None:
    """Public logs are sorted by user: they are replayed by time, equal times in the file's order."""
    assert [record.line for record in read_records(write(TAOBAO))] == [2, 1, 3]
    assert [record.line for record in read_records(write(TAOBAO), order="file")] == [1, 2, 3]
    assert [record.line for record in read_records(write(TAOBAO), limit=2)] == [2, 1]


def test_a_delimited_line_becomes_a_keyed_canonical_record(write: Any) -> None:
    """The key is the user, the value canonical JSON."""
    assert read_records(write(TAOBAO))[0] == FileRecord(
        2,
        b"8",
        b'{"user_id":"8","event_time_ms":1511550510000,"action":"purchase","item_id":"2","category_id":"9"}',
        1511550510000,
    )


def test_a_canonical_line_keeps_its_bytes(write: Any) -> None:
    """What is canonical already is not written again, unknown fields and spaces included."""
    line = b'{"action": "view", "event_time_ms": 5, "user_id": "u", "colour": "red"}'
    assert read_records(write(line + b"\r\n\n")) == [FileRecord(1, b"u", line, 5)]


def test_lines_that_nobody_can_use_are_kept_as_they_are(write: Any) -> None:
    """A bad line becomes a record of its own bytes, after the line before it, with the best key there is."""
    good = b'{"user_id":"u","event_time_ms":50,"action":"view"}'
    early = b'{"user_id":"u","event_time_ms":20,"action":"view"}'
    bad = [b'{"user_id":"u","event_time_ms":60', b'{"user_id":"u","event_time_ms":40}', b"[1]", b"\xff\xfe"]
    records = read_records(write(b"\n".join([good, *bad, early])))
    assert [(record.line, record.key, record.value) for record in records] == [
        (6, b"u", early),
        (3, b"u", bad[1]),
        (4, b"", bad[2]),
        (5, b"", bad[3]),
        (1, b"u", good),
        (2, b"", bad[0]),
    ]


def test_a_bad_delimited_line_keeps_its_original_text(write: Any) -> None:
    """Rows of another width, with an empty user or with bytes that are no UTF-8 go on as they stood."""
    bad = [b"7,1,9,pv", b",1,9,pv,1511550520", b"\xff,1,9,pv,1511550520"]
    records = read_records(write(TAOBAO + b"\n".join(bad)), order="file")
    assert [record.value for record in records[3:]] == bad
    assert {(record.key, record.event_time_ms) for record in records[3:]} == {(b"", None)}


def test_a_stray_quote_costs_one_line(write: Any) -> None:
    """A quote that never closes rejects its own line, not the rest of the file."""
    head = b"when,who,what\n"
    rows = [b'5,"a ""b""\n,c",view', b'5,"a,view', b'5,"d",view']
    records = read_records(
        write(head + b"\n".join(rows)), columns="user=who,time=when,action=what", order="file"
    )
    assert [(record.line, record.key) for record in records] == [(2, b'a "b"\n,c'), (4, b""), (5, b"d")]
    assert records[1].value == rows[1]


def test_bytes_outside_the_used_columns_do_not_matter(write: Any) -> None:
    """A description in another encoding loses no event."""
    data = b"user,time,act,note\n1,5,view,\xa35\n"
    assert read_records(write(data), columns="user=user,time=time,action=act")[0].key == b"1"


def test_a_header_may_stand_in_another_order(write: Any) -> None:
    """Columns are found by name, behind a byte order mark, among others."""
    data = b"\xef\xbb\xbfextra,visitorid,timestamp,event,itemid,transactionid\nx,5,1430636062541,view,9,\n"
    log = read_log(write(data))
    assert log.format == "retailrocket"
    assert log.records[0].key == b"5"


def test_foreign_json_is_recognised_line_by_line(write: Any) -> None:
    """One file may hold canonical, Segment and GA4 events."""
    lines = [
        b'{"user_id":"a","event_time_ms":5,"action":"view"}',
        b'{"event":"Product Viewed","messageId":"m","userId":"b","timestamp":"2024-05-01T10:00:00Z"}',
        b'{"event_name":"purchase","user_pseudo_id":"c","event_timestamp":1714557600250000}',
    ]
    records = read_records(write(b"\n".join(lines)))
    events = decode_events([record.key for record in records], [record.value for record in records])
    assert [event.action for event in events if isinstance(event, Event)] == ["view", "view", "purchase"]


def test_gzip_and_standard_input_are_read_as_they_are(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .gz gives the same records as the plain file, also through a pipe."""
    plain = read_records(write(TAOBAO))
    packed = gzip.compress(TAOBAO)
    assert read_records(write(packed, "log.gz")) == plain
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed)))
    assert read_records("-") == plain


def test_a_named_format_can_do_without_its_header(write: Any) -> None:
    """--no-header reads a known layout by its column order."""
    data = RETAILROCKET.partition(b"\n")[2]
    assert read_records(write(data), "retailrocket", header=False)[0].key == b"5"


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (b"", {}, "log is empty. Check that"),
        (b" \n\n", {}, "log is empty"),
        (gzip.compress(TAOBAO * 99)[:-20], {}, "log is a truncated .gz: .* gzip -t"),
        (gzip.compress(TAOBAO)[:-8] + b"\1\2\3\4" + gzip.compress(TAOBAO)[-4:], {}, "log is a damaged .gz"),
        (b"PAR1\0\0\0", {}, "log is binary, not text"),
        (b'[{"user_id": "u"}]', {}, r"log is one JSON array.*jq -c '\.\[\]'"),
        (b"a;b;c\n1;2;3\n", {}, "log has no known format; its first line is 'a;b;c'.*--columns"),
        (
            RETAILROCKET.replace(b"itemid", b"item"),
            {},
            "log lacks the column itemid of the format retailrocket",
        ),
        (RETAILROCKET.partition(b"\n")[0], {}, "log has a header but no rows"),
        (RETAILROCKET, {"format": "rees46"}, "log lacks the columns event_time, event_type, product_id"),
        (
            RETAILROCKET,
            {"columns": "user=who,time=timestamp,action=event"},
            "lacks the column who of --columns",
        ),
        (TAOBAO, {"columns": "user=1,time=9,action=4", "header": False}, "lacks the column 9 of --columns"),
        (b"1,2\n", {"format": "taobao"}, "log has 2 columns in its first row, taobao has 5"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_what_mends_it(
    write: Any, data: bytes, options: dict[str, Any], message: str
) -> None:
    """Nothing is handed out of a file that is not one: the error names it and the flag or command."""
    with pytest.raises(InputFileError, match=message):
        read_records(write(data), **options)


def test_a_path_that_is_no_file_says_so(tmp_path: Path) -> None:
    """A missing file and a directory are told apart."""
    with pytest.raises(InputFileError, match=r"There is no file .*nowhere\. Check the path"):
        read_records(tmp_path / "nowhere")
    with pytest.raises(InputFileError, match="is a directory"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "user"}, "--order 'user' is unknown"),
        ({"limit": -1}, "--limit -1 is negative"),
        ({"format": "xml"}, "Unknown format 'xml'"),
        ({"format": "taobao", "columns": "user=1"}, "contradict each other"),
        ({"format": "columns"}, "needs --columns"),
        ({"time_format": "s"}, "--time-format belongs to --columns"),
    ],
)
def test_a_wrong_flag_is_an_error_before_the_file_is_read(options: dict[str, Any], message: str) -> None:
    """Flags are judged first: the file of this test does not exist."""
    with pytest.raises(ConfigurationError, match=message):
        read_records("nowhere", **options)


def test_simulated_records_are_those_of_their_file(tmp_path: Path) -> None:
    """Simulated traffic is what a replay of the simulated file would send; dirt adds to it."""
    records = simulated_records(20, 300, seed=1)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(record.value + b"\n" for record in records))
    assert read_records(path) == records
    assert len(soiled_records(20, 300, seed=1, share=0.1)) > len(records)


def test_a_line_of_sequences_becomes_a_record_an_event(tmp_path: Path) -> None:
    """In the order of time, with the line that they came from; a broken sequence stays one record."""
    path = tmp_path / "sequences.jsonl"
    path.write_text('{"seq":1,"events":[[3,2.0,0],[5,2.5,0.5]]}\n{"seq":2,"events":[[7,2.2,0]]}\n{"seq":3}\n')
    for named in ("tpp", "auto"):
        log = read_log(path, named)
        assert log.format == "tpp"
        times = [record.event_time_ms for record in log.records]
        assert times == [20_000_000, 22_000_000, None, 25_000_000]
        assert [record.key for record in log.records] == [b"1", b"2", b"", b"1"]
        assert log.records[2].value == b'{"seq":3}'
        decoded = decode_events([r.key for r in log.records], [r.value for r in log.records])
        assert [event.action for event in decoded if isinstance(event, Event)] == ["3", "7", "5"]
