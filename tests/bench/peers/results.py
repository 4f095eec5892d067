"""What the rounds amount to: medians with their spread, ratios, a table, a chart and JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.peers import chart
from tests.bench.peers.entrants import ENTRANTS, Entrant
from tests.bench.peers.machine import said
from tests.bench.peers.measuring import Measures
from tests.bench.report import table

FIGURES = (
    *("events_per_s", "rss_mib", "rate_p50_ms", "rate_p99_ms", "half_p50_ms", "half_p99_ms"),
    *("kill_events", "lost", "doubled", "contradicting", "back_after_s"),
)
HEADER = (
    *("who", "events/s", "RSS MiB", "p50 / p99 ms at the rate", "p50 / p99 ms at half its maximum"),
    *("lost", "doubled", "contradicting", "back after s", "note"),
)


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, least and most of what is a number; None when nothing is."""
    numbers = [value for value in values if math.isfinite(value)]
    if not numbers:
        return None
    return {"median": statistics.median(numbers), "least": min(numbers), "most": max(numbers)}


def summary(entrants: Sequence[Entrant], runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By entrant: each figure's spread over the rounds, where it was saturated, and what went wrong."""
    found: dict[str, dict[str, Any]] = {}
    for entrant in entrants:
        mine = [run for run in runs if run["entrant"] == entrant.name]
        found[entrant.name] = {
            "rounds": sum("error" not in run for run in mine),
            "errors": sorted({run["error"] for run in mine if "error" in run}),
            **{name: spread([run[name] for run in mine if name in run]) for name in FIGURES},
            # One round in which it fell behind is enough: the others had luck.
            **{
                name: any(run.get(name, False) for run in mine)
                for name in ("rate_saturated", "half_saturated")
            },
        }
    return found


def ratios(of: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The pipeline's events/s, and those of the others that it is measured by; absent where one did not run."""
    medians = {name: found["events_per_s"]["median"] for name, found in of.items() if found["events_per_s"]}
    figures = {f"{name}_events_per_s": median for name, median in medians.items()}
    ours = medians.get("foreclick")
    peers = [medians[entrant.name] for entrant in ENTRANTS if entrant.peer and entrant.name in medians]
    if ours is not None:
        if peers:
            figures["ratio_to_fastest_peer"] = ours / max(peers)
        if "faust" in medians:
            figures["ratio_to_stock"] = ours / medians["faust"]
        if "ceiling" in medians:
            figures["share_of_ceiling"] = ours / medians["ceiling"]
    return figures


def record(
    entrants: Sequence[Entrant],
    runs: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    measures: Measures,
    seed: int,
    took_s: float,
) -> dict[str, Any]:
    """All that is written."""
    of = summary(entrants, runs)
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_s": round(took_s),
        "seed": seed,
        "rounds": len({run["round"] for run in runs}),
        "steady_rounds": len({run["round"] for run in runs if "kill_events" in run}),
        "measures": asdict(measures),
        "machine": dict(about),
        "how": {entrant.name: entrant.how for entrant in entrants},
        "summary": of,
        "ratios": ratios(of),
        "runs": [{name: _plain(value) for name, value in run.items()} for run in runs],
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value


def rows(of: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table, fastest first; those who did not run last."""

    def speed(name: str) -> float:
        found = of[name]["events_per_s"]
        return -found["median"] if found else math.inf

    return [
        (
            name,
            _cell(of[name]["events_per_s"], 0),
            _cell(of[name]["rss_mib"], 0),
            _pair(of[name], "rate"),
            _pair(of[name], "half"),
            *(_cell(of[name][figure], 0) for figure in ("lost", "doubled", "contradicting")),
            _cell(of[name]["back_after_s"], 1),
            "; ".join(of[name]["errors"]) or ("" if of[name]["rounds"] else "not run"),
        )
        for name in sorted(of, key=speed)
    ]


def _cell(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return "-"
    median, least, most = (f"{found[name]:,.{digits}f}" for name in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} to {most})"


def _pair(of: Mapping[str, Any], name: str) -> str:
    if of[f"{name}_saturated"]:
        return "saturated"
    p50, p99 = of[f"{name}_p50_ms"], of[f"{name}_p99_ms"]
    return f"{_cell(p50, 0)} / {_cell(p99, 0)}" if p50 and p99 else "-"


def show(made: Mapping[str, Any]) -> None:
    """The table on standard output."""
    table(f"peers, median of {made['rounds']} rounds (least to most)", HEADER, rows(made["summary"]))


def page(made: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    measures = made["measures"]
    header = " | ".join(HEADER).replace("at the rate", f"at {measures['rate']:.0f} events/s")
    lines = [
        "# The same work by others",
        "",
        f"Made by `make bench-peers` on {made['made'][:10]}, rounds: {made['rounds']}, in "
        f"{made['took_s'] / 60:.0f} minutes, order of the entrants drawn anew in each (seed {made['seed']}), one "
        "broker. Cells are the median over the rounds, in brackets the least and the most; latency and kills are of "
        f"{made['steady_rounds']} of them.",
        "",
        said(made["machine"]),
        "",
        "![events a second and latency](peers.svg)",
        "",
        f"| {header} |",
        "|" + "---|" * len(HEADER),
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows(made["summary"])),
        "",
        *(f"{_RATIOS[name]}: {value:.2f}." for name, value in made["ratios"].items() if name in _RATIOS),
        "",
        *_METHOD.format(**measures, paced_users=measures["users"] // 10).strip().splitlines(),
        "",
        *(f"- `{name}`: {how}" for name, how in made["how"].items()),
        "",
    ]
    return "\n".join(lines)


_RATIOS = {
    "ratio_to_fastest_peer": "Against the fastest Python framework",
    "ratio_to_stock": "Against stock Faust",
    "share_of_ceiling": "Share of the ceiling",
}
_METHOD = """
All read the same {events:,} events of {users:,} users from 8 partitions with one worker, keep one row a user (about
1 KiB) and write the same prediction fields; the peers share one function for an event
(`tests/bench/peers/event_step.py`), so that among them only the framework differs. They hand it one event at a time,
and the network steps with it; foreclick and the ceiling step micro-batches.

- Events/s: predictions by the broker's clock in {seconds:.0f} s after {warm_up_s:.0f} s of warming up.
  Slow ones see less of each user's history, which is in their favour. RSS: of the process and its children, then.
- Latency: from the producer's timestamp to a read_committed reader, {paced_s:.0f} s at each rate,
  {paced_users:,} users. `saturated`: the rate is beyond the maximum of that round, or predictions were still missing
  {grace_s:.0f} s after the last event.
- Kill -9 of all its processes at a drawn moment of {kill_s:.0f} s of steady events (the lower of {rate:.0f}/s and half
  the maximum), started again at once; session timeouts of {session_timeout_s:.0f} s for everybody who has one. `lost`
  events have no prediction when it is at work again and says nothing more, `doubled` have more than one,
  `contradicting` predictions come from a state in which events are missing or counted twice. `back after`: until the
  first event sent after the kill was answered.

Who takes part:
"""


def write(made: Mapping[str, Any], out: Path) -> None:
    """peers.json, peers.md and peers.svg."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(made, indent=1) + "\n")
    (out / "peers.md").write_text(page(made))
    chart.draw(made["summary"], out / "peers.svg")
