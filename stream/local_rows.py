"""The rows on this machine, read beside a worker or without one, and compared with the changelog.

Stores are opened read-only, so nothing is locked and nothing changes. A running worker flushes now and then: what is
seen here may be a little older than what it holds in memory, and says itself where in the changelog it stands.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rocksdict
import xxhash

from stream.engine.store import CHANGELOG_KEY, POSITION_KEY, WRITTEN_KEY
from stream.errors import StoreError
from stream.settings import Settings
from stream.silence import TIMER_PREFIX
from stream.stage import SOURCE_KEY, SourceMark

TABLE = "state"
GROUPS_TABLE = "groups"
LABELS_TABLE = "labels"
_I64 = struct.Struct("<q")
_LOCAL_KEYS = frozenset((POSITION_KEY, CHANGELOG_KEY, WRITTEN_KEY))  # in no changelog


class LocalRows:
    """The store of one partition, read-only.

    Args:
        folder: ``<data_dir>/state/<partition>``.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, folder: Path):
        self.partition = int(folder.name)
        self.folder = folder
        try:
            self._db = rocksdict.Rdict(
                str(folder),
                options=rocksdict.Options(raw_mode=True),
                access_type=rocksdict.AccessType.read_only(error_if_log_file_exist=False),
            )
        except Exception as error:  # rocksdict raises bare Exception
            raise StoreError(
                f"Store {folder} cannot be read ({error}). Move it away and start the worker: the rows are restored "
                "from the changelog."
            ) from error

    def get(self, user: str) -> bytes | None:
        """The row of a user."""
        row: bytes | None = self._db.get(user.encode())
        return row

    @property
    def position(self) -> int | None:
        """Changelog offset of the newest row in here; None when nothing was flushed yet."""
        raw = self._db.get(POSITION_KEY)
        return None if raw is None else int(_I64.unpack(raw)[0])

    @property
    def changelog_id(self) -> bytes | None:
        """Topic id of the changelog that these rows belong to."""
        raw: bytes | None = self._db.get(CHANGELOG_KEY)
        return raw

    @property
    def source(self) -> SourceMark | None:
        """Where these rows stand in the source."""
        raw = self._db.get(SOURCE_KEY)
        return None if raw is None else SourceMark.decode(raw)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Everything that the changelog should hold as well."""
        entries: Any = self._db.items()
        for key, value in entries:
            if key not in _LOCAL_KEYS and not key.startswith(TIMER_PREFIX):
                yield key, value

    def count(self) -> int:
        """Users with a row, counted."""
        return sum(1 for key, _ in self._db.items(from_key=b"\1"))

    def close(self) -> None:
        """Release the files."""
        self._db.close()


def partitions_on_disk(settings: Settings, table: str = TABLE) -> list[Path]:
    """Folders of the partitions whose rows are on this machine.

    Raises:
        StoreError: there are none of users; a worker may well have none of groups.
    """
    folder = settings.data_dir / table
    found = [each for each in folder.glob("*") if each.name.isdigit() and (each / "CURRENT").exists()]
    if not found and table == TABLE:
        raise StoreError(
            f"There are no rows in {folder}. Name the worker's data directory: FORECLICK_DATA_DIR or --data-dir."
        )
    return sorted(found, key=lambda each: int(each.name))


@dataclass
class Comparison:
    """Rows of one partition against its changelog, as that stood at the store's position.

    Attributes:
        equal: the same bytes in both.
        different: other bytes.
        missing: the changelog has a row and the store none.
        extra: the store has a row and the changelog none, or a tombstone.
        newer: the changelog went on after the store's position: a restore brings them.
        keys: of the first few that are different, missing or extra.
    """

    partition: int
    position: int | None
    table: str = TABLE
    equal: int = 0
    different: int = 0
    missing: int = 0
    extra: int = 0
    newer: int = 0
    keys: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every row can be explained."""
        return not (self.different or self.missing or self.extra)


def compare(rows: LocalRows, changelog: Iterable[tuple[bytes, bytes | None, int]]) -> Comparison:
    """Compare a store with the committed records of its changelog partition.

    Args:
        rows: the store.
        changelog: key, value (None erases) and offset, in order, from the partition's beginning.
    """
    position = rows.position
    found = Comparison(rows.partition, position, rows.folder.parent.name)
    before: dict[bytes, int | None] = {}  # hashes: the rows of all users twice would not fit everywhere
    after: set[bytes] = set()
    for key, value, offset in changelog:
        if position is not None and offset <= position:
            before[key] = None if value is None else xxhash.xxh3_64_intdigest(value)
        else:
            after.add(key)
    found.newer = len(after)
    for key, value in rows.items():
        if key in before:
            expected = before.pop(key)
            if expected == xxhash.xxh3_64_intdigest(value):
                found.equal += 1
            else:
                _note(found, "extra" if expected is None else "different", key)
        elif key not in after:  # compaction may have removed the record that a newer one replaced
            _note(found, "extra", key)
    for key, expected in before.items():
        if expected is not None:
            _note(found, "missing", key)
    return found


def _note(found: Comparison, what: str, key: bytes) -> None:
    setattr(found, what, getattr(found, what) + 1)
    if len(found.keys) < 5:
        found.keys.append(f"{what} {key.decode(errors='backslashreplace')!r}")
