"""The report: one page that needs nothing beside itself, and the same figures for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluation import figures
from models.evaluation.comparison import Comparison
from models.evaluation.predictions import Predictions

_LONG = {
    "log_loss": "log-loss (nats)",
    "accuracy": "top-1 accuracy",
    "top_3_accuracy": "top-3 accuracy",
    "macro_f1": "macro-F1",
    "ece": "calibration error",
    "ece_classwise": "calibration error, mean of the actions",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "precision": "precision",
    "recall": "recall",
    "mae": "mean absolute error",
    "median_absolute_error": "median absolute error",
    "log_likelihood": "log-likelihood (nats a gap)",
    "recall_at_20": "R@20",
    "recall_at_10": "R@10",
    "mrr": "MRR",
}
_VERDICTS = {"ahead": "ahead of", "behind": "behind", "undecided": "not told apart from"}
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --bad: #c0392b; --good: #1e8449; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a7a; --good: #7fd99a; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem }
.wide { overflow-x: auto }
th, td { text-align: left; padding: .15rem .9rem .15rem 0; white-space: nowrap }
thead th { border-bottom: 1px solid var(--line) } tbody.metric { border-bottom: 1px solid var(--soft) }
.number { text-align: right } .model td { font-weight: 600 }
.range { opacity: .7; font-size: .85em; font-weight: 400 }
.behind { color: var(--bad); font-weight: 600 } .ahead { color: var(--good) }
figure { display: inline-block; margin: .5rem 1rem 1rem 0; vertical-align: top; max-width: 100% }
figure svg { max-width: 100%; height: auto } figcaption { font-size: .9em; max-width: 28rem }
.quiet { opacity: .75 }
"""


def page(
    result: Mapping[str, Any],
    comparison: Comparison,
    rebuilt: Comparison | None,
    made: Predictions,
    curve: Sequence[Mapping[str, float]],
) -> str:
    """The report as one HTML file.

    Args:
        result: what ``foreclick evaluate --json`` prints.
        comparison: of the model with its baselines.
        rebuilt: of the model with states rebuilt from windows.
        made: the model's predictions of the measured events.
        curve: of the model's training, as its manifest tells it.
    """
    model = result["model"]
    title = f"{model['name']}/{model['version']} on {result['file']}"
    if result["split"] == "all":
        whom = "all users of the log"
    elif result["split_time_ms"] is None:
        whom = f"test users, crc32(user) % 100 from {result['bounds'][1]} on"
    else:
        moment = datetime.fromtimestamp(result["split_time_ms"] / 1000, UTC)
        whom = f"events from {moment:%Y-%m-%d %H:%M} UTC on"
    drawn = dict(_figures(comparison, made, result))
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{escape(model["entry"])}, {result["users"]:,} users and {result["events"]:,} events: '
        f"{whom}. Weights SHA-256 {model['sha256'][:12]}, log SHA-256 {result['sha256'][:12]}.</p>",
        "<h2>Is it better than simple methods?</h2>",
        _verdicts(result),
        *(f"<p>{escape(note)}</p>" for note in result["notes"]),
    ]
    for head in comparison.estimates:
        body += [
            f"<h2>{escape(head.replace('_', ' ').capitalize())}</h2>",
            _table(head, result),
            drawn.get(head, ""),
        ]
    if rebuilt is not None:
        body += ["<h2>States rebuilt from the window</h2>", _rebuilt(rebuilt.differences())]
    if curve:
        body += [
            "<h2>Training</h2>",
            _figure(figures.training_curve(curve), "The loss of both parts after each pass over the log."),
        ]
    body += [
        "<h2>How it was measured</h2>",
        "<p>Predictions come out of the step engine that serves them, states stored as float16. A user's first event "
        "is not scored for next action and next category; gaps are scored where the user came back; purchase where the "
        "log knows the session's end. Brackets are 95 % intervals by resampling users; differences are paired: "
        "the same users are drawn for both methods. Calibration errors have 15 bins of equally many events.</p>",
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _verdicts(result: Mapping[str, Any]) -> str:
    if not result["verdicts"]:
        return "<p>No simple method was measured beside it (<code>--baselines</code>).</p>"
    rows = []
    for head, metric in dict.fromkeys((each["head"], each["metric"]) for each in result["verdicts"]):
        cells = []
        for verdict in ("behind", "undecided", "ahead"):
            names = [
                each["baseline"]
                for each in result["verdicts"]
                if (each["head"], each["metric"], each["verdict"]) == (head, metric, verdict)
            ]
            if names:
                cells.append(
                    f'<span class="{verdict}">{_VERDICTS[verdict]}</span> {escape(", ".join(names))}'
                )
        label = f"{head.replace('_', ' ')}, {_LONG.get(metric, metric)}"
        rows.append(f"<tr><th>{escape(label)}</th><td>{'; '.join(cells)}</td></tr>")
    lost = sum(each["verdict"] != "ahead" for each in result["verdicts"])
    said = (
        f"Of {len(result['verdicts'])} comparisons {lost} {'is' if lost == 1 else 'are'} not won."
        if lost
        else "Ahead of every simple method."
    )
    return f'<p>{said}</p><div class="wide"><table>{"".join(rows)}</table></div>'


def _table(head: str, result: Mapping[str, Any]) -> str:
    model = result["model"]["entry"]
    entries = [
        entry
        for entry in result["metrics"]
        if entry["head"] == head and entry["name"] not in (f"{model}_rebuilt", f"{model}_carried")
    ]
    less = {(each["name"], each["metric"]): each for each in result["differences"] if each["head"] == head}
    unit = "" if head != "gap" or result["gap_unit_s"] == 1 else f" (unit {result['gap_unit_s']:,g} s)"
    groups = []
    for metric in dict.fromkeys(entry["metric"] for entry in entries):
        rows = []
        for entry in (each for each in entries if each["metric"] == metric):
            is_model = entry["name"] == model
            difference = less.get((f"{model} - {entry['name']}", metric))
            label = escape(_LONG.get(metric, metric.replace("_", " "))) if is_model else ""
            rows.append(
                f"<tr{' class=model' if is_model else ''}><td>{label}</td><td>{escape(entry['name'])}</td>"
                f"<td>{_shown(entry)}</td><td>{_shown(difference) if difference else ''}</td>"
                f'<td class="number">{entry["n"]:,}</td></tr>'
            )
        groups.append(f'<tbody class="metric">{"".join(rows)}</tbody>')
    header = (
        f"<th>metric{unit}</th><th>method</th><th>value</th><th>{escape(model)} less it</th><th>events</th>"
    )
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead>{"".join(groups)}</table></div>'


def _rebuilt(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"<tr><td>{escape(each['head'].replace('_', ' '))}</td><td>{escape(_LONG.get(each['metric'], each['metric']))}"
        f'</td><td>{_shown(each)}</td><td class="number">{each["n"]:,}</td></tr>'
        for each in entries
    ]
    header = "<th>head</th><th>metric</th><th>rebuilt less carried</th><th>events</th>"
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _shown(entry: Mapping[str, Any]) -> str:
    value, low, high = (_number(entry[key]) for key in ("value", "low", "high"))
    return f'{value} <span class="range">[{low}, {high}]</span>'


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _figures(
    comparison: Comparison, made: Predictions, result: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Each head with its figures."""
    answers, model = comparison.answers, comparison.model
    if "next_action" in comparison.estimates:
        at = answers.at["next_action"]
        p, came = made.next_action[at], answers.columns["action"][at]
        said = p.argmax(axis=1)
        yield (
            "next_action",
            _figure(
                figures.reliability(
                    {"likeliest action": (p.max(axis=1), said == came), **_rarer(p, came, result["actions"])}
                ),
                "Reliability: on the dotted line what was said is what came.",
            )
            + _figure(
                figures.confusion(result["actions"], said, came),
                "Confusion: the likeliest action before the event, shares of each row.",
            ),
        )
    if "purchase" in comparison.estimates:
        at = answers.at["purchase"]
        label = answers.purchase_N[at]
        p_by_method = {name: p[at] for name, p in comparison.purchase_by_method.items()}
        after = {
            name: [
                (int(each.metric.rpartition("_")[2]), each)
                for each in estimates
                if each.metric.startswith("roc_auc_after_")
            ]
            for name, estimates in comparison.estimates["purchase"].items()
        }
        yield (
            "purchase",
            _figure(figures.roc(model, p_by_method, label), "ROC of a purchase later in the session.")
            + _figure(
                figures.precision_recall(model, p_by_method, label),
                "Precision and recall; dotted: saying it always.",
            )
            + _figure(
                figures.reliability({model: (p_by_method[model], label)}),
                "Reliability of the purchase probability.",
            )
            + _figure(
                figures.purchase_by_events(model, after), "How early a purchase is seen; the band is 95 %."
            ),
        )
    if "gap" in comparison.estimates:
        at, unit_s = answers.at["gap"], answers.gap_unit_s
        unit = "s" if unit_s == 1 else f"{unit_s:,g} s"
        yield (
            "gap",
            _figure(
                figures.gap_quantiles(made.gap_s[at] / unit_s, answers.gap_s_N[at] / unit_s, unit),
                "Quartiles of the gaps that came, by the median predicted; on the dotted line they agree.",
            ),
        )


def _rarer(
    p_NA: NDArray, came_N: NDArray, names: Sequence[str]
) -> dict[str, tuple[NDArray, NDArray[np.bool_]]]:
    """Probability and occurrence of the second to fourth most frequent actions: where calibration is hard."""
    codes, count = np.unique(came_N, return_counts=True)
    return {
        names[code]: (p_NA[:, code], came_N == code) for code in codes[np.argsort(-count, kind="stable")][1:4]
    }
