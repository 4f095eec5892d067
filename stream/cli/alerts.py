"""``foreclick alerts``: what was flagged, as it comes or one by one."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream.cli.options import BootstrapServers, Json, finish, progress

if TYPE_CHECKING:
    from stream.settings import Settings
    from stream.stored_alerts import Chosen, StoredAlert, Unreadable

File = Annotated[
    str | None,
    typer.Option("--file", help="Alerts that `score` wrote, instead of the topics; - is standard input."),
]


def register(app: typer.Typer) -> None:
    """Add ``alerts tail`` and ``alerts show``."""
    alerts = typer.Typer(no_args_is_help=True, help="Alerts: follow them, or look at one.")
    alerts.command(epilog="Example: foreclick alerts tail --kind order_brushing --since 2h")(tail)
    alerts.command(epilog="Example: foreclick alerts show order_brushing/shop/s1/1511550516000")(show)
    app.add_typer(alerts, name="alerts")


def tail(
    *,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only these detectors; churn means all of churn.*.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", help="Only about this user, shop or item, or with it as member."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="Written since then (15m, 2h, 7d, or a time); in a file, happened."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help="End after so many; without --since the newest of those there."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for more, or end with those that are there.")
    ] = True,
    file: File = None,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Show alerts as they are committed, a line each, after the newest that are there (10, or all --since).

    With --json each alert is a line of JSON, and the last line counts them.
    """
    from stream.settings import load_settings
    from stream.stored_alerts import Chosen, Unreadable, alerts_in, stored_alerts
    from stream.wording import moment_of, plain

    since_ms = None if since is None else moment_of(since, int(time.time() * 1000))
    chosen, unreadable = Chosen(kind or (), subject, since_ms), Unreadable()
    shown = _Shown(as_json, limit)
    if file is not None:
        for stored in alerts_in(file, unreadable):
            if shown.full:
                break
            if chosen.holds(stored):
                shown.say(stored)
    else:
        settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
        ends: dict[tuple[str, int], int] = {}
        with progress("alerts read", None) as advance:
            there = [
                stored
                for stored in stored_alerts(settings, unreadable, since_ms, advance, ends)
                if chosen.holds(stored)
            ]
        if since is None:
            newest = 10 if limit is None else limit
            there = there[max(0, len(there) - newest) :]
        for stored in there:
            shown.say(stored)
        if follow and not shown.full:
            _follow(settings, chosen, unreadable, ends, shown)
    if told := unreadable.told():
        print(told, file=sys.stderr)
    total = ", ".join(f"{plain(name)} {count}" for name, count in shown.counts.most_common()) or "none"
    finish(
        {"alerts": shown.counts.total(), "by_kind": dict(shown.counts), "unreadable": unreadable.count},
        f"{shown.counts.total()} alerts: {total}",
        as_json,
    )


def _follow(
    settings: Settings,
    chosen: Chosen,
    unreadable: Unreadable,
    ends: dict[tuple[str, int], int],
    shown: _Shown,
) -> None:
    """What is committed from now on, until there is enough of it or a Ctrl-C."""
    from stream.stored_alerts import of_record
    from stream.topic_reader import follow, reader

    with reader(settings.kafka.librdkafka()) as consumer:
        try:
            for record in follow(consumer, ends):
                stored = None if record is None else of_record(record, unreadable)
                if stored is not None and chosen.holds(stored):
                    shown.say(stored)
                    if shown.full:
                        return
        except KeyboardInterrupt:
            return


def show(
    alert_id: Annotated[
        str, typer.Argument(metavar="ID", help="The alert's id, or its end if that is unmistakable.")
    ],
    *,
    file: File = None,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Show one alert whole: reasons, evidence with its places in the source, members, earlier and later verdicts."""
    from msgspec import to_builtins
    from rich.console import Console

    from stream.alert_panel import alert_panel
    from stream.errors import InputFileError, TopicError
    from stream.settings import load_settings
    from stream.stored_alerts import Unreadable, alert_topics, alerts_in, chain_of, stored_alerts
    from stream.wording import cut, plain

    unreadable = Unreadable()
    if file is not None:
        where, alerts = plain(file), list(alerts_in(file, unreadable))
    else:
        settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
        where = " and ".join(alert_topics(settings))
        with progress("alerts read", None) as advance:
            alerts = stored_alerts(settings, unreadable, advance=advance)
    named = [each for each in alerts if each.alert.id == alert_id]
    named = named or [each for each in alerts if each.alert.id.endswith(alert_id)]
    if len({each.alert.id for each in named}) != 1:
        found = f"{len(named)} alerts whose id ends" if named else "no alert whose id is or ends"
        lack = (TopicError if file is None else InputFileError)(
            f"There is {found} with {cut(alert_id, 80)!r} among the {len(alerts)} of {where}. "
            "`foreclick alerts tail --json` shows ids."
        )
        raise lack
    stored = named[-1]
    chain = chain_of(stored.alert.id, alerts)
    if told := unreadable.told():
        print(told, file=sys.stderr)
    if as_json:
        ids = [each if isinstance(each, str) else each.alert.id for each in chain]
        finish({**to_builtins(stored.alert), "place": stored.place, "chain": ids}, "", as_json)
        return
    Console().print(alert_panel(stored, chain))


class _Shown:
    """Prints alerts one by one and counts them."""

    def __init__(self, as_json: bool, limit: int | None):
        from rich.console import Console

        self.counts: Counter[str] = Counter()
        self._as_json, self._limit = as_json, limit
        self._console = Console(soft_wrap=True)

    @property
    def full(self) -> bool:
        """No more are wanted."""
        return self._limit is not None and self.counts.total() >= self._limit

    def say(self, stored: StoredAlert) -> None:
        """Print one alert at once: who follows a pipe wants it now."""
        from stream.alert_panel import alert_line

        if self.full:
            return
        self.counts[stored.alert.kind] += 1
        if self._as_json:
            line: Any = stored.alert.as_json().decode()
            print(line, flush=True)
        else:
            self._console.print(alert_line(stored))
            self._console.file.flush()
