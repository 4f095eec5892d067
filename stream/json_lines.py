"""Lines of a file, plain or .gz, one at a time: what a command wrote may be larger than the memory."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stream.errors import InputFileError

__all__ = ["lines_of"]


def lines_of(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line that is not blank; ``-`` is standard input.

    Raises:
        InputFileError: missing, unreadable, or damaged.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        raw: Any = sys.stdin.buffer if str(path) == "-" else io.FileIO(path)
        with io.BufferedReader(raw) as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            for number, line in enumerate(gzip.GzipFile(fileobj=file) if packed else file, 1):
                if line := line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputFileError(
            f"{name} is a truncated or damaged .gz: {error}. Make it again, then check it: gzip -t {name}"
        ) from None
    except OSError as error:
        raise InputFileError(
            f"{name} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from None
