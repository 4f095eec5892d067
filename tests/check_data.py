"""Real logs through the offline core: read, fold, score, count. ``make check-data DATA=folder``.

The logs are not part of this project; files that are not in the folder are named and passed over, and a folder
without any of them is an error.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

LOGS = {"taobao.csv.gz": "taobao", "rees46.csv.gz": "rees46", "retailrocket.csv.gz": "retailrocket"}
ORDERS = "shopee_orders.csv.gz"


def main(folder: Path) -> int:
    """Score every known log of the folder; 0 when each event got a prediction or a reason."""
    from models.registry import bundled, load_artefact
    from models.runtime import StepEngine
    from stream.files import read_log
    from stream.offline import records_of, score_batches
    from stream.settings import load_settings

    artefact = load_artefact(bundled())
    engine, settings = StepEngine(artefact), load_settings({})
    wrong = read = 0
    for name, format_name in LOGS.items():
        if not (folder / name).exists():
            print(f"{name}: not in {folder}, passed over")
            continue
        began_s = time.perf_counter()
        log = read_log(str(folder / name), format_name)
        predictions = repeats = 0
        reasons: Counter[str] = Counter()
        for rendered in score_batches(records_of(log.records), settings, artefact, engine, topic=name):
            predictions += rendered.counts.predictions
            repeats += rendered.counts.duplicates
            reasons.update(rendered.counts.dead_letters)
        seconds = time.perf_counter() - began_s
        lost = len(log.records) - predictions - repeats - sum(reasons.values())
        read, wrong = read + 1, wrong + bool(lost)
        print(
            f"{name}: {len(log.records)} records, {predictions} predictions, {dict(reasons)} rejected, {repeats} "
            f"repeats, {lost} unexplained, {len(log.records) / seconds:.0f} events/s"
        )
    if (folder / ORDERS).exists():
        read, wrong = read + 1, wrong + brushing_differs(folder / ORDERS)
    if not read:
        print(
            f"error: none of {', '.join(LOGS)}, {ORDERS} is in {folder}: make check-data DATA=folder",
            file=sys.stderr,
        )
    return int(bool(wrong) or not read)


def brushing_differs(path: Path) -> bool:
    """Whether the shops and buyers that are flagged differ from those by looking at every window of the file."""
    import csv
    import gzip
    from datetime import datetime

    from stream.files import read_log
    from stream.offline_alerts import log_alerts
    from stream.settings import load_settings

    began_s = time.perf_counter()
    log = read_log(str(path), "shopee")
    alerts = log_alerts(log.records, load_settings({}), path.name).alerts
    seconds = time.perf_counter() - began_s
    found = {alert.subject: set(alert.members) for alert in alerts}  # the last alert of a shop is the widest

    shops: dict[str, list[tuple[datetime, str]]] = {}
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines):
            order = (datetime.fromisoformat(row["event_time"]), row["userid"])
            shops.setdefault(row["shopid"], []).append(order)
    flagged: dict[str, set[str]] = {}
    for shop, orders in shops.items():
        orders.sort()
        first = 0
        for start, _ in orders:
            while orders[first][0] < start:
                first += 1
            buyers: Counter[str] = Counter()
            for moment, buyer in orders[first:]:
                if (moment - start).total_seconds() > 3600:
                    break
                buyers[buyer] += 1
            if buyers.total() >= max(3, 3 * len(buyers)):
                most = max(buyers.values())
                flagged.setdefault(shop, set()).update(name for name, n in buyers.items() if n == most)
    pairs = sum(len(members) for members in found.values())
    words = "equal to every window looked at" if found == flagged else "DIFFERENT from every window looked at"
    print(
        f"{path.name}: {len(log.records)} orders, {len(found)} shops, {pairs} buyers of shops, {words}, "
        f"{len(log.records) / seconds:.0f} orders/s"
    )
    return found != flagged


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("data")))
