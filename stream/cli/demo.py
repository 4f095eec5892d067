"""``foreclick demo``: the whole pipeline on this machine, with a live table and a summary."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream.cli.options import Columns, Delimiter, Format, Json, Limit, Model, NoHeader, TimeFormat, finish

if TYPE_CHECKING:
    from stream.demo import Pipeline, Sender
    from stream.files import FileRecord

REFRESH_S = 0.5
PLAIN_EVERY_S = 2.0


def register(app: typer.Typer) -> None:
    """Add ``demo``."""
    app.command(
        epilog="Example: foreclick demo --input clicks.csv.gz --format taobao --json",
        help="Broker, topics, worker and simulated shop traffic, live; ends with a summary.",
    )(demo)


def demo(
    input_: Annotated[
        str | None,
        typer.Option("--input", help="A log to replay instead of simulated traffic.", show_default=False),
    ] = None,
    format: Format = "auto",  # noqa: A002 - the flag's name
    columns: Columns = None,
    delimiter: Delimiter = None,
    time_format: TimeFormat = None,
    no_header: NoHeader = False,
    limit: Limit = None,
    users: Annotated[int, typer.Option(min=1, help="Simulated users.")] = 2_000,
    events: Annotated[int, typer.Option(min=1, help="Simulated events.")] = 60_000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 1,
    rate: Annotated[float, typer.Option(min=0, help="Events a second; 0 is as fast as it goes.")] = 4_000,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Start everything, send traffic, show what comes out, and check every input position at the end."""
    from stream.demo import Sender, pipeline, summarise, wait_drained

    tell = _teller()
    records = (
        _simulated(users, events, seed, tell)
        if input_ is None
        else _file(input_, format, columns, delimiter, time_format, not no_header, limit)
    )
    with pipeline(tell, model) as running:
        began_s = time.time()
        sender = Sender(running.settings, records, rate or None)
        sender.start()
        _watch(running, sender, len(records))
        if sender.error is not None:
            raise sender.error
        wait_drained(running)
        tell("checking every input position")
        result = summarise(running, began_s)
    finish(result, _sentence(result), as_json)


def _teller() -> Any:
    """Says what is going on, once for each new thing, on stderr."""
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            print(f"demo: {text}", file=sys.stderr, flush=True)

    return tell


def _simulated(users: int, events: int, seed: int, tell: Any) -> list[FileRecord]:
    from stream.simulated import soiled_records

    tell(f"simulating {events} events of {users} users")
    return soiled_records(users, events, seed)


def _file(
    path: str,
    format_name: str,
    columns: str | None,
    delimiter: str | None,
    time_format: str | None,
    header: bool,
    limit: int | None,
) -> list[FileRecord]:
    from stream.files import read_log

    log = read_log(
        path,
        format_name,
        columns=columns,
        delimiter=delimiter,
        time_format=time_format,
        header=header,
        limit=limit,
    )
    return log.records


def _watch(running: Pipeline, sender: Sender, total: int) -> None:
    """The live table until everything was sent and answered, or nothing moves any more."""
    from stream.demo import WorkerDied

    live = _live() if sys.stderr.isatty() else None
    last_said_s = last_change_s = time.monotonic()
    last_answers = -1
    rates: list[tuple[float, int]] = []
    with live or _Nothing():
        while True:
            running.worker.check()
            seen = running.tail.seen
            answers = seen.predictions + seen.dead_letters
            now = time.monotonic()
            rates = [*rates[-8:], (now, answers)]
            if answers != last_answers:
                last_answers, last_change_s = answers, now
            done = not sender.is_alive() and (answers >= total or now - last_change_s > 1.5)
            if live is not None:
                live.update(_table(running, sender, total, rates))
            elif now - last_said_s >= PLAIN_EVERY_S or done:
                last_said_s = now
                print(f"demo: {_line(running, sender, total, rates)}", file=sys.stderr, flush=True)
            if done or sender.error is not None:
                return
            if now - last_change_s > 60:
                raise WorkerDied(
                    "No result for 60 s; the worker hangs. Its log is " + str(running.worker.log)
                )
            time.sleep(REFRESH_S)


def _rate(rates: list[tuple[float, int]]) -> float:
    (since, first), (now, last) = rates[0], rates[-1]
    return (last - first) / (now - since) if now > since else 0.0


def _latency(running: Pipeline) -> tuple[str, str]:
    """p50 and p99 of event to score, out of the worker's own histogram: upper bounds of buckets."""
    _, body = running.worker.get("/metrics")
    buckets: list[tuple[float, float]] = []
    for line in body.decode().splitlines():
        if line.startswith("foreclick_event_to_score_seconds_bucket"):
            bound, count = line.split('le="')[1].split('"} ')
            buckets.append((float(bound), float(count)))
    total = buckets[-1][1] if buckets else 0
    if not total:
        return "-", "-"

    def bound_of(q: float) -> str:
        bound = next(bound for bound, count in buckets if count >= q * total)
        return f"≤ {bound * 1000:.0f} ms" if bound < 1e9 else "> 60 s"

    return bound_of(0.5), bound_of(0.99)


def _line(running: Pipeline, sender: Sender, total: int, rates: list[tuple[float, int]]) -> str:
    seen, stats = running.tail.seen, running.worker.stats()
    p50, p99 = _latency(running)
    return (
        f"sent {sender.sent} of {total}, predictions {seen.predictions}, dead letters {seen.dead_letters}, "
        f"{_rate(rates):.0f} events/s, latency p50 {p50} p99 {p99}, lag {stats.get('lag_records', '?')}"
    )


def _live() -> Any:
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(stderr=True), refresh_per_second=4)


def _table(running: Pipeline, sender: Sender, total: int, rates: list[tuple[float, int]]) -> Any:
    from rich import box
    from rich.columns import Columns as Side
    from rich.console import Group
    from rich.table import Table

    seen, stats = running.tail.seen, running.worker.stats()
    p50, p99 = _latency(running)
    top = Table(box=box.SIMPLE_HEAVY, title="foreclick demo")
    for name in ("sent", "predictions", "events/s", "event → score p50", "p99", "lag", "dead letters"):
        top.add_column(name, justify="right")
    top.add_row(
        f"{sender.sent} / {total}",
        str(seen.predictions),
        f"{_rate(rates):,.0f}",
        p50,
        p99,
        str(stats.get("lag_records", "?")),
        ", ".join(f"{reason} {count}" for reason, count in seen.reasons.most_common(5)) or "none",
    )
    last = Table(box=box.SIMPLE, title="last predictions")
    for name in ("user", "next action", "next category", "buys", "anomaly"):
        last.add_column(name)
    for value in list(seen.latest):
        action, chance = max(value["next_action"].items(), key=lambda entry: entry[1])
        category = value["next_category"][0]["category"] if value["next_category"] else "-"
        last.add_row(
            value["user_id"],
            f"{action} {chance:.2f}",
            category,
            f"{value['purchase_probability']:.2f}",
            f"{value['anomaly']['score']:.2f}",
        )
    strange = Table(box=box.SIMPLE, title="most anomalous users")
    strange.add_column("user")
    strange.add_column("score", justify="right")
    for user, score in sorted(seen.anomalous.items(), key=lambda entry: -entry[1])[:5]:
        strange.add_row(user, f"{score:.3f}")
    return Group(top, Side([last, strange]))


class _Nothing:
    """Stands in for the live table where there is no terminal."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def _sentence(result: dict[str, Any]) -> str:
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in sorted(result["dead_letters_by_reason"].items())
    )
    return (
        f"{result['events_in']} events in, {result['predictions']} predictions, "
        f"{result['dead_letters']} dead letters"
        f"{f' ({reasons})' if reasons else ''}, {result['duplicates_dropped']} repeats dropped, "
        f"{result['late']} late.\n"
        f"{result['missing']} missing, {result['twice']} twice, by a reader that joined every input position.\n"
        f"{result['events_per_s']:.0f} events/s; event to score p50 {result['event_to_score_p50_ms']} ms, "
        f"p99 {result['event_to_score_p99_ms']} ms."
    )
