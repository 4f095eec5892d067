"""A worker that lost its data directory: how fast the changelog fills it again, and what a user costs.

Times are the bench's own, from outside: from the last look at /state that saw no partition restoring to the first one
that saw all of them open, so the interval is at most one look too long and never too short.
"""

from __future__ import annotations

import json
import shutil
import time

from tests.bench.bed import Bed, disk_bytes, now_ms
from tests.bench.pipeline import HISTORY_MS
from tests.bench.processes import BenchFailed, BenchWorker
from tests.bench.report import table, tell
from tests.bench.traffic import send_backlog

LOOK_INTERVAL_S = 0.05
TIMEOUT_S = 600.0
_BEFORE = {"assigned", "fencing the predecessor"}


def run(bed: Bed) -> dict[str, float]:
    """Fill, stop, wipe, restore."""
    users = bed.sizes.restore_users
    settings = bed.topics("restore")
    tell(f"restore: one event each of {users} users into {settings.clicks_topic}")
    records = bed.traffic("restore", users).records(
        users, now_ms() - HISTORY_MS, (HISTORY_MS - 60_000) / users, each_user_once=True
    )
    send_backlog(bed.client, settings.clicks_topic, records)
    with bed.worker(settings, "filling") as worker:
        worker.wait_ready(lambda text: None)
        bed.wait_drained(settings, worker)
        rss_mib = worker.rss_mib
        row_bytes = _row_bytes(worker)
    disk = disk_bytes(settings.data_dir)
    shutil.rmtree(settings.data_dir)
    tell("restore: starting again without the data directory")
    with bed.worker(settings, "restoring") as worker, bed.cpu(worker=worker.pid) as watch:
        began_s, ended_s, records_restored, rows = restored(worker)
        restored_rss_mib = worker.rss_mib
    used_s = watch.used_s(began_s, ended_s)
    if records_restored < users:
        raise BenchFailed(f"Only {records_restored} records were restored of {users} users.")
    seconds = ended_s - began_s
    table(
        f"restore of {users} users into an empty data directory",
        ("what", "value"),
        [
            ("records restored", records_restored),
            ("rows in the stores, as RocksDB estimates", rows),
            ("seconds, first partition restoring to all open", seconds),
            ("records a second", records_restored / seconds),
            *((f"CPU seconds a second, {name}", s / seconds) for name, s in used_s.items()),
            ("RSS after the restore, MiB", restored_rss_mib),
            ("RSS after all rows were made, MiB", rss_mib),
            ("bytes on disk a user, after a clean stop", disk / users),
            ("bytes of a row, uncompressed", row_bytes),
        ],
    )
    return {
        "restore_rows_per_s": records_restored / seconds,
        "bytes_per_user": disk / users,
        "rss_mib": rss_mib,
    }


def _row_bytes(worker: BenchWorker) -> int:
    status, body = worker.get("/state/u000000")
    return int(json.loads(body)["bytes"]) if status == 200 else 0


def restored(worker: BenchWorker) -> tuple[float, float, int, int]:
    """When the restore began and ended, and how many records and rows it made."""
    deadline = time.monotonic() + TIMEOUT_S
    last_look_s = began_s = None
    while time.monotonic() < deadline:
        worker.check()
        asked_s = time.time()
        parts = worker.stats().get("partitions", {})
        answered_s = time.time()
        states = [part["state"] for part in parts.values()]
        if began_s is None and any(state not in _BEFORE for state in states):
            began_s = last_look_s or asked_s
        if states and all(state == "open" for state in states):
            if began_s is None:
                raise BenchFailed("The restore was over before it could be seen; take more users.")
            time.sleep(0.3)
            parts = worker.stats()["partitions"]
            records = sum(part["restored_records"] for part in parts.values())
            return began_s, answered_s, records, sum(part["rows"] or 0 for part in parts.values())
        if states:
            last_look_s = asked_s
        time.sleep(LOOK_INTERVAL_S)
    raise BenchFailed(
        f"The worker did not open all partitions within {TIMEOUT_S:.0f} s; its last state: {states}."
    )
