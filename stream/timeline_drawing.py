"""A user's timeline drawn in the terminal, and as one self-contained page. Whatever an id holds is shown as text."""

from __future__ import annotations

from html import escape
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from models.evaluation.figures import surprisal_by_event
from stream.alert_panel import SEVERITY_STYLES, reasons_in_words
from stream.alerts import Alert
from stream.timeline import Step, Timeline
from stream.wording import cut, moment, plain, span

__all__ = ["timeline_drawing", "timeline_page"]

BAR_CELLS: Final = 10
_SURPRISING: Final = 0.95  # of the anomaly score, which is a quantile among other users' events
_FULL_SCALE_NATS: Final = 5.0  # at least: a user without surprises shall not look like one with


def timeline_drawing(timeline: Timeline) -> RenderableType:
    """Sessions as groups, a line an event with its surprisal and its terms, alerts where they were possible."""
    scale = max(timeline.most_nats, _FULL_SCALE_NATS)
    evidence = timeline.evidence
    parts: list[RenderableType] = [_headline(timeline)]
    table: Table | None = None
    session: int | None = None
    for each in timeline.told():
        if isinstance(each, Alert):
            parts.append(_alert_box(each, timeline.user))
            table = None
            continue
        if table is None or each.prediction.session.index != session:
            if each.prediction.session.index != session:
                session = each.prediction.session.index
                parts.append(_session_title(timeline, session))
            table = _table()
            parts.append(table)
        table.add_row(*_cells(each, scale, each.prediction.place in evidence))
    parts += [
        Text(f"\nRead: {plain(timeline.read)}.", "dim"),
        *(Text(plain(note), "yellow") for note in timeline.notes),
    ]
    return Group(*parts)


def terms_of(step: Step) -> str:
    """The terms of the surprisal with their nats, most first."""
    return "  ".join(f"{term.name} {term.nats:.1f}" for term in step.terms) or "nothing was expected yet"


def expectation_of(step: Step) -> str:
    """What the prediction before had expected, beside what came."""
    words = []
    if step.expected is not None and step.event is not None:
        words.append(f"{cut(step.event.action, 20)} was {step.expected:.0%} likely")
    if step.gap_s is not None and step.usual_gap_s is not None:
        words.append(f"{span(step.gap_s)} after the one before, usually {span(step.usual_gap_s)}")
    return "; ".join(words)


def _headline(timeline: Timeline) -> Text:
    first, last = timeline.steps[0].prediction, timeline.steps[-1].prediction
    line = Text("user ", "dim").append(cut(timeline.user, 120), "bold")
    line.append(
        f"\n{len(timeline.steps)} events in {len(timeline.sessions())} sessions, {moment(first.event_time_ms)} to "
        f"{moment(last.event_time_ms)} UTC; most surprising {timeline.most_nats:.1f} nats; "
        f"{len(timeline.alerts)} alerts"
    )
    if timeline.earlier:
        line.append(f"\n{timeline.earlier} earlier events are not shown (--last)", "dim")
    return line


def _session_title(timeline: Timeline, index: int) -> Text:
    steps = next(steps for number, steps in timeline.sessions() if number == index)
    first, last = steps[0].prediction.event_time_ms, steps[-1].prediction.event_time_ms
    return Text(
        f"\nSession {index}, {moment(first)[:10]}: {len(steps)} events in {span((last - first) / 1000)}",
        "bold underline",
    )


def _table() -> Table:
    table = Table.grid(padding=(0, 1))
    for width in (8, 1, 8, 12, 9, BAR_CELLS, 5):
        table.add_column(width=width, no_wrap=True, overflow="ellipsis")
    table.add_column(overflow="fold")
    return table


def _cells(step: Step, scale_nats: float, is_evidence: bool) -> list[Text]:
    made, event = step.prediction, step.event
    surprising = made.anomaly.score >= _SURPRISING
    style = "red" if surprising else ""
    words = Text(terms_of(step))
    if surprising and (expected := expectation_of(step)):
        words.append(f"\n{expected}", "dim")
    return [
        Text(moment(made.event_time_ms)[11:], "dim"),
        Text("*" if is_evidence else "", "bold red"),
        Text(cut(event.action, 8) if event else "?", "bold"),
        Text(cut((event.item_id if event else "") or "", 12)),
        Text(cut((event.category_id if event else "") or "", 9)),
        Text("█" * round(BAR_CELLS * max(0.0, min(1.0, step.surprisal_nats / scale_nats))), style or "blue"),
        Text(f"{step.surprisal_nats:5.1f}", style),
        words,
    ]


def _alert_box(alert: Alert, user: str) -> Panel:
    words = Text(reasons_in_words(alert)).append(
        f"\n{moment(alert.event_time_ms)} UTC  {plain(alert.id)}", "dim"
    )
    style = SEVERITY_STYLES.get(alert.severity, "")
    title = Text(
        f"{plain(alert.kind)}, {alert.severity}, score {alert.score:.2f}{_whose(alert, user)}", style
    )
    return Panel(words, title=title, title_align="left", border_style=style)


def _whose(alert: Alert, user: str) -> str:
    if alert.subject_type == "user" and alert.subject == user:
        return ""
    role = "a member" if user in alert.members else "in its evidence"
    return f", about {plain(alert.subject_type)} {cut(alert.subject, 60)}, {role}"


# ------------------------------------------------------------------ the page

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --bad: #c0392b; --bar: #4a7fb5; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a7a; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; margin-bottom: 0 } .quiet { opacity: .75 }
h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto } th, td { text-align: left; padding: .1rem .8rem .1rem 0; vertical-align: top }
td.id { max-width: 14rem; overflow-wrap: anywhere } meter { width: 8rem }
.surprising { color: var(--bad); font-weight: 600 }
aside { border-left: 4px solid var(--bad); padding: .3rem 1rem; margin: .8rem 0; overflow-wrap: anywhere }
figure { margin: 1rem 0 } figure svg { max-width: 100%; height: auto } figcaption { font-size: .9em }
"""


def timeline_page(timeline: Timeline) -> str:
    """The timeline as one HTML file that loads nothing and runs nothing."""
    scale = max(timeline.most_nats, _FULL_SCALE_NATS)
    evidence = timeline.evidence
    first, last = timeline.steps[0].prediction, timeline.steps[-1].prediction
    chart = surprisal_by_event(
        [step.surprisal_nats for step in timeline.steps],
        [step.prediction.session.index for step in timeline.steps],
        [step.prediction.place in evidence for step in timeline.steps],
    )
    title = f"User {_text(timeline.user)}"
    body = [
        f"<h1>{title}</h1>",
        f'<p class="quiet">{len(timeline.steps)} events in {len(timeline.sessions())} sessions, '
        f"{moment(first.event_time_ms)} to {moment(last.event_time_ms)} UTC; {len(timeline.alerts)} alerts."
        + (f" {timeline.earlier} earlier events are not shown." if timeline.earlier else "")
        + "</p>",
        f"<figure>{chart}<figcaption>Surprisal of each event; sessions take turns in colour, and a cross marks what an "
        "alert rests on.</figcaption></figure>",
    ]
    rows: list[str] = []
    session: int | None = None

    def end_rows() -> None:
        if rows:
            body.append(f'<div class="wide"><table>{_HEAD}<tbody>{"".join(rows)}</tbody></table></div>')
            rows.clear()

    for each in timeline.told():
        if isinstance(each, Alert):
            end_rows()
            body.append(_aside(each, timeline.user))
            continue
        if each.prediction.session.index != session:
            end_rows()
            session = each.prediction.session.index
            body.append(f"<h2>{_text(_session_title(timeline, session).plain.strip())}</h2>")
        rows.append(_row(each, scale, each.prediction.place in evidence))
    end_rows()
    body += [f'<p class="quiet">{_text(note)}</p>' for note in (f"Read: {timeline.read}.", *timeline.notes)]
    # The policy is a second lock: nothing in the page may load or run anything, whatever an id holds.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


_HEAD: Final = (
    "<thead><tr><th>time</th><th></th><th>action</th><th>item</th><th>category</th><th colspan=2>surprisal (nats)</th>"
    "<th>its terms</th><th>expected</th></tr></thead>"
)


def _row(step: Step, scale_nats: float, is_evidence: bool) -> str:
    made, event = step.prediction, step.event
    surprising = ' class="surprising"' if made.anomaly.score >= _SURPRISING else ""
    nats = step.surprisal_nats
    return (
        f"<tr><td>{moment(made.event_time_ms)}</td><td>{'✕' if is_evidence else ''}</td>"
        f'<td class="id">{_text(event.action if event else "?")}</td>'
        f'<td class="id">{_text((event.item_id if event else "") or "")}</td>'
        f'<td class="id">{_text((event.category_id if event else "") or "")}</td>'
        f'<td><meter min="0" max="{scale_nats:.2f}" value="{max(nats, 0):.2f}"></meter></td>'
        f"<td{surprising}>{nats:.1f}</td><td>{_text(terms_of(step))}</td>"
        f"<td>{_text(expectation_of(step))}</td></tr>"
    )


def _aside(alert: Alert, user: str) -> str:
    return (
        f"<aside><strong>{_text(alert.kind)}, {_text(alert.severity)}, score {alert.score:.2f}"
        f"{_text(_whose(alert, user))}</strong><br>{_text(reasons_in_words(alert))}<br>"
        f'<span class="quiet">{moment(alert.event_time_ms)} UTC, {_text(alert.id)}</span></aside>'
    )


def _text(text: str) -> str:
    return escape(plain(text))
