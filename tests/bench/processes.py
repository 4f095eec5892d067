"""Child processes of a bench: the worker, the stock agent, the paced source. None of them outlives the bench."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from stream.demo import Worker
from stream.errors import ForeclickError
from stream.settings import Settings
from tests.bench.parent import end_with_parent
from tests.bench.sampler import SIGNAL

ROOT = Path(__file__).parents[2]
CPU_INTERVAL_S = 0.1


class BenchFailed(ForeclickError):
    """A figure cannot be reported, because what it would be measured on is not what it should be."""


def start(
    module: str,
    *arguments: str,
    log: Path,
    environment: dict[str, str] | None = None,
    python: str | Path = sys.executable,
) -> subprocess.Popen[bytes]:
    """Run a module of this checkout as a process of its own; what it says goes to the log."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [str(python), "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, before any other thread matters
        )


def stop(process: subprocess.Popen[bytes], timeout_s: float = 10.0) -> None:
    """SIGTERM, and after a while the end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def worker_environment(settings: Settings) -> dict[str, str]:
    """The variables that make a worker process run over these settings."""
    return os.environ | {
        "FORECLICK_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        **{
            f"FORECLICK_TOPICS__{field.upper()}": str(value)
            for field, value in settings.topics.model_dump().items()
        },
        **{
            f"FORECLICK_{part.upper()}__{field.upper()}": str(value)
            for part in ("groups", "labels", "churn")
            for field, value in getattr(settings, part).model_dump(exclude_defaults=True).items()
        },
        "FORECLICK_APP_ID": settings.app_id,
        "FORECLICK_DATA_DIR": str(settings.data_dir),
        "FORECLICK_HTTP__PORT": str(settings.http.port),
        "FORECLICK_MODEL": str(settings.model),
        "FORECLICK_LOG_FORMAT": "json",
    }


class BenchWorker(Worker):
    """One worker process over the given settings; variables of the environment that set others reach it too.

    Args:
        samples: file for a sampling profile (tests/bench/sampler.py), or None.
    """

    def __init__(self, settings: Settings, log: Path, samples: Path | None = None):
        self.port, self.log = settings.http.port, log
        self.samples = samples
        module = ["stream.cli"] if samples is None else ["tests.bench.sampler", str(samples)]
        self._process = start(*module, "worker", log=log, environment=worker_environment(settings))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def rss_mib(self) -> float:
        return psutil.Process(self.pid).memory_info().rss / 2**20

    def sample(self) -> None:
        """Begin to sample, or with the second call end and write the file."""
        if self.samples is not None:
            self._process.send_signal(SIGNAL)

    def threads_cpu_s(self) -> dict[int, float]:
        """CPU seconds of each thread; the main thread's id is the process's."""
        return {t.id: t.user_time + t.system_time for t in psutil.Process(self.pid).threads()}


class CpuWatch(threading.Thread):
    """CPU seconds of some processes over time, to be asked for any interval afterwards.

    Args:
        pids: by name; None is a process that is not on this machine.
    """

    def __init__(self, pids: dict[str, int | None]):
        super().__init__(daemon=True, name="cpu watch")
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items() if pid is not None}
        self._seen: list[tuple[float, dict[str, float]]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(CPU_INTERVAL_S):
            try:
                used = {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}
            except psutil.NoSuchProcess:
                return
            self._seen.append((time.time(), used))

    def end(self) -> None:
        self._ended.set()
        self.join(2)

    def used_s(self, since_s: float, until_s: float) -> dict[str, float]:
        """CPU seconds of each process between two moments of ``time.time``."""
        inside = [used for at, used in self._seen if since_s <= at <= until_s]
        moments = [at for at, _ in self._seen if since_s <= at <= until_s]
        if len(inside) < 2:
            return {}
        scale = (until_s - since_s) / (moments[-1] - moments[0])
        return {name: (inside[-1][name] - inside[0][name]) * scale for name in inside[0]}


def wait_until(what: str, reached: Any, check: Any, timeout_s: float, interval_s: float = 0.2) -> None:
    """Poll ``reached`` until it is true; ``check`` raises when waiting has become pointless."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        check()
        if time.monotonic() > deadline:
            raise BenchFailed(f"{what} was not reached within {timeout_s:.0f} s.")
        time.sleep(interval_s)
