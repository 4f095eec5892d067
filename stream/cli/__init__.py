"""The command line: one file a command, imported only when it is asked for.

A command's file has ``register(app: typer.Typer) -> None``, which adds the command, or a group of commands, under the
file's own name. Importing it must be cheap: torch, faust and the like are imported inside the functions.

Errors that a user can mend are one line on standard error and a non-zero exit code; only a defect of this program
shows a traceback.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from models.errors import ForeclickError

# In the order of --help: what a newcomer needs first.
COMMANDS: Final = (
    "demo",
    "worker",
    "broker",
    "topics",
    "simulate",
    "replay",
    "score",
    "rekey",
    "train",
    "evaluate",
    "evaluate-alerts",
    "evaluate-labels",
    "evaluate-churn",
    "models",
    "state",
    "alerts",
    "explain",
    "labels",
    "dlq",
    "doctor",
    "bench",
)


class Commands(TyperGroup):
    """Looks a command up by its file's name."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        """The commands of this build."""
        return [name for name in COMMANDS if importlib.util.find_spec(f"{__name__}.{_module(name)}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, imported now; None when there is no such one."""
        if cmd_name not in self.list_commands(ctx):
            return None
        part = typer.Typer()
        importlib.import_module(f"{__name__}.{_module(cmd_name)}").register(part)
        return typer.main.get_group(part).commands[cmd_name]


def _module(command: str) -> str:
    return command.replace("-", "_")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Example: foreclick demo. Each command has an example of its own: foreclick replay --help",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"foreclick {version('foreclick')}")
        raise typer.Exit


@app.callback()
def foreclick(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Clickstreams in, predictions out: a stateful model on Kafka, exactly once."""


def main() -> None:
    """Run the command of this process's arguments and exit with its code (130 after a Ctrl-C)."""
    try:
        app()
    except ForeclickError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
