"""A child process that does not outlive its parent; alone in its file, as some children have few packages."""

from __future__ import annotations

import ctypes
import signal


def end_with_parent() -> None:
    """Let Linux send this process SIGTERM when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
