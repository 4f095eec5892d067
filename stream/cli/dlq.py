"""``foreclick dlq``: what was rejected, why, and the way back."""

from __future__ import annotations

import json
from collections import Counter, deque
from typing import Annotated

import typer

from stream.cli.options import BootstrapServers, Json, finish, progress

Reason = Annotated[
    str | None, typer.Option("--reason", help="Only these, such as late, wrong_type or key_mismatch.")
]


def register(app: typer.Typer) -> None:
    """Add ``dlq list``, ``dlq show`` and ``dlq replay``."""
    dlq = typer.Typer(no_args_is_help=True, help="Dead letters: list them, look at one, send them again.")
    dlq.command("list", epilog="Example: foreclick dlq list --reason late --limit 5")(list_letters)
    dlq.command(epilog="Example: foreclick dlq show 3 1842")(show)
    dlq.command(epilog="Example: foreclick dlq replay --reason key_mismatch")(replay)
    app.add_typer(dlq, name="dlq")


def list_letters(
    *,
    reason: Reason = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many are shown.")] = 20,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Count dead letters by reason and show the newest."""
    from stream.dead_letter_topic import StoredLetter, dead_letters
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    counts: Counter[str] = Counter()
    newest: dict[int, deque[StoredLetter]] = {}
    for stored in dead_letters(settings):
        if reason is None or stored.letter.reason == reason:
            counts[stored.letter.reason] += 1
            newest.setdefault(stored.partition, deque(maxlen=limit)).append(stored)
    shown = sorted((each for kept in newest.values() for each in kept), key=lambda each: each.timestamp_ms)
    shown = shown[max(0, len(shown) - limit) :]
    lines = [
        f"{each.partition} {each.offset}  {each.letter.reason:13}  {each.letter.topic}[{each.letter.partition}]"
        f"@{each.letter.offset}  {each.letter.message}"
        for each in shown
    ]
    total = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
    text = "\n".join([*lines, f"{counts.total()} dead letters: {total}"])
    result = {
        "dead_letters": counts.total(),
        "by_reason": dict(counts),
        "newest": [letter.described() for letter in shown],
    }
    finish(result, text, as_json)


def show(
    partition: Annotated[int, typer.Argument(help="Of the dead letters' topic.")],
    offset: Annotated[int, typer.Argument(help="In that partition.")],
    *,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Show one dead letter whole."""
    from stream.dead_letter_topic import dead_letter_at
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    letter = dead_letter_at(settings, partition, offset).described()
    finish(letter, json.dumps(letter, indent=2, ensure_ascii=False), as_json)


def replay(
    *,
    reason: Reason = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many.")] = None,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Send dead letters into the topic again that they came from, unchanged, each once ever."""
    from stream.dead_letter_topic import replay_dead_letters
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    with progress("replayed", limit) as advance:
        counts = replay_dead_letters(settings, reason, limit, advance)
    replayed = sum(counts.values())
    by_reason = ", ".join(f"{name} {count}" for name, count in counts.items())
    text = f"{replayed} dead letters sent to where they came from" + (f" ({by_reason})" if by_reason else "")
    finish({"replayed": replayed, "by_reason": counts, "topic": settings.clicks_topic}, text, as_json)
