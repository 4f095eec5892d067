"""What a traceback in the logs may show."""

from __future__ import annotations

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
