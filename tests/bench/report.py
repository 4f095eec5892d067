"""How a bench speaks: tables on standard output, progress on standard error, one JSON line last."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

WAITING = {"score": "waits for other partitions and the model's thread", "commit": "waits for the broker"}
SAMPLE_LINES = 25
IDLE = (" select", " _worker")  # functions in which a thread waits for something to do


def tell(text: str) -> None:
    """One line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns side by side, numbers to the right."""
    cells = [[figure(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    print(f"\n{title}")
    for row, values in zip([list(header), *cells], [list(header), *cells], strict=True):
        aligned = [
            cell.rjust(width) if _is_number(value) else cell.ljust(width)
            for cell, value, width in zip(row, values, widths, strict=True)
        ]
        print("  " + "  ".join(aligned).rstrip())
    sys.stdout.flush()


def figure(cell: Any) -> str:
    """A figure as tables show it: as many digits as mean something."""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.2f}" if abs(cell) < 100 else f"{cell:.1f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("-", "").isdigit()


def machine(model: str, broker: str) -> None:
    """Where this ran; figures of two machines, or of a busy one, are not comparable."""
    load = os.getloadavg()[0]
    table(
        "machine",
        ("what", "value"),
        [
            ("cores", os.cpu_count() or 0),
            ("load before", load),
            ("python", platform.python_version()),
            *(
                (name, version(name))
                for name in ("torch", "numpy", "aiokafka", "faust-streaming", "rocksdict")
            ),
            ("model", model),
            ("broker", broker),
        ],
    )
    if load > 1:
        print(
            "  The machine is busy with something else: absolute figures mean little, ratios somewhat more."
        )


def stages(title: str, spent_s: Mapping[str, float], events: int, batches: int | None = None) -> None:
    """Wall time by step of the protocol, an event and a micro-batch."""
    rows: list[Sequence[Any]] = [
        (step, s * 1e6 / events, *([s * 1e3 / batches] if batches else []), WAITING.get(step, ""))
        for step, s in spent_s.items()
    ]
    busy = sum(s for step, s in spent_s.items() if step not in WAITING)
    rows.append(("without waiting", busy * 1e6 / events, *([busy * 1e3 / batches] if batches else []), ""))
    table(title, ("step", "us an event", *(["ms a batch"] if batches else []), "note"), rows)


def samples(file: Path) -> None:
    """Where the stacks stood: the lines on top, and our own functions under them, two tables a thread."""
    for thread, lines in json.loads(file.read_text()).items():
        busy = [(top, ours, count) for top, ours, count in lines if not top.endswith(IDLE)]
        total = sum(count for _, _, count in lines)
        if not busy:
            continue
        table(
            f"samples of thread {thread}: {total}, busy in {100 * sum(n for _, _, n in busy) / total:.0f} %",
            ("share %", "line", "called from"),
            [
                (100 * count / total, top, "" if ours == top else ours)
                for top, ours, count in busy[:SAMPLE_LINES]
            ],
        )
        by_function: dict[str, int] = {}
        for _, ours, count in busy:
            place, function = ours.split(" ", 1)
            name = f"{place.rsplit(':', 1)[0]} {function}"
            by_function[name] = by_function.get(name, 0) + count
        ranked = sorted(by_function.items(), key=lambda entry: -entry[1])[:SAMPLE_LINES]
        table(
            f"samples of thread {thread} by our own function, with what it calls in libraries",
            ("share %", "function"),
            [(100 * count / total, name) for name, count in ranked],
        )


def last_line(figures: Mapping[str, float]) -> None:
    """The JSON line."""
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}), flush=True)
