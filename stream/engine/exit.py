"""Ending the process: the answer to every broken invariant and every failed write.

Not an exception that travels through shutdown code: code of others that runs on the way out might commit, flush or
swallow something. One flushed line, then the end; the supervisor starts a new process, the open transaction is aborted.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import NoReturn

from models.errors import ForeclickError


def end_process(where: str, error: BaseException) -> NoReturn:
    """Say in one line what ended the process, and end it (exit code 70, or the error's own)."""
    line = {
        "level": "critical",
        "event": "process ended",
        "where": where,
        "error": type(error).__name__,
        "message": str(error) or repr(error),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if not isinstance(error, ForeclickError):
        # Not one of ours: the place in the code is all that a maintainer will have.
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        line["at"] = " < ".join(
            f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in reversed(frames)
        )
    text = f"error: {line['message']}\n" if sys.stderr.isatty() else json.dumps(line) + "\n"
    os.write(2, text.encode())
    os._exit(getattr(error, "exit_code", 70))
