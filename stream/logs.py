"""Structured logs: text on a terminal, JSON elsewhere; nothing on the hot path writes more than a line a second."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs(log_format: str = "auto", level: str = "info") -> None:
    """Send every line to stderr, ours and the libraries' (theirs from warnings up)."""
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    threshold = getattr(logging, level.upper())
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
