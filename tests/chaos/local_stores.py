"""Every local store of the product against its changelog up to where the store says that it stands, timers too.

What the changelog holds is judged elsewhere. A store that was left behind by an earlier owner stands further back: it
is held against the records up to its own position. Where compaction has taken those of a key and left later ones
nothing is known of that key there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import rocksdict

from stream.engine.store import CHANGELOG_KEY, POSITION_KEY, WRITTEN_KEY
from stream.silence import TIMER_PREFIX, Entry, said_end, timers_of
from stream.stage import SOURCE_KEY, SourceMark
from tests.chaos.disk import TAMPERED_FILE, TAMPERED_KEY
from tests.chaos.verdict import EXAMPLES, Verdict

LOCAL_KEYS = frozenset((POSITION_KEY, CHANGELOG_KEY, WRITTEN_KEY))


def judge_store(folder: Path, changelog: Sequence[Any], timed: bool, verdict: Verdict) -> None:
    """Compare one store; one that was damaged on purpose and not opened since is passed over.

    Args:
        folder: of RocksDB.
        changelog: committed records of its partition, by offset.
        timed: whether an index of timers stands beside the rows.
    """
    if (folder / TAMPERED_FILE).exists():
        return
    database = rocksdict.Rdict(
        str(folder), options=rocksdict.Options(raw_mode=True), access_type=rocksdict.AccessType.read_only()
    )
    try:
        held: dict[bytes, bytes] = dict(database.items())  # type: ignore[arg-type]
    finally:
        database.close()
    if TAMPERED_KEY in held or POSITION_KEY not in held:
        return
    verdict.stores += 1
    position = int.from_bytes(held[POSITION_KEY], "little", signed=True)
    before: dict[bytes, bytes | None] = {}
    later = set()
    for message in changelog:
        if message.offset() <= position:
            before[message.key()] = message.value()
        else:
            later.add(message.key())
    timers = {(key, value) for key, value in held.items() if key.startswith(TIMER_PREFIX)}
    rows = {
        key: row for key, row in held.items() if key not in LOCAL_KEYS and not key.startswith(TIMER_PREFIX)
    }
    different = [
        key
        for key in before.keys() | rows.keys()
        if before.get(key) != rows.get(key) and (key in before or key not in later)
    ]
    if timed:
        # Those that were said may be there still, and nobody looks at them; but each is a row's.
        said = said_end(SourceMark.decode(rows[SOURCE_KEY]).said_before) if SOURCE_KEY in rows else b""
        wanted = set(_timers(rows))
        different += (key for key, _ in timers - wanted)
        different += (key for key, _ in wanted - timers if key >= said)
    verdict.mismatching_local += len(different)
    for key in different[:EXAMPLES]:
        verdict.note(f"{folder} at {position}: {key!r} is not what the changelog and the rows say")


def _timers(rows: dict[bytes, bytes]) -> Iterator[Entry]:
    keys = [key for key in rows if not key.startswith(b"\0")]
    yield from (timer for timer in timers_of(keys, [rows[key] for key in keys]) if timer is not None)
