"""Alerts drawn for people: a line each, or one whole. Everything that came from outside is shown as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stream.alerts import Alert
from stream.stored_alerts import StoredAlert
from stream.wording import cut, moment, plain

__all__ = ["alert_line", "alert_panel", "reasons_in_words"]

#: Colours that a terminal's own palette has, so that they read on dark and light.
SEVERITY_STYLES: Final = {"high": "bold red", "medium": "yellow", "low": "cyan"}
_ID_CHARACTERS: Final = 60
_WORDS_CHARACTERS: Final = 160


def reasons_in_words(alert: Alert) -> str:
    """The reasons' texts in one line."""
    return "; ".join(plain(str(reason.get("text") or reason.get("code") or "?")) for reason in alert.reasons)


def alert_line(stored: StoredAlert) -> Text:
    """Time of the event, severity, kind, subject, score and the reasons in words."""
    alert = stored.alert
    line = Text(f"{moment(alert.event_time_ms)}  ")
    line.append(f"{alert.severity:6}", SEVERITY_STYLES.get(alert.severity, ""))
    line.append(f"  {alert.score:.2f}  {cut(alert.kind, 24):14}  ")
    line.append(f"{plain(alert.subject_type)} {cut(alert.subject, _ID_CHARACTERS)}", "bold")
    line.append(f"  {cut(reasons_in_words(alert), _WORDS_CHARACTERS)}")
    if alert.members:
        line.append(f"  ({_members(len(alert.members))})")
    if alert.supersedes is not None:
        line.append("  supersedes an earlier one", "dim")
    return line


def alert_panel(stored: StoredAlert, chain: Sequence[StoredAlert | str]) -> Panel:
    """One alert whole: who, why, from what, with whom, and what it replaces or is replaced by."""
    alert = stored.alert
    style = SEVERITY_STYLES.get(alert.severity, "")
    parts: list[RenderableType] = [_facts(stored), *_section("Why", _reasons(alert.reasons))]
    if alert.evidence:
        parts += _section(f"Evidence ({len(alert.evidence)})", [_evidence(alert.evidence)])
    if alert.members:
        members = Text(", ").join(Text(plain(member)) for member in alert.members)
        parts += _section(f"Members ({len(alert.members)})", [members])
    if len(chain) > 1:
        parts += _section("Verdicts on this subject, oldest first", _chain(alert.id, chain))
    title = Text(
        f"{plain(alert.kind)}: {plain(alert.subject_type)} {cut(alert.subject, _ID_CHARACTERS)}", style
    )
    return Panel(Group(*parts), title=title, title_align="left", border_style=style, padding=(1, 2))


def _facts(stored: StoredAlert) -> Table:
    alert = stored.alert
    probability = "not calibrated yet" if alert.probability is None else f"{alert.probability:.3f}"
    facts = {
        "id": plain(alert.id),
        "subject": f"{plain(alert.subject_type)} {plain(alert.subject)}",
        "severity": f"{alert.severity}, score {alert.score:.3f}, probability {probability}",
        "event time": f"{moment(alert.event_time_ms)} UTC",
        "read from": plain(stored.place),
        "held back": f"{alert.held_back} findings before this one said nothing new",
    }
    if not alert.held_back:
        del facts["held back"]
    if alert.approximate:
        facts["approximate"] = "a bound on memory was met: members or events may be missing"
    table = _grid()
    for name, value in facts.items():
        table.add_row(Text(name, "dim"), Text(value))
    return table


def _reasons(reasons: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    table = _grid()
    for reason in reasons:
        numbers = ", ".join(
            _number(name, value) for name, value in reason.items() if name not in ("code", "text")
        )
        table.add_row(
            Text(plain(str(reason.get("code", "?"))), "bold"), Text(plain(str(reason.get("text", ""))))
        )
        if numbers:
            table.add_row("", Text(numbers, "dim"))
    yield table


def _number(name: str, value: Any) -> str:
    words = plain(name.removesuffix("_ms")).replace("_", " ")
    if name.endswith("_ms") and isinstance(value, int):
        return f"{words} {moment(value)}"
    return f"{words} {value:g}" if isinstance(value, float) else f"{words} {plain(str(value))}"


def _members(count: int) -> str:
    return f"{count} {'member' if count == 1 else 'members'}"


def _evidence(evidence: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("time (UTC)", "what", "user", "source", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for each in evidence:
        source = each.get("source")
        place = "?"
        if isinstance(source, Mapping):
            place = f"{source.get('topic')}[{source.get('partition')}]@{source.get('offset')}"
        what = next(
            (f"{name} {each[f'{name}_id']}" for name in ("order", "event") if each.get(f"{name}_id")), "event"
        )
        time_ms = each.get("event_time_ms")
        table.add_row(
            moment(time_ms) if isinstance(time_ms, int) else "?",
            Text(plain(what), overflow="fold"),
            Text(plain(str(each.get("user_id", ""))), overflow="fold"),
            Text(plain(place), overflow="fold"),
        )
    return table


def _chain(alert_id: str, chain: Sequence[StoredAlert | str]) -> Iterator[RenderableType]:
    table = _grid()
    for each in chain:
        if isinstance(each, str):
            table.add_row("?", Text(f"{plain(each)} (not among the alerts that were read)", "dim"))
            continue
        here = each.alert.id == alert_id
        members = _members(len(each.alert.members))
        words = f"score {each.alert.score:.2f}, {members}, held back {each.alert.held_back}"
        table.add_row(moment(each.alert.event_time_ms), Text(plain(each.alert.id), "bold" if here else ""))
        table.add_row("", Text(words + (" (this one)" if here else ""), "dim"))
    yield table


def _section(title: str, body: Any) -> list[RenderableType]:
    return [Text(f"\n{title}", "bold underline"), *body]


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table
