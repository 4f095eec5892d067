"""Rows on disk, on a real RocksDB: rows and their position are one thing, whatever ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.engine.store import Store, lock_data_dir
from stream.errors import StoreError
from stream.moments import Moment
from stream.rows import RowLayout
from stream.silence import TIMER_PREFIX, Entry, due_end, moved_timers, said_end, timer_key, timers_of
from stream.stage import SOURCE_KEY, SourceMark

CHANGELOG = b"c" * 16
LAYOUT = RowLayout(n_actions=3, state_width=4, window=2)


def opened(folder: Path) -> Store:
    store = Store(folder)
    store.open()
    return store


def test_rows_position_and_changelog_come_back_after_a_close(tmp_path: Path) -> None:
    """What was applied is there again, erased rows are not, reserved keys are no rows."""
    store = opened(tmp_path / "0")
    mark = SourceMark(5, bytes(16), 6, Moment(7, b"a"))
    store.apply([(b"a", b"1"), (b"b", b"2"), (b"\0src", mark.encode())], 7, CHANGELOG, 1234)
    store.apply([(b"a", None), (b"c", b"3")], 9, CHANGELOG, 1235)
    store.close()
    store = opened(tmp_path / "0")
    assert store.get([b"a", b"b", b"c"]) == [None, b"2", b"3"]
    assert (store.position(), store.changelog_id(), store.written_ms()) == (9, CHANGELOG, 1235)
    assert (store.mark(), store.said_before()) == (mark, Moment(7, b"a"))
    assert list(store.items()) == [(b"b", b"2"), (b"c", b"3")]
    store.close()


def test_a_store_that_was_opened_again_goes_on_writing_filters(tmp_path: Path) -> None:
    """Options of a database that exists are those of a new one: its filters are asked, and files get theirs."""

    def filter_bytes(store: Store) -> int:
        told = str(store.database.property_value("rocksdb.aggregated-table-properties"))
        return int(told.split("filter block size=")[1].split(";", 1)[0])

    for life in range(2):
        store = opened(tmp_path / "0")
        before = filter_bytes(store)
        store.apply([(b"u%d-%05d" % (life, user), b"row") for user in range(2_000)], life, CHANGELOG, 1)
        store.database.flush()
        assert filter_bytes(store) - before > 2_000
        store.close()


WRITES_AND_DIES = """
import os, sys
from pathlib import Path
from stream.engine.store import Store
store = Store(Path(sys.argv[1])); store.open()
for batch in range(400):
    rows = [(b"u%03d" % (n % 300), b"%08d" % batch + bytes(400)) for n in range(batch, batch + 90)]
    store.apply(rows + [(b"\\0src", b"%08d" % batch)], batch, b"c" * 16, batch)
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_an_older_state_with_its_own_older_position(tmp_path: Path) -> None:
    """Without RocksDB's log a crash loses the newest batches, and their position with them: never one alone."""
    done = subprocess.run(
        [sys.executable, "-c", WRITES_AND_DIES, str(tmp_path / "0")], cwd=os.getcwd(), check=False
    )
    assert done.returncode == -9
    store = opened(tmp_path / "0")
    position = store.position()
    assert position is not None, "several memtables were full: something must have reached the disk"
    assert position < 399, "the newest batches cannot have reached it"
    assert store.page(b"\0src", 1) == [(b"\0src", b"%08d" % position)]
    expected = {}
    for batch in range(position + 1):
        for n in range(batch, batch + 90):
            expected[b"u%03d" % (n % 300)] = b"%08d" % batch + bytes(400)
    assert dict(store.items()) == expected
    store.close()


def test_wipe_forgets_everything(tmp_path: Path) -> None:
    """The changelog fills it again."""
    store = opened(tmp_path / "0")
    store.apply([(b"a", b"1")], 3, CHANGELOG, 1)
    store.wipe()
    assert store.get([b"a"]) == [None]
    assert store.position() is None
    store.close()


def test_a_second_worker_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    """Two processes on one RocksDB would each believe their own rows."""
    held = lock_data_dir(tmp_path)
    with pytest.raises(StoreError, match=rf"locked by another worker \(pid {os.getpid()}\)"):
        lock_data_dir(tmp_path)
    held.close()
    lock_data_dir(tmp_path).close()


def test_an_open_partition_is_locked_by_itself(tmp_path: Path) -> None:
    """Also when the worker's own lock was passed by."""
    store = opened(tmp_path / "0")
    with pytest.raises(StoreError, match="FORECLICK_DATA_DIR"):
        opened(tmp_path / "0")
    store.close()


def test_a_directory_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="FORECLICK_DATA_DIR"):
        opened(tmp_path / "file" / "0")
    with pytest.raises(StoreError, match="FORECLICK_DATA_DIR"):
        lock_data_dir(tmp_path / "file")


FILLS_A_DISK = """
import resource, signal, sys
from pathlib import Path
from stream.engine.store import Store
from stream.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path(sys.argv[1])); store.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    for batch in range(4000):
        rows = [(b"u%06d" % (batch * 100 + n), bytes([batch % 251]) * 1000) for n in range(100)]
        store.apply(rows, batch, b"c" * 16, 0)
except StoreError as error:
    print(error)
    sys.stdout.flush()
    import os
    os._exit(7)
"""


def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    """A write that fails ends the worker; files may not grow past 1 MiB here, as on a disk without space."""
    done = subprocess.run(
        [sys.executable, "-c", FILLS_A_DISK, str(tmp_path / "0")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert str(tmp_path / "0") in done.stdout
    assert "Free space or move the folder away" in done.stdout


def damaged(folder: Path) -> Store:
    """A store of a thousand rows, opened again after a block in the middle of its file was overwritten."""
    store = opened(folder)
    store.apply([(b"u%04d" % n, os.urandom(200)) for n in range(1000)], 7, CHANGELOG, 1)
    store.close()
    (file,) = folder.glob("*.sst")
    with file.open("r+b") as raw:
        raw.seek(file.stat().st_size // 2)
        raw.write(bytes(64))
    return opened(folder)


def test_a_damaged_file_is_said_and_the_next_start_begins_with_no_rows(tmp_path: Path) -> None:
    """What RocksDB cannot read is derived data: it goes, and the changelog fills the store again."""
    store = damaged(tmp_path / "0")
    with pytest.raises(StoreError, match="damaged data"):
        store.get([b"u%04d" % n for n in range(1000)])
    store.close()
    store = opened(tmp_path / "0")
    assert store.position() is None
    assert list(store.items()) == []
    store.close()


def test_a_scan_that_meets_damage_does_not_end_as_if_there_were_no_more_rows(tmp_path: Path) -> None:
    """RocksDB's iterator ends there like at the last row; whoever believes it works on with half of them."""
    store = damaged(tmp_path / "0")
    with pytest.raises(StoreError, match="damaged data"):
        list(store.items())
    store.close()


def test_a_store_that_cannot_be_opened_for_damage_is_begun_anew(tmp_path: Path) -> None:
    """Half a file, as a disk that lies about what it wrote leaves it."""
    damaged(tmp_path / "0").close()
    (file,) = (tmp_path / "0").glob("*.sst")
    os.truncate(file, 1000)
    store = opened(tmp_path / "0")
    assert store.position() is None


NOTHING_SAID = SourceMark(0, bytes(16), 0).encode()


def timers(store: Store) -> list[Entry]:
    """Every timer, straight from the store's keys."""
    return list(store.reserved(TIMER_PREFIX))


def waiting_row(deadline_ms: int) -> bytes:
    rows = LAYOUT.blank(1)
    rows["last_ms"], rows["silence_s"] = deadline_ms - 1_000, 1
    return LAYOUT.pack(rows)[0]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=5), max_size=12),
    st.booleans(),
)
def test_the_timers_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], told: bool
) -> None:
    """Whatever is written over what, by a transaction that knows the old rows or by a restore; 0 erases."""
    store = Store(tmp_path_factory.mktemp("timers"), moved_timers)
    store.open()
    rows: dict[bytes, bytes] = {}
    for number, batch in enumerate(batches):
        written = [(b"u%d" % user, waiting_row(2_000 + at) if at else None) for user, at in batch]
        before = {key: rows.get(key) for key, _ in written[::2]} if told else None
        store.apply([*written, (SOURCE_KEY, NOTHING_SAID)], number, CHANGELOG, 0, before)
        for key, row in written:
            rows.pop(key, None)
            if row is not None:
                rows[key] = row
        wanted = sorted(filter(None, timers_of(list(rows), list(rows.values()))))
        assert timers(store) == wanted
        for end_ms in (2_003, 2_005, 9_999):
            assert store.timers_between(TIMER_PREFIX, due_end(end_ms), 99) == [
                one for one in wanted if one[0] < due_end(end_ms)
            ]
        assert store.timers_between(TIMER_PREFIX, due_end(9_999), 2) == wanted[:2]
    assert dict(store.items()) == rows
    store.close()


def test_timers_come_back_with_the_rows_and_go_with_them(tmp_path: Path) -> None:
    """After a close they stand as they stood; a wipe takes them."""
    store = Store(tmp_path / "0", moved_timers)
    store.open()
    store.apply([(b"a", waiting_row(5_000)), (b"b", waiting_row(3_000))], 1, CHANGELOG, 0)
    store.close()
    store.open()
    found = [timer for timer, _ in store.timers_between(TIMER_PREFIX, due_end(5_001), 9)]
    assert found == [timer_key(3_000, b"b"), timer_key(5_000, b"a")]
    store.wipe()
    assert timers(store) == []
    assert store.timers_between(TIMER_PREFIX, due_end(5_001), 9) == []
    store.close()


def test_timers_that_were_said_are_passed_over_and_tidied_away(tmp_path: Path) -> None:
    """What was found before them stays; the rows that they are of are not touched."""
    store = Store(tmp_path / "0", moved_timers)
    store.open()
    rows = {b"u%d" % at: waiting_row(3_000 + at) for at in range(5)}
    store.apply(rows.items(), 1, CHANGELOG, 0)
    waiting = timers(store)
    assert store.timers_between(TIMER_PREFIX, due_end(3_003), 9) == waiting[:3]
    mark = SourceMark(0, bytes(16), 3_003, Moment(3_002))
    store.apply([(SOURCE_KEY, mark.encode())], 2, CHANGELOG, 0)
    assert timers(store) == waiting[2:]
    assert store.timers_between(said_end(store.said_before()), due_end(9_999), 9) == waiting[2:]
    assert store.timers_between(said_end(Moment(3_003, b"u3\0")), due_end(9_999), 9) == waiting[4:]
    assert dict(store.items()) == rows
    store.close()


def test_a_store_without_timers_keeps_none(tmp_path: Path) -> None:
    """Another stage's rows are not read as clicks."""
    store = opened(tmp_path / "0")
    store.apply([(b"a", waiting_row(5_000))], 1, CHANGELOG, 0)
    assert timers(store) == store.timers_between(TIMER_PREFIX, due_end(9_999), 9) == []
    store.close()
