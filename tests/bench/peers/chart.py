"""The chart: events a second and latency of every entrant, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OURS, PEERS = "#1f6f8b", "#9aa5ab"


def draw(of: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Bars of medians with whiskers from least to most; those without a figure are left out.

    When nobody has one there is nothing to draw, and an older chart would be of other figures: the file goes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    ran = {name: found for name, found in of.items() if found["events_per_s"]}
    if not ran:
        file.unlink(missing_ok=True)
        return
    names = sorted(ran, key=lambda name: ran[name]["events_per_s"]["median"])
    with mpl.rc_context({"svg.hashsalt": "foreclick", "font.size": 9}):
        figure = Figure(figsize=(10, 0.45 * len(names) + 1.6), layout="constrained")
        speed, latency = figure.subplots(1, 2, sharey=True)
        places = range(len(names))
        speeds = [ran[name]["events_per_s"] for name in names]
        speed.barh(
            places,
            [found["median"] for found in speeds],
            xerr=[
                [found["median"] - found["least"] for found in speeds],
                [found["most"] - found["median"] for found in speeds],
            ],
            color=[OURS if name == "foreclick" else PEERS for name in names],
        )
        for place, found in zip(places, speeds, strict=True):
            speed.annotate(
                f" {found['median']:,.0f}",
                (found["most"], place),
                va="center",
                xytext=(3, 0),
                textcoords="offset points",
            )
        speed.set_xlim(
            min(found["least"] for found in speeds) / 2, max(found["most"] for found in speeds) * 4
        )
        speed.set_xscale("log")
        speed.set_yticks(list(places), names)
        speed.set_xlabel("events a second")
        measured_ms: list[float] = []
        for name, marker, label in (("rate", "o", "steady rate"), ("half", "s", "half of its maximum")):
            for quantile, filled in (("p50", True), ("p99", False)):
                points = [
                    (ran[who][f"{name}_{quantile}_ms"]["median"], place)
                    for place, who in enumerate(names)
                    if ran[who][f"{name}_{quantile}_ms"] and not ran[who][f"{name}_saturated"]
                ]
                measured_ms += [x for x, _ in points]
                latency.scatter(
                    [x for x, _ in points],
                    [y + (0.12 if name == "rate" else -0.12) for _, y in points],
                    marker=marker,
                    facecolors=OURS if filled else "none",
                    edgecolors=OURS,
                    label=f"{label}, {quantile}",
                )
        if measured_ms:  # an empty axis has no logarithm
            latency.set_xscale("log")
            least, most = math.log10(min(measured_ms)), math.log10(max(measured_ms))
            latency.set_xlim(10 ** math.floor(least), 10 ** (math.floor(most) + 1))
        latency.xaxis.set_minor_formatter(NullFormatter())
        latency.set_xlabel("event to prediction, ms")
        latency.legend(fontsize=7)
        latency.grid(axis="x", alpha=0.3)
        figure.savefig(file, format="svg", metadata={"Date": None})
