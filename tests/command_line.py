"""The command line inside the test's own process: arguments and environment in, exit code and both streams out."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

from stream.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object in the last line of standard output."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line of an error; anything more than one line fails the test."""
        lines = [line for line in self.err.splitlines() if line]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


def foreclick(*arguments: object, stdin: bytes = b"", **environment: object) -> Ran:
    """Run ``foreclick`` with the arguments; the environment holds no setting but those given, without their prefix."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORECLICK_")}
    given = {f"FORECLICK_{name}": str(value) for name, value in environment.items()}
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: Any = 0
    with (
        mock.patch.dict(os.environ, kept | given, clear=True),
        mock.patch.object(sys, "argv", ["foreclick", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    return Ran(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]
