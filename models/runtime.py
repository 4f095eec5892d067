"""The stateful step engine: a micro-batch of events through the network.

A pure function of arrays; it knows no Kafka and keeps nothing between calls. See ``models.micro_batch`` for how a
micro-batch is computed and ``models.prepared`` for why its bits do not depend on its company.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.columns import WINDOW, Columns
from models.heads import GapMixture
from models.micro_batch import MicroBatch, StepResult
from models.prepared import PreparedNetwork
from models.registry import Artefact

__all__ = ["StepEngine"]

R = TypeVar("R")

# glibc's mallopt: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
_TRIM, _MMAP = -1, -3


def _keep_freed_memory() -> None:
    """Let malloc keep up to 256 MiB instead of returning them to the system after every micro-batch.

    A step's arrays are a few MiB each; fetching their pages anew cost a quarter of the step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only; elsewhere it is only slower
    if mallopt is not None:
        mallopt(_TRIM, 256 << 20)
        mallopt(_MMAP, 32 << 20)  # the most that glibc takes


class StepEngine:
    """Advances users' states by the events of a micro-batch and says what comes next.

    Call ``step`` one call at a time: it limits torch to one thread there. It holds the interpreter lock
    only between array operations.
    """

    def __init__(self, artefact: Artefact, device: str = "auto") -> None:
        """Prepare the network of an artefact.

        Args:
            artefact: of ``models.registry.load_artefact``.
            device: ``auto`` takes CUDA when there is one.
        """
        self.artefact = artefact
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.degraded = False
        _keep_freed_memory()
        self._use(device)

    def _use(self, device: str) -> None:
        torch.set_num_threads(1)
        self.device_name = device
        self.prepared = PreparedNetwork(self.artefact, device)

    def step(
        self, state: NDArray[np.float16], window_category: NDArray[np.uint32], columns: Columns
    ) -> StepResult:
        """Advance B users by the M events of a micro-batch.

        Args:
            state: (B, S), of each row before the batch; zeros for a new user. Left unchanged.
            window_category: (B, 32), category codes of each row's window before the batch.
            columns: as ``models.columns.LAYOUT``, M events; ``row`` indexes the B rows, ``wave`` is the event's
                rank within its row.

        Raises:
            NotFinite: a state became NaN or infinite.
        """
        return self._tried(lambda: MicroBatch(self.prepared, state, window_category, columns).run())

    def rebuild(self, rows: int, columns: Columns) -> NDArray[np.float16]:
        """The states (B, S) that the events of B rows' windows leave behind; bit for bit those of ``step``.

        Args:
            rows: B, all of them blank before.
            columns: as of ``step``.

        Raises:
            NotFinite: a state became NaN or infinite.
        """
        state = np.zeros((rows, self.artefact.state_width), np.float16)
        window = np.zeros((rows, WINDOW), np.uint32)
        return self._tried(lambda: MicroBatch(self.prepared, state, window, columns).advanced())

    def gaps(self, state: NDArray[np.float16]) -> GapMixture:
        """What states (B, S) say of the time to the next event: the ``gap_mixture`` of the steps that made them."""
        nothing = {"action": np.zeros(0, np.uint8)}
        window = np.zeros((len(state), WINDOW), np.uint32)
        return self._tried(lambda: MicroBatch(self.prepared, state, window, nothing).gaps())

    def _tried(self, step: Callable[[], R]) -> R:
        """Run a step; when the device fails, again on the CPU, and everything after it too."""
        try:
            return self._inferred(step)
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            if self.device_name == "cpu":
                raise
            self.degraded = True
            self._use("cpu")
            return self._inferred(step)

    def _inferred(self, step: Callable[[], R]) -> R:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return step()
