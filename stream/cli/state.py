"""``foreclick state``: what is known of a user, where the partitions stand, and a fresh start."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stream.cli.options import BootstrapServers, DataDir, Json, finish

if TYPE_CHECKING:
    from stream.local_rows import Comparison
    from stream.settings import Settings

HttpPort = Annotated[
    int | None, typer.Option("--http-port", help="Of the running worker.", show_default=False)
]
HTTP_TIMEOUT_S = 5.0


def register(app: typer.Typer) -> None:
    """Add ``state show``, ``stats``, ``verify`` and ``reset``."""
    state = typer.Typer(
        no_args_is_help=True, help="Rows of users: through the running worker, else from its data directory."
    )
    state.command(epilog="Example: foreclick state show u17")(show)
    state.command(epilog="Example: foreclick state stats --json")(stats)
    state.command(epilog="Example: foreclick state verify --data-dir /var/lib/foreclick/0")(verify)
    state.command(epilog="Example: foreclick state reset --to earliest --yes")(reset)
    app.add_typer(state, name="state")


def show(
    user: Annotated[str, typer.Argument(help="The user's id.")],
    *,
    http_port: HttpPort = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show the row of one user."""
    from stream.errors import StoreError
    from stream.local_rows import LocalRows, partitions_on_disk
    from stream.moments import FIRST_MOMENT
    from stream.rows import read
    from stream.settings import load_settings

    settings = load_settings(http__port=http_port, data_dir=data_dir)
    found = worker_says(settings, "/state/" + urllib.parse.quote(user, safe=""))
    if found is None:
        for folder in partitions_on_disk(settings):
            rows = LocalRows(folder)
            raw = rows.get(user)
            if raw is not None:
                said_before = rows.source.said_before if rows.source else FIRST_MOMENT
                row = read(raw, said_before.ends_ms(user.encode()))
                found = {"user_id": user, "partition": rows.partition, "bytes": len(raw), **row}
            rows.close()
        if found is None:
            raise StoreError(
                f"No row of user {user} in {settings.data_dir}. If other workers share the group, ask theirs "
                "(--http-port or --data-dir)."
            )
    elif "error" in found:
        raise StoreError(
            f"The worker on port {settings.http.port} has {found['error']}. Ask the other workers."
        )
    finish(found, json.dumps(found, indent=2, ensure_ascii=False), as_json)


def stats(*, http_port: HttpPort = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Show where every partition of this worker stands."""
    from stream.local_rows import GROUPS_TABLE, LABELS_TABLE, partitions_on_disk
    from stream.settings import load_settings

    settings = load_settings(http__port=http_port, data_dir=data_dir)
    found = worker_says(settings, "/state")
    if found is None:
        found = _on_disk(partitions_on_disk(settings))
        for table in (GROUPS_TABLE, LABELS_TABLE):
            if folders := partitions_on_disk(settings, table):
                found[table] = _on_disk(folders)
    finish(found, json.dumps(found, indent=2), as_json)


def _on_disk(folders: list[Path]) -> dict[str, Any]:
    """Where the partitions of one stage stand, without a worker."""
    from stream.local_rows import LocalRows

    partitions = {}
    for folder in folders:
        rows = LocalRows(folder)
        mark = rows.source
        partitions[rows.partition] = {
            "state": "on disk",
            "next_offset": mark.next_offset if mark else None,
            "rows": rows.count(),
            "changelog_position": rows.position,
        }
        rows.close()
    return {"partitions": partitions, "rows": sum(each["rows"] for each in partitions.values())}


def verify(
    *, bootstrap_servers: BootstrapServers = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Compare the rows on this machine with the changelog; exit 1 when they contradict each other."""
    from stream.local_rows import GROUPS_TABLE, LABELS_TABLE, TABLE, partitions_on_disk
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers, data_dir=data_dir)
    comparisons = _compared(settings, settings.changelog_topic, TABLE)
    changelogs = {
        GROUPS_TABLE: settings.groups_changelog_topic,
        LABELS_TABLE: settings.labels_changelog_topic,
    }
    for table, changelog in changelogs.items():
        if partitions_on_disk(settings, table):
            comparisons += _compared(settings, changelog, table)
    totals = {
        name: sum(getattr(each, name) for each in comparisons)
        for name in ("equal", "different", "missing", "extra", "newer")
    }
    sound = all(each.sound for each in comparisons)
    lines = [
        f"{each.table} partition {each.partition} at {each.position}: {each.equal} equal, {each.different} different, "
        f"{each.missing} missing, {each.extra} extra, {each.newer} newer in the changelog"
        + (f" ({', '.join(each.keys)})" if each.keys else "")
        for each in comparisons
    ]
    if not sound:
        lines.append(
            f"Rows contradict the changelog. Stop the worker and remove {settings.data_dir}: it restores them."
        )
    result = {"sound": sound, **totals, "partitions": [asdict(each) for each in comparisons]}
    finish(result, "\n".join(lines), as_json)
    if not sound:
        raise typer.Exit(1)


def _compared(settings: Settings, name: str, table: str) -> list[Comparison]:
    """The rows of one stage against its changelog, which is asked for first."""
    from stream.errors import StoreError
    from stream.local_rows import LocalRows, compare, partitions_on_disk
    from stream.topic_reader import bounds, read, reader
    from stream.topics import existing

    changelog = existing(settings, name)
    comparisons = []
    for folder in partitions_on_disk(settings, table):
        rows = LocalRows(folder)
        number = rows.partition
        if rows.changelog_id not in (None, changelog.topic_id):
            raise StoreError(
                f"{folder} belongs to another changelog than {changelog.name}: it was recreated, and the worker will "
                "wipe these rows when it starts."
            )
        with reader(settings.kafka.librdkafka()) as consumer:
            whole = bounds(consumer, changelog.name, changelog.partitions)[number]
            records = read(consumer, changelog.name, {number: whole})
            comparisons.append(
                compare(rows, ((each.key or b"", each.value, each.offset) for each in records))
            )
        rows.close()
    return comparisons


def reset(
    *,
    to: Annotated[Literal["earliest", "latest"], typer.Option(help="Where to begin in the input topic.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap_servers: BootstrapServers = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Forget all rows and begin anew: the changelog is recreated, the group's offsets are deleted."""
    from stream.settings import load_settings
    from stream.state_reset import reset as forget

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers, data_dir=data_dir)
    if not yes:
        question = f"Delete every row of every user in {settings.changelog_topic} and {settings.data_dir}?"
        typer.confirm(question, abort=True, err=True)
    positions = forget(settings, to)
    result = {"to": to, "changelog": settings.changelog_topic, "positions": positions}
    finish(result, f"All rows are gone; {len(positions)} partitions will open at the {to} offset.", as_json)


def worker_says(settings: Settings, path: str) -> Any:
    """A page of the running worker; None when none listens. A 404 is an object with ``error``."""
    from stream.errors import ConfigurationError

    if settings.http.port == 0:
        return None
    headers = {}
    if settings.http.token is not None:
        headers["Authorization"] = f"Bearer {settings.http.token.get_secret_value()}"
    host = f"[{settings.http.host}]" if ":" in settings.http.host else settings.http.host
    request = urllib.request.Request(f"http://{host}:{settings.http.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as answer:  # noqa: S310 - our own address
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise ConfigurationError(
                f"The worker on port {settings.http.port} wants its token. Set FORECLICK_HTTP__TOKEN_FILE."
            ) from None
        if error.code == 404:
            return json.load(error)
        raise
    except (OSError, ValueError):
        return None  # nobody listens, or it is no worker
