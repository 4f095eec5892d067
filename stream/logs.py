"""Structured logs: text on a terminal, JSON elsewhere; nothing on the hot path writes more than a line a second."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import structlog

QUIET_S = 10.0


# What aiokafka calls an error and asks again by itself, as it must while a broker is starting.
ASKED_AGAIN = "Group Coordinator Request failed: %s"


class OnceInAWhile(logging.Filter):
    """Lets a library say the same thing once in ten seconds: a broker that starts is asked twenty times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said_s: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now_s, what = time.monotonic(), (record.name, str(record.msg))
        if now_s - self._said_s.get(what, -QUIET_S) < QUIET_S:
            return False
        self._said_s[what] = now_s
        return True


def mended_by_itself(record: logging.LogRecord) -> bool:
    """Tell as information what a library calls an error and asks again; everything passes."""
    if record.msg == ASKED_AGAIN and isinstance(record.args, tuple):
        (error,) = record.args
        if getattr(error, "retriable", False):
            record.levelno, record.levelname = logging.INFO, "INFO"
    return True


def configure_logs(log_format: str = "auto", level: str = "info") -> None:
    """Send every line to stderr, ours and the libraries' (theirs from warnings up)."""
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    threshold = getattr(logging, level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    # Plain tracebacks: the default ones show the local variables, and with them passwords.
    renderer = console if text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    handler.addFilter(OnceInAWhile())
    handler.addFilter(mended_by_itself)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
