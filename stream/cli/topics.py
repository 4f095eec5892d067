"""``foreclick topics``: the topics that the pipeline needs."""

from __future__ import annotations

import typer

from stream.cli.options import BootstrapServers, Json, finish


def register(app: typer.Typer) -> None:
    """Add ``topics create`` and ``topics check``."""
    topics = typer.Typer(
        no_args_is_help=True, help="Create the topics, or say how they differ from what is needed."
    )
    topics.command(epilog="Example: foreclick topics create --bootstrap-servers localhost:9092")(create)
    topics.command(epilog="Example: foreclick topics check --json")(check)
    app.add_typer(topics, name="topics")


def create(bootstrap_servers: BootstrapServers = None, as_json: Json = False) -> None:
    """Create the topics that are missing; a second call does nothing."""
    from stream.settings import load_settings
    from stream.topics import create as create_missing
    from stream.topics import topic_specs

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers)
    created = create_missing(settings)
    names = [spec.name for spec in topic_specs(settings)]
    text = "\n".join(f"{name} {'created' if name in created else 'exists'}" for name in names)
    finish({"created": created, "existed": [name for name in names if name not in created]}, text, as_json)


def check(bootstrap_servers: BootstrapServers = None, as_json: Json = False) -> None:
    """Say each difference with the command that mends it; exit 1 when one of them would stop the pipeline."""
    from stream.settings import load_settings
    from stream.topics import check as check_all
    from stream.topics import printable

    findings = check_all(load_settings(kafka__bootstrap_servers=bootstrap_servers))
    result = printable(findings)
    finish(result, "\n".join(f"{finding.level:4} {finding.message}" for finding in findings), as_json)
    if result["level"] == "fail":
        raise typer.Exit(1)
