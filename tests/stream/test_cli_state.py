"""``foreclick state`` on a store, without a broker and without a worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from stream.engine.store import Store
from stream.local_rows import Comparison, LocalRows, compare
from stream.rows import RowLayout
from stream.stage import SOURCE_KEY, SourceMark
from tests.command_line import foreclick

CHANGELOG_ID = b"c" * 16
MARK = SourceMark(42, b"t" * 16, 1_700_000_000_000).encode()
ROWS = {b"u1": b"one", b"u2": b"two", SOURCE_KEY: MARK}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Partition 3 with the rows of two users, at changelog offset 10."""
    store = Store(tmp_path / "state" / "3")
    store.open()
    store.apply(list(ROWS.items()), 10, CHANGELOG_ID, 0)
    store.close()
    return tmp_path


def compared(data_dir: Path, changelog: list[tuple[bytes, bytes | None, int]]) -> Comparison:
    rows = LocalRows(data_dir / "state" / "3")
    try:
        return compare(rows, changelog)
    finally:
        rows.close()


WRITTEN = [(key, value, 5) for key, value in ROWS.items()]


def test_rows_of_the_changelog_are_equal(data_dir: Path) -> None:
    """The last record of each key counts, reserved keys included; a tombstone leaves no row."""
    gone = [(b"u9", b"row", 6), (b"u9", None, 7)]
    found = compared(data_dir, [(b"u1", b"older", 1), *WRITTEN, *gone])
    assert (found.position, found.equal, found.sound) == (10, 3, True)


def test_a_row_that_differs_is_named(data_dir: Path) -> None:
    """Other bytes under the same key contradict the changelog."""
    found = compared(data_dir, [*WRITTEN, (b"u2", b"other", 9)])
    assert (found.equal, found.different, found.sound) == (2, 1, False)
    assert found.keys == ["different 'u2'"]


def test_a_missing_and_an_extra_row_are_named(data_dir: Path) -> None:
    """A row that only one of them has; erased users must not live on here."""
    found = compared(data_dir, [*WRITTEN, (b"u3", b"three", 8), (b"u1", None, 9)])
    assert (found.missing, found.extra, found.sound) == (1, 1, False)
    assert sorted(found.keys) == ["extra 'u1'", "missing 'u3'"]


def test_records_after_the_position_are_no_contradiction(data_dir: Path) -> None:
    """A restore brings them; compaction may have removed what they replaced."""
    found = compared(data_dir, [each for each in WRITTEN if each[0] != b"u2"] + [(b"u2", b"newer", 11)])
    assert (found.newer, found.equal, found.sound) == (1, 2, True)


def test_stats_are_read_from_the_disk_when_no_worker_runs(data_dir: Path) -> None:
    """Rows are counted, positions are those of the last flush."""
    ran = foreclick("state", "stats", "--data-dir", data_dir, "--http-port", 0, "--json")
    assert ran.json == {
        "partitions": {"3": {"state": "on disk", "next_offset": 42, "rows": 2, "changelog_position": 10}},
        "rows": 2,
    }


def test_a_row_is_read_from_the_disk_when_no_worker_runs(data_dir: Path) -> None:
    """With its partition, as the worker's page gives it."""
    store = Store(data_dir / "state" / "3")
    store.open()
    layout = RowLayout(n_actions=11, state_width=8)
    store.apply([(b"u1", layout.pack(layout.blank(1))[0])], 11, CHANGELOG_ID, 0)
    store.close()
    ran = foreclick("state", "show", "u1", "--data-dir", data_dir, "--http-port", 0, "--json")
    assert (ran.json["user_id"], ran.json["partition"], ran.json["events"]) == ("u1", 3, 0)


def test_an_unknown_user_is_one_line(data_dir: Path) -> None:
    """The row may be with another worker."""
    ran = foreclick("state", "show", "nobody", "--data-dir", data_dir, "--http-port", 0)
    assert ran.code == 1
    assert "No row of user nobody" in ran.error


def test_a_data_directory_without_rows_is_one_line(tmp_path: Path) -> None:
    """The message names the folder and the setting."""
    ran = foreclick("state", "stats", "--data-dir", tmp_path, "--http-port", 0)
    assert ran.code == 1
    assert f"There are no rows in {tmp_path}/state" in ran.error
    assert "FORECLICK_DATA_DIR" in ran.error


@pytest.fixture
def pages() -> Iterator[tuple[int, dict[str, str | None]]]:
    """A worker's HTTP, of which only the addresses and the token are remembered."""
    seen: dict[str, str | None] = {}

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen[self.path] = self.headers.get("Authorization")
            allowed = self.headers.get("Authorization") == "Bearer secret-token"
            body = {"user_id": "a b/c"} if allowed else {"error": "a bearer token is needed"}
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments: object) -> None:
            """Stay silent."""

    server = HTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, seen
    server.shutdown()
    server.server_close()


def test_a_running_worker_is_asked_first(pages: tuple[int, dict[str, str | None]], tmp_path: Path) -> None:
    """With its token, and with the user's id escaped."""
    port, seen = pages
    ran = foreclick(
        "state", "show", "a b/c", "--data-dir", tmp_path, HTTP__PORT=port, HTTP__TOKEN="secret-token"
    )
    assert json.loads(ran.out) == {"user_id": "a b/c"}
    assert seen == {"/state/a%20b%2Fc": "Bearer secret-token"}


def test_a_missing_token_is_named(pages: tuple[int, dict[str, str | None]], tmp_path: Path) -> None:
    """The disk is not read behind a worker's back when it refuses."""
    ran = foreclick("state", "stats", "--data-dir", tmp_path, "--http-port", pages[0])
    assert ran.code == 1
    assert "FORECLICK_HTTP__TOKEN_FILE" in ran.error


def test_a_reset_asks_before_it_forgets(data_dir: Path) -> None:
    """Without a yes nothing is touched, not even the broker is asked."""
    ran = foreclick(
        "state", "reset", "--to", "earliest", "--data-dir", data_dir, KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1"
    )
    assert ran.code == 1
    assert "Delete every row of every user" in ran.err
    assert (data_dir / "state" / "3" / "CURRENT").exists()
