"""Rows of one partition in RocksDB, and the changelog position they stand at.

The changelog is the write-ahead log. RocksDB's own is switched off: rows and their position go into one memtable by
one WriteBatch, a memtable reaches the disk whole, so what survives a crash is an older state *with its own older
position*, and the restore goes on from there. That halves the bytes written and the cost of a batch.

Reserved keys start with U+0000, which no user id may: ``\\0src`` (written by every transaction, in the changelog too)
and ``\\0pos``, ``\\0log``, ``\\0seen`` (only here). Timers are reserved keys too (stream/silence.py): the index is made
of the rows and moves with them in the same WriteBatch, so it is never ahead of them or behind; of timers that were said
it may keep some.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import rocksdict
import structlog

from stream.errors import StoreError
from stream.moments import FIRST_MOMENT, Moment
from stream.silence import TIMER_PREFIX, Entry, said_end
from stream.stage import RESERVED, SOURCE_KEY, SourceMark

logger = structlog.get_logger("foreclick.store")

POSITION_KEY = b"\0pos"  # changelog offset of the newest record that is in this store
CHANGELOG_KEY = b"\0log"  # topic id of that changelog
WRITTEN_KEY = b"\0seen"  # wall clock of the last write, ms
DAMAGED = "DAMAGED"  # a file beside RocksDB's own: what lies here cannot be read and is to be thrown away

#: Of keys, with their rows before and after: the timers that leave the index, and the entries that it gets.
MovedTimers = Callable[
    [Sequence[bytes], Sequence[bytes | None], Sequence[bytes | None]], tuple[list[bytes], list[Entry]]
]

_I64 = struct.Struct("<q")

WRITE_BUFFER_BYTES = 8 << 20
BLOCK_CACHE_BYTES = 8 << 20
TIDY_BYTES = 64 << 20


class Store:
    """One partition's rows. Not shared between threads.

    Rows are derived data, and RocksDB checks every block that it reads. A process that meets a damaged one says so,
    marks the folder and ends; the next one begins with an empty folder and restores it from the changelog.

    Args:
        folder: of this partition alone; created when missing.
        moved_timers: ``stream.silence.moved_timers``, of rows whose silences are waited for; None keeps no timers.

    Raises:
        StoreError: locked by another worker, not writable, full, or damaged.
    """

    def __init__(self, folder: Path, moved_timers: MovedTimers | None = None):
        self.folder = folder
        self._moved_timers = moved_timers
        # No timer that is looked for is earlier. Most micro-batches need no scan at all, thanks to it.
        self._earliest = TIMER_PREFIX
        self._found: list[bytes] = []  # by the last scan; what was said of them is tidied away
        self._db: rocksdict.Rdict | None = None
        self._unlogged = rocksdict.WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign,assignment]  # the stub is wrong

    def open(self) -> None:
        self._earliest, self._found = TIMER_PREFIX, []
        if (self.folder / DAMAGED).exists():
            self._throw_away("it was found to be damaged")
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_max_write_buffer_number(2)
        # Users come back again and again: each flushed file repeats their rows, and compacting rewrites all that there
        # are. At eight files that takes a third to a half of its processor time at four; reads ask filters.
        options.set_level_zero_file_num_compaction_trigger(8)
        options.set_keep_log_file_num(2)
        options.set_max_open_files(64)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        tables = rocksdict.BlockBasedOptions()
        tables.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
        tables.set_bloom_filter(10, False)
        options.set_block_based_table_factory(tables)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._db = _opened(self.folder, options)
            except Exception as error:
                if not _is_damage(error):
                    raise
                self._throw_away(str(error))
                self.folder.mkdir(parents=True)
                self._db = _opened(self.folder, options)
        except OSError as error:
            raise StoreError(_not_writable(self.folder, error)) from error
        except Exception as error:  # rocksdict raises bare Exception with RocksDB's status as text
            text = str(error)
            if "lock" in text.lower() and "no space" not in text.lower():
                raise StoreError(
                    f"Data directory {self.folder} is locked by another worker. "
                    "Give each worker its own FORECLICK_DATA_DIR, or stop the other one."
                ) from error
            raise StoreError(
                f"Data directory {self.folder} cannot be opened ({text}). Free space or move it away and start again: "
                "the rows are restored from the changelog."
            ) from error

    def _throw_away(self, because: str) -> None:
        logger.warning("local rows thrown away", folder=str(self.folder), because=because)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _failed(self, doing: str, error: Exception) -> StoreError:
        """What a failure of RocksDB means: a full disk, or a damaged file."""
        if not _is_damage(error):
            return StoreError(
                f"{doing} {self.folder} failed ({error}). Free space or move the folder away, then start again: "
                "the rows are restored from the changelog."
            )
        with contextlib.suppress(OSError):  # a full disk as well: the next start finds the damage again
            (self.folder / DAMAGED).touch()
        return StoreError(
            f"{doing} {self.folder} met damaged data ({error}). The next start throws the folder away and restores its "
            "rows from the changelog. Look at the disk."
        )

    @property
    def database(self) -> rocksdict.Rdict:
        if self._db is None:
            raise StoreError(f"Store {self.folder} is closed.")
        return self._db

    @property
    def is_open(self) -> bool:
        return self._db is not None

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        """Rows of the keys, in order; None where there is none."""
        try:
            rows: list[bytes | None] = self.database.get(keys)  # type: ignore[arg-type,assignment]
        except Exception as error:
            raise self._failed("Reading", error) from error
        return rows

    def apply(
        self,
        rows: Iterable[tuple[bytes, bytes | None]],
        position: int,
        changelog_id: bytes,
        now_ms: int,
        before: Mapping[bytes, bytes | None] | None = None,
    ) -> None:
        """Write rows (None erases), their timers and the changelog offset of the newest of them, as one.

        Args:
            before: rows of some of the keys as they stand in the store, where the caller has read them anyway.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        rows = list(rows)
        if self._moved_timers is not None:
            self._tidy_timers(batch, rows)
            self._move_timers(self._moved_timers, batch, rows, before or {})
        for key, value in rows:
            if value is None:
                delete(key)
            else:
                put(key, value)
        put(POSITION_KEY, _I64.pack(position))
        put(CHANGELOG_KEY, changelog_id)
        put(WRITTEN_KEY, _I64.pack(now_ms))
        try:
            self.database.write(batch, self._unlogged)
        except (
            Exception
        ) as error:  # after one failed write RocksDB refuses all others: nothing can be mended here
            raise self._failed("Writing to", error) from error

    def _move_timers(
        self,
        moved_timers: MovedTimers,
        batch: rocksdict.WriteBatch,
        rows: list[tuple[bytes, bytes | None]],
        before: Mapping[bytes, bytes | None],
    ) -> None:
        newest = {key: row for key, row in rows if not key.startswith(RESERVED)}
        unread = [key for key in newest if key not in before]
        if unread:
            before = {**before, **dict(zip(unread, self.get(unread), strict=True))}
        keys = list(newest)
        out, into = moved_timers(keys, [before[key] for key in keys], list(newest.values()))
        for timer in out:
            batch.delete(timer)
        for timer, value in into:
            batch.put(timer, value)
        self._earliest = min([self._earliest, *(timer for timer, _ in into)])

    def _tidy_timers(self, batch: rocksdict.WriteBatch, rows: list[tuple[bytes, bytes | None]]) -> None:
        """Timers that were said would be passed over anyway; a scan is spared their number."""
        raw = next((row for key, row in rows if key == SOURCE_KEY), None)
        if raw is None or not self._found:
            return
        end = said_end(SourceMark.decode(raw).said_before)
        for timer in self._found[: bisect_left(self._found, end)]:
            batch.delete(timer)
        self._found = []

    def timers_between(self, first: bytes, end: bytes, most: int) -> list[Entry]:
        """The earliest ``most`` entries of the index from ``first`` on and below ``end``, in their order.

        Timers below a ``first`` that was asked for are never asked for again.
        """
        found: list[Entry] = []
        self._earliest = max(self._earliest, first)
        if self._moved_timers is None or end <= self._earliest:
            return found
        bound = end
        for entries in self._seek(self._earliest):
            timer = entries.key()
            if timer >= end or len(found) == most:
                bound = timer  # any key is a bound, a row's own too
                break
            found.append((timer, entries.value()))
        # What was found stays in the index until it is applied.
        self._earliest = found[0][0] if found else bound
        self._found = [timer for timer, _ in found]
        return found

    def position(self) -> int | None:
        """Changelog offset of the newest applied record; None for a new store."""
        raw = self._value(POSITION_KEY)
        return None if raw is None else _I64.unpack(raw)[0]

    def changelog_id(self) -> bytes | None:
        return self._value(CHANGELOG_KEY)

    def written_ms(self) -> int:
        raw = self._value(WRITTEN_KEY)
        return 0 if raw is None else _I64.unpack(raw)[0]

    def _value(self, key: bytes) -> bytes | None:
        return self.get([key])[0]

    def mark(self) -> SourceMark | None:
        """Where the last transaction stood in the source; None for a new store."""
        raw = self._value(SOURCE_KEY)
        return None if raw is None else SourceMark.decode(raw)

    def said_before(self) -> Moment:
        """All timers before this moment were said."""
        mark = self.mark()
        return FIRST_MOMENT if mark is None else mark.said_before

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every user's row; reserved keys are left out."""
        yield from self._entries(b"\1")

    def reserved(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Entries whose key starts with a reserved prefix, such as the names of categories."""
        for key, value in self._entries(prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def page(self, first: bytes, most: int) -> list[tuple[bytes, bytes]]:
        """Entries from a key on, in order of keys."""
        return list(islice(self._entries(first), most))

    def _entries(self, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        for entries in self._seek(first):
            yield entries.key(), entries.value()

    def _seek(self, first: bytes) -> Iterator[Any]:
        # Not the database's own items(): they end at a damaged block as if there were no more.
        entries = self.database.iter()
        entries.seek(first)
        while entries.valid():
            yield entries
            entries.next()
        try:
            entries.status()
        except Exception as error:
            raise self._failed("Reading", error) from error

    def count(self) -> int:
        """Rows, estimated by RocksDB; exact after a flush without overwritten rows."""
        return int(self.database.property_int_value("rocksdb.estimate-num-keys") or 0)

    def wipe(self) -> None:
        """Forget everything; the changelog fills it again."""
        self.close(flush=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.open()

    def close(self, flush: bool = True, tidy: bool = False) -> None:
        """Flush and release the lock; a second call does nothing.

        ``tidy`` leaves one copy of each row instead of the newest beside older ones that wait for compaction. Only
        small stores are tidied (some 100 ms), and only when the worker stops: a rebalance must be quick.
        """
        database, self._db = self._db, None
        if database is None:
            return
        try:
            if flush:
                database.flush()
            if tidy and int(database.property_int_value("rocksdb.total-sst-files-size") or 0) < TIDY_BYTES:
                database.compact_range(None, None)
            database.close()
        except Exception as error:
            raise self._failed("Closing", error) from error


def _opened(folder: Path, options: rocksdict.Options) -> rocksdict.Rdict:
    # Of a database that exists already, rocksdict reads options of the column family from its file, where the filter is
    # not: unless they are given too, nothing asks a filter any more.
    return rocksdict.Rdict(str(folder), options=options, column_families={"default": options})


def _is_damage(error: Exception) -> bool:
    """Whether RocksDB says that a file is not what it wrote; its status is known by this word only."""
    return str(error).startswith("Corruption")


def make_data_dir(folder: Path) -> None:
    """Create a data directory.

    Raises:
        StoreError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(_not_writable(folder, error)) from error


def _not_writable(folder: Path, error: OSError) -> str:
    return (
        f"Data directory {folder} cannot be written: {error.strerror}. Set FORECLICK_DATA_DIR to a folder of this user "
        "with free space."
    )


def lock_data_dir(folder: Path) -> IO[str]:
    """Hold a data directory for this process alone; the lock ends with the process.

    Raises:
        StoreError: another worker holds it, or the folder cannot be written.
    """
    make_data_dir(folder)
    try:
        held = (folder / "worker.lock").open("a+")
    except OSError as error:
        raise StoreError(_not_writable(folder, error)) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        held.seek(0)
        owner = held.read().strip() or "unknown"
        held.close()
        raise StoreError(
            f"Data directory {folder} is locked by another worker (pid {owner}). Give each worker its own "
            "FORECLICK_DATA_DIR, or stop that one."
        ) from None
    try:
        held.truncate(0)
        held.write(str(os.getpid()))
        held.flush()
    except OSError as error:
        raise StoreError(_not_writable(folder, error)) from error
    return held
