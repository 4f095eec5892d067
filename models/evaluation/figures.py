"""The report's figures: SVG without a fixed ink, so that they read on light and on dark paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.evaluation.intervals import Estimate
from models.evaluation.measures import bins_of

# Drawn in this colour, which nothing else has, and then told to take that of the text around.
_INK = "#010203"
_STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "foreclick",  # equal figures have equal bytes
    "text.parse_math": False,  # names of actions are the shop's: a $ is a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
}
# Tableau's ten as of matplotlib; the model has the first and the widest line.
_MODEL, _OTHERS = "C0", tuple(f"C{number}" for number in range(1, 10))


def _drawn(draw: Callable[[Axes], None], width: float = 4.6, height: float = 3.6) -> str:
    """One axes as an ``<svg>`` element without declarations, so that it names no host."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # several figures share a page: an id stands once
    return svg.replace(_INK, "currentColor")


def _ordered(model: str, methods: Mapping[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Name, value and style of each method; the model last, on top."""
    others = [name for name in methods if name != model]
    styles = [{"color": colour, "lw": 1.0} for colour in _OTHERS]
    lines = [(name, methods[name], styles[number % len(styles)]) for number, name in enumerate(others)]
    return [*lines, (model, methods[model], {"color": _MODEL, "lw": 2.2})]


def roc(model: str, p_by_method: Mapping[str, NDArray], label_N: NDArray[np.bool_]) -> str:
    """Share of purchases found against share of false alarms."""

    def draw(axes: Axes) -> None:
        for name, p_N, style in _ordered(model, p_by_method):
            hits, alarms = _ranked(p_N, label_N)
            axes.plot(np.append(0, alarms / alarms[-1]), np.append(0, hits / hits[-1]), label=name, **style)
        axes.plot([0, 1], [0, 1], ":", color=_INK, lw=0.8)
        axes.set(xlabel="false alarms, share of the rest", ylabel="found, share of purchases")
        axes.legend()

    return _drawn(draw)


def precision_recall(model: str, p_by_method: Mapping[str, NDArray], label_N: NDArray[np.bool_]) -> str:
    """Precision against the share of purchases found."""

    def draw(axes: Axes) -> None:
        top = float(label_N.mean())
        for name, p_N, style in _ordered(model, p_by_method):
            hits, alarms = _ranked(p_N, label_N)
            precision, recall = hits / (hits + alarms), hits / hits[-1]
            shown = recall >= 0.01  # the first few events are chance alone
            axes.step(recall[shown], precision[shown], where="pre", label=name, **style)
            top = max(top, float(precision[shown].max()))
        axes.axhline(float(label_N.mean()), ls=":", color=_INK, lw=0.8)
        axes.set(xlabel="found, share of purchases", ylabel="precision", ylim=(0, min(1.0, top * 1.1)))
        axes.legend()

    return _drawn(draw)


def _ranked(p_N: NDArray, label_N: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Hits and false alarms by falling threshold; equal probabilities are one point."""
    order = np.argsort(-p_N, kind="stable")
    last = np.flatnonzero(np.append(np.diff(p_N[order]) < 0, True))
    hits = np.cumsum(label_N[order])[last]
    return hits, last + 1 - hits


def reliability(parts: Mapping[str, tuple[NDArray, NDArray[np.bool_]]]) -> str:
    """What was said against what came, fifteen bins of equally many events; ``parts``: probabilities and hits."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], ":", color=_INK, lw=0.8)
        for name, (p_N, hit_N) in parts.items():
            bin_N = bins_of(p_N)
            count = np.bincount(bin_N)
            used = count > 0
            said = np.bincount(bin_N, p_N)[used] / count[used]
            came = np.bincount(bin_N, hit_N)[used] / count[used]
            axes.plot(said, came, "o-", ms=4, lw=1.2, label=name)
        axes.set(xlabel="probability said", ylabel="share that came", xlim=(0, 1), ylim=(0, 1))
        axes.legend()

    return _drawn(draw)


def training_curve(curve: Sequence[Mapping[str, float]]) -> str:
    """Loss of the fitted and of the tuning users after each pass."""

    def draw(axes: Axes) -> None:
        epoch = [point["epoch"] for point in curve]
        axes.plot(epoch, [point["loss"] for point in curve], "o-", ms=3, label="fitted users")
        axes.plot(epoch, [point["tuning_loss"] for point in curve], "o-", ms=3, label="tuning users")
        axes.set(xlabel="pass over the log", ylabel="weighted loss, nats an event")
        axes.legend()

    return _drawn(draw)


def confusion(names: Sequence[str], said_N: NDArray, came_N: NDArray) -> str:
    """What came (rows) and what was likeliest before it (columns), shares of each row, at most 16 actions."""
    codes, count = np.unique(came_N, return_counts=True)
    codes = np.sort(codes[np.argsort(-count, kind="stable")][:16])

    def draw(axes: Axes) -> None:
        table = np.array([[np.sum((came_N == a) & (said_N == b)) for b in codes] for a in codes], float)
        share = table / np.array([max(1, int((came_N == a).sum())) for a in codes])[:, None]
        axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1, edgecolors="none")
        for row, column in np.ndindex(*share.shape):
            ink = "white" if share[row, column] > 0.5 else "black"
            text = f"{share[row, column]:.2f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=7)
        labels = [names[code] for code in codes]
        places = np.arange(len(codes)) + 0.5
        axes.set_xticks(places, labels, rotation=45, ha="right")
        axes.set_yticks(places, labels)
        axes.set(xlabel="likeliest", ylabel="came")
        axes.invert_yaxis()
        axes.grid(visible=False)

    size = max(3.6, 0.42 * len(codes) + 1.6)
    return _drawn(draw, size + 0.6, size)


def gap_quantiles(predicted_N: NDArray, actual_N: NDArray, unit: str) -> str:
    """Quartiles of the gaps that came, by the median predicted, in ten bins of equally many events."""

    def draw(axes: Axes) -> None:
        least = max(1e-4, float(np.quantile(actual_N[actual_N > 0], 0.001)) if (actual_N > 0).any() else 1.0)
        predicted, actual = np.maximum(predicted_N, least), np.maximum(actual_N, least)
        bin_N = bins_of(predicted, 10)
        used = np.unique(bin_N)
        middle = [float(np.median(predicted[bin_N == number])) for number in used]
        quartiles = np.array([np.quantile(actual[bin_N == number], (0.25, 0.5, 0.75)) for number in used])
        axes.fill_between(middle, quartiles[:, 0], quartiles[:, 2], alpha=0.25, lw=0, label="middle half")
        axes.plot(middle, quartiles[:, 1], "o-", ms=4, label="median")
        axes.plot(middle, middle, ":", color=_INK, lw=0.8)
        axes.set(
            xscale="log", yscale="log", xlabel=f"median predicted, {unit}", ylabel=f"gap that came, {unit}"
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.legend()

    return _drawn(draw)


def purchase_by_events(model: str, by_method: Mapping[str, Sequence[tuple[int, Estimate]]]) -> str:
    """Area under the ROC curve after k events of the session; the band is the model's interval."""

    def draw(axes: Axes) -> None:
        for name, points, style in _ordered(model, by_method):
            k = [events for events, _ in points]
            axes.plot(k, [estimate.value for _, estimate in points], "o-", ms=3, label=name, **style)
            if name == model:
                bounds = [estimate.interval() for _, estimate in points]
                low, high = [each.low for each in bounds], [each.high for each in bounds]
                axes.fill_between(k, low, high, alpha=0.15, lw=0, color=_MODEL)
        axes.axhline(0.5, ls=":", color=_INK, lw=0.8)
        axes.set(xlabel="events of the session so far", ylabel="area under the ROC curve")
        axes.legend()

    return _drawn(draw)


def surprisal_by_event(nats: Sequence[float], sessions: Sequence[int], marked: Sequence[bool]) -> str:
    """Surprisal of a user's events in their order; sessions take turns in colour, marked events wear a cross.

    Args:
        nats: of N events.
        sessions: N numbers of their sessions.
        marked: N, those that something rests on.
    """

    def draw(axes: Axes) -> None:
        turn = np.cumsum(np.append(0, np.diff(np.asarray(sessions)) != 0))
        place = np.arange(1, len(nats) + 1)
        axes.bar(place, nats, color=[_MODEL if each % 2 == 0 else _OTHERS[0] for each in turn], width=0.9)
        at = np.flatnonzero(marked)
        axes.plot(place[at], np.asarray(nats)[at], "x", color="C3", ms=6)
        axes.set(xlabel="event", ylabel="surprisal, nats", xlim=(0.4, len(nats) + 0.6))

    return _drawn(draw, 9.0, 2.6)
