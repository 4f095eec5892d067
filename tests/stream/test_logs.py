"""What a traceback in the logs may show, and what the libraries may call an error."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

RAISES = """
import structlog
from stream.logs import configure_logs
configure_logs("{log_format}", "info")
def connect(password):
    raise ValueError("no")
try:
    connect("hunter" + "2")
except ValueError:
    structlog.get_logger("x").error("w", exc_info=True)
    import logging
    logging.getLogger("y").exception("z")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_shows_no_local_variables(log_format: str) -> None:
    """Among them are passwords, and logs go where passwords must not."""
    program = RAISES.format(log_format=log_format)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "ValueError" in ran.stderr
    assert "hunter2" not in ran.stderr


ASKS = """
import logging
from aiokafka import errors
from stream.logs import ASKED_AGAIN, configure_logs
configure_logs("json", "info")
logging.getLogger("aiokafka.consumer").error(ASKED_AGAIN, errors.{error}())
"""


@pytest.mark.parametrize(
    ("error", "level"),
    [("GroupCoordinatorNotAvailableError", "info"), ("GroupAuthorizationFailedError", "error")],
)
def test_what_a_library_asks_again_is_no_error(error: str, level: str) -> None:
    """A broker that is starting has no coordinator yet; a refusal stays an error."""
    ran = subprocess.run(
        [sys.executable, "-c", ASKS.format(error=error)], capture_output=True, text=True, check=True
    )
    (line,) = ran.stderr.splitlines()
    assert json.loads(line)["level"] == level
    assert "Group Coordinator Request failed" in json.loads(line)["event"]
