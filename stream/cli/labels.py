"""``foreclick labels``: what somebody found out, written to the topic that the pipeline joins with its alerts."""

from __future__ import annotations

import json
import time
from typing import Annotated, Literal

import typer

from stream.cli.options import BootstrapServers, Json, finish, progress


def register(app: typer.Typer) -> None:
    """Add ``labels put``, ``labels import`` and ``labels audit``."""
    labels = typer.Typer(
        no_args_is_help=True, help="Labels: say what became of an order, a user or an event."
    )
    labels.command(epilog="Example: foreclick labels put order o17 fraud --user u17 --by mary")(put)
    labels.command("import", epilog="Example: foreclick labels import chargebacks.jsonl")(import_labels)
    labels.command(epilog="Example: foreclick labels audit --limit 10")(audit)
    app.add_typer(labels, name="labels")


def put(
    subject: Annotated[Literal["order", "user", "event"], typer.Argument(help="What the label is about.")],
    id: Annotated[str, typer.Argument(help="Of the order, user or event.")],  # noqa: A002 - the field's name
    label: Annotated[
        Literal["fraud", "genuine", "churned", "stayed"], typer.Argument(help="The last two are for users.")
    ],
    *,
    by: Annotated[str, typer.Option("--by", help="Who says so: a person or a system.")],
    user: Annotated[
        str | None, typer.Option("--user", help="Whose order or event it is; a user's label has it in ID.")
    ] = None,
    time_ms: Annotated[
        int | None,
        typer.Option("--time-ms", help="When it was found out, now by default; the newest counts."),
    ] = None,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Write one label."""
    from stream.errors import ConfigurationError
    from stream.label_writing import LabelLine, write_labels
    from stream.settings import load_settings
    from stream.wording import cut

    if user is None and subject != "user":
        raise ConfigurationError(f"Whose {subject} is it? Name the user: --user ID")
    owner = id if user is None else user
    made: dict[str, object] = {
        "subject": subject,
        "id": id,
        "user_id": owner,
        "label": label,
        "time_ms": int(time.time() * 1000) if time_ms is None else time_ms,
        "by": by,
    }
    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    line = LabelLine.checked("the label", json.dumps(made, ensure_ascii=False).encode())
    write_labels(settings, [line])
    whose = "" if subject == "user" else f" of user {cut(owner, 80)}"
    text = f"{subject} {cut(id, 80)}{whose} is {label}: written to {settings.labels_topic}"
    finish({"written": 1, "topic": settings.labels_topic, "label": made}, text, as_json)


def import_labels(
    file: Annotated[str, typer.Argument(help="A label a line, as JSON, plain or .gz; - is standard input.")],
    *,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Write the labels of a file, all or none: a line that is no label is an error before the first is sent."""
    from stream.label_writing import labels_in, write_labels
    from stream.settings import load_settings

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    lines = labels_in(file)
    with progress("labels written", len(lines)) as advance:
        write_labels(settings, lines, advance)
    text = f"{len(lines)} labels written to {settings.labels_topic}"
    finish({"written": len(lines), "topic": settings.labels_topic}, text, as_json)


def audit(
    *,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Show at most so many.")] = 20,
    bootstrap_servers: BootstrapServers = None,
    as_json: Json = False,
) -> None:
    """Show the orders and users of the audit sample that have no label yet: recall is known from theirs alone.

    With --json each of them is a line of JSON, and the last line counts them.
    """
    from stream.audit_sample import unlabelled
    from stream.settings import load_settings
    from stream.wording import cut

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    with progress("rows read", None) as advance:
        found = unlabelled(settings, advance)
    for each in found[:limit]:
        if as_json:
            print(json.dumps(each._asdict(), ensure_ascii=False))
        else:
            whose = "" if each.subject_type == "user" else f"  of user {cut(each.user_id, 80)}"
            print(f"{each.subject_type:5}  {cut(each.subject, 80)}{whose}")
    text = f"{len(found)} of the audit sample have no label"
    if found:
        text += (
            ". Look at them: foreclick explain USER; then say: foreclick labels put order|user ID fraud|genuine "
            "--user USER --by YOU"
        )
    finish({"unlabelled": len(found)}, text, as_json)
