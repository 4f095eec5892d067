"""``foreclick doctor``: what is wrong, and the command that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.options import BootstrapServers, DataDir, Json, Model, finish


def register(app: typer.Typer) -> None:
    """Add ``doctor``."""
    app.command(
        epilog="Example: foreclick doctor --bootstrap-servers localhost:9092",
        help="Say what is wrong with broker, topics, input, model and data directory.",
    )(doctor)


def doctor(
    *,
    bootstrap_servers: BootstrapServers = None,
    data_dir: DataDir = None,
    model: Model = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Leave out what is well.")] = False,
    as_json: Json = False,
) -> None:
    """Look at everything that a worker needs; exit 1 when something would stop it."""
    from stream.diagnosis import diagnose
    from stream.settings import load_settings
    from stream.topics import printable

    settings = load_settings(kafka__bootstrap_servers=bootstrap_servers, data_dir=data_dir, model=model)
    findings = []
    for finding in diagnose(settings):
        findings.append(finding)
        if not as_json and not (quiet and finding.level == "ok"):
            print(f"{finding.level:4} {finding.message}", flush=True)
    result = printable(findings)
    if as_json:
        finish(result, "", as_json)
    if result["level"] == "fail":
        raise typer.Exit(1)
