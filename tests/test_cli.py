"""The command line as a whole; what each command does is tested where its work is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stream.cli import Commands


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, on a wide terminal without colours."""
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-m", "stream.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | plain | environment,
        check=False,
    )


def test_version_is_the_distribution_s() -> None:
    """--version prints what is installed."""
    assert run("--version").stdout == f"foreclick {version('foreclick')}\n"


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that call it."""
    if not hasattr(command, "commands"):
        yield words, command
    for name in getattr(command, "commands", ()):
        yield from leaves(command.commands[name], (*words, name))


def test_every_command_shows_an_example_of_itself() -> None:
    """The help of each command ends with an example that begins with its own words, and says in a line what it does."""
    group = Commands()
    found = [
        leaf for name in group.list_commands(None) for leaf in leaves(group.get_command(None, name), (name,))
    ]
    assert len(found) > 10
    for words, command in found:
        assert (command.epilog or "").startswith(f"Example: foreclick {' '.join(words)}"), words
        assert command.help, words


def test_help_lists_the_commands() -> None:
    """--help has a line for each command, and the example of the first one to try."""
    shown = run("--help").stdout
    for name in Commands().list_commands(None):
        assert re.search(rf"^\W*{name}\s+\w", shown, re.MULTILINE), name
    assert "Example: foreclick demo" in shown


def test_heavy_libraries_are_not_loaded_before_a_command_runs() -> None:
    """Finding a command and reading its flags imports neither torch nor faust nor anything else that takes a second."""
    heavy = {
        "torch",
        "faust",
        "aiokafka",
        "polars",
        "sklearn",
        "lightgbm",
        "scipy",
        "matplotlib",
        "testcontainers",
        "docker",
    }
    code = "import sys; from stream.cli import Commands; c = Commands(); "
    code += "[c.get_command(None, name) for name in c.list_commands(None)]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()


def test_error_is_one_line_without_a_traceback() -> None:
    """What a user can mend is said in one line on standard error, with a non-zero exit code and no result."""
    done = run("broker", "status", FORECLICK_KAFKA__BOOTSTRAP_SERVER="localhost:9092")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"error: Unknown setting FORECLICK_KAFKA__BOOTSTRAP_SERVER .*\n", done.stderr)


def test_a_broker_that_is_not_there_to_stop_is_sought_in_a_named_folder(tmp_path: Path) -> None:
    """One that runs from another data directory stays up, and whoever wanted it stopped should know."""
    done = run("broker", "stop", "--data-dir", str(tmp_path))
    assert f"no broker was running in {tmp_path}; name another: --data-dir DIR" in done.stdout


def test_unknown_command_and_flag_are_usage_errors() -> None:
    """A misspelt command or flag is named, and the exit code is 2 as everywhere."""
    for arguments in (["brokr"], ["broker", "start", "--prot", "9092"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert arguments[-1] in done.stderr or "--prot" in done.stderr
