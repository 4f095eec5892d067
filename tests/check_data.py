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
    if not read:
        print(
            f"error: none of {', '.join(LOGS)} is in {folder}: make check-data DATA=folder", file=sys.stderr
        )
    return int(bool(wrong) or not read)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("data")))
