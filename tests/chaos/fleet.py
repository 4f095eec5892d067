"""Worker processes of one round: started, killed, paused and restarted as a supervisor would."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.cluster import Round
from tests.chaos.disk import Disk, run_ahead
from tests.chaos.proxy import Proxy

REPOSITORY = Path(__file__).parents[2]
SESSION_TIMEOUT_S = 4.0
TERM_TIMEOUT_S = 12.0
LOOK_S = 0.05


class Worker:
    """One process and its log; restarted under the same name it keeps its data directory."""

    opens = "opened"  # what it says of a partition that it begins to process

    def __init__(
        self,
        name: str,
        round_: Round,
        folder: Path,
        session_timeout_s: float,
        switches: list[str],
        bootstrap: str | None = None,
    ):
        self.name = name
        self.data_dir = folder / name
        self.log = folder / f"{name}.log"
        self._told = False
        self._began = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(round_, bootstrap or round_.bootstrap, int(session_timeout_s * 1000), switches),
                cwd=REPOSITORY,
                env=self.environment(round_, bootstrap or round_.bootstrap, int(session_timeout_s * 1000)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def command(
        self, round_: Round, bootstrap: str, session_timeout_ms: int, switches: list[str]
    ) -> list[str]:
        """What is run."""
        return [
            *(sys.executable, "-m", "tests.chaos.worker", "--name", self.name),
            *("--bootstrap", bootstrap, "--app-id", round_.app_id, "--prefix", round_.prefix),
            *("--data-dir", str(self.data_dir), "--session-timeout-ms", str(session_timeout_ms)),
            *switches,
        ]

    def environment(self, round_: Round, bootstrap: str, session_timeout_ms: int) -> dict[str, str] | None:
        """The variables it sees; None for our own."""
        return None

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether it sleeps under SIGSTOP."""
        try:
            status = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return status.rsplit(")", 1)[1].split()[0] == "T"

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def tell_to_stop(self) -> None:
        """SIGTERM, once: a second one may meet an interpreter that has taken its handlers down already."""
        self.signal(signal.SIGCONT)
        if not self._told:
            self._told = True
            self.signal(signal.SIGTERM)

    def terminate(self, timeout_s: float = TERM_TIMEOUT_S) -> bool:
        """SIGTERM and wait; whether it ended by itself in time."""
        self.tell_to_stop()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def lines(self, earlier_lives: bool = False) -> list[dict[str, Any]]:
        """What it logged as JSON."""
        text = self.log.read_bytes()[0 if earlier_lives else self._began :].decode(errors="replace")
        found = []
        for line in text.splitlines():
            _, brace, rest = line.partition("{")  # Faust writes terminal codes before some
            try:
                found.append(json.loads(brace + rest))
            except ValueError:
                continue  # not ours, or cut off by a kill
        return found

    @property
    def open(self) -> bool:
        """Whether this life has opened a partition."""
        return self.running and bool(self.said(self.opens))

    def said(self, event: str, earlier_lives: bool = False, **values: Any) -> list[dict[str, Any]]:
        """Its lines of one kind."""
        return [
            line
            for line in self.lines(earlier_lives)
            if isinstance(line, dict)
            and line.get("event") == event
            and all(line.get(name) == value for name, value in values.items())
        ]

    def await_line(
        self, event: str, count: int = 1, timeout_s: float = 90, **values: Any
    ) -> list[dict[str, Any]]:
        """Wait until it has said something so many times.

        Raises:
            TimeoutError: it did not, with the end of its log.
        """
        # Looks are counted, not seconds: a machine that stands still for a minute stands still for all of us.
        for _ in range(int(timeout_s / LOOK_S)):
            if len(found := self.said(event, **values)) >= count:
                return found
            time.sleep(LOOK_S)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise TimeoutError(f"{self.name} did not say {event!r} {values} {count} times; its log ends: {tail}")


class Fleet:
    """The workers of one round.

    Args:
        folder: holds a data directory and a log for each name.
        switches: of every worker started; read at each start, so a round may change them.
        proxied: every worker reaches the broker through a proxy of its own.
        disks: every worker has a small disk of its own, where one can be mounted.
        seed: of the exits that workers inject; each life has another one.
    """

    worker_class: type[Worker] = Worker

    def __init__(
        self,
        round_: Round,
        folder: Path,
        switches: Sequence[str] = (),
        session_timeout_s: float = SESSION_TIMEOUT_S,
        proxied: bool = False,
        disks: bool = False,
        seed: int | None = None,
    ):
        self.round, self.folder = round_, folder
        self.proxied, self.with_disks, self.seed = proxied, disks, seed
        self.proxies: dict[str, Proxy] = {}
        self.disks: dict[str, Disk] = {}
        self.held: set[str] = set()  # names that tend leaves alone: a fault is still at work on them
        self.started = 0
        self.session_timeout_s = session_timeout_s
        self.switches = list(switches)
        self.workers: dict[str, Worker] = {}
        self.logs: dict[str, Worker] = {}  # the latest life of every name, gone ones too
        self.leaving: list[Worker] = []
        self.exits: Counter[str] = Counter()
        self.slow = 0
        self._wake_s: dict[int, float] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *switches: str) -> Worker:
        if self.proxied and name not in self.proxies:
            self.proxies[name] = Proxy(self.round.bootstrap).start()
        if self.with_disks and name not in self.disks:
            self.disks[name] = Disk(self.folder / name)
        self.started += 1
        every = ["--clock", str(self.clock(name)), *self.switches]
        if self.seed is not None:
            every += ["--seed", str(self.seed * 1000 + self.started)]
        bootstrap = self.proxies[name].address if self.proxied else None
        worker = self.worker_class(
            name, self.round, self.folder, self.session_timeout_s, [*every, *switches], bootstrap
        )
        self.workers[name] = self.logs[name] = worker
        return worker

    def clock(self, name: str) -> Path:
        """The file that says how far, in ms, the clock of this worker is ahead."""
        return self.folder / f"{name}.clock"

    @property
    def data_dirs(self) -> list[Path]:
        return [worker.data_dir for worker in self.logs.values()]

    def tend(self, restart: bool = True) -> None:
        """One look: start again who has ended, wake who stopped itself past its session."""
        for name, worker in list(self.workers.items()):
            pid = worker.process.pid
            if worker.stopped:
                wake_s = self._wake_s.setdefault(pid, time.monotonic() + self.session_timeout_s * 1.4)
                if time.monotonic() > wake_s:
                    worker.signal(signal.SIGCONT)
                    del self._wake_s[pid]
            elif not worker.running:
                if name in self.held:
                    continue
                self.exits[str(worker.process.returncode)] += 1
                del self.workers[name]
                if restart:
                    self.start(name)
        for worker in list(self.leaving):
            if not worker.running:
                self.leaving.remove(worker)

    def any_open(self) -> bool:
        """Whether some worker processes a partition, or did so before it was stopped."""
        return any(worker.open for worker in self.workers.values())

    def all_open(self) -> bool:
        """Whether every worker has opened a partition."""
        return all(worker.open for worker in self.workers.values())

    def tend_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Tend until the time is over or something is true; whether it became true."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            self.tend()
            if until():
                return True
            time.sleep(0.05)
        return until()

    def catch_up(self, timeout_s: float = 120) -> bool:
        """Tend until everything in the source is committed."""
        for _ in range(int(timeout_s / 0.2)):
            if self.round.caught_up():
                return True
            self.tend_for(0.2)
        return self.round.caught_up()

    def stop(self) -> None:
        """SIGTERM to all at once; whoever does not end in time is killed and counted."""
        workers = [*self.workers.values(), *self.leaving]
        for worker in workers:
            worker.tell_to_stop()
        for worker in workers:
            self.slow += not worker.terminate()
            self.exits[str(worker.process.returncode)] += worker.process.returncode != 0
        self.workers.clear()
        self.leaving.clear()

    def kill(self) -> None:
        """SIGKILL to all: a power cut, or the end of a failed test."""
        for worker in [*self.workers.values(), *self.leaving]:
            worker.kill()
        self.leaving.clear()

    def end(self, keep: bool = False) -> None:
        """No process, proxy or disk stays behind; ``keep`` the files of the disks."""
        self.kill()
        for proxy in self.proxies.values():
            proxy.stop()
        for disk in self.disks.values():
            disk.unmount(keep)
        self.proxies.clear()
        self.disks.clear()

    # ------------------------------------------------------------------ data directories of workers that are down

    def wipe(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def copy(self, name: str) -> None:
        """Keep a copy to put back later."""
        self._replace(self.folder / name, self.folder / f"{name}.old")

    def has_copy(self, name: str) -> bool:
        return (self.folder / f"{name}.old").exists()

    def put_back(self, name: str) -> None:
        """The data directory is as it was when the copy was taken."""
        self._replace(self.folder / f"{name}.old", self.folder / name)

    def _replace(self, source: Path, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        if source.exists():
            shutil.copytree(source, target, dirs_exist_ok=True)

    def run_ahead(self, name: str) -> int:
        """Falsify its stores; see ``disk.run_ahead``."""
        return run_ahead(self.folder / name)

    # ------------------------------------------------------------------ what they said

    def count(self, event: str) -> int:
        """How often any of them said it, over all their lives."""
        return sum(len(worker.said(event, earlier_lives=True)) for worker in self.logs.values())

    def last_words(self) -> Counter[str]:
        """The fatal lines, numbers blotted out, with how often each was said."""
        said: Counter[str] = Counter()
        for worker in self.logs.values():
            for line in worker.said("process ended", earlier_lives=True):
                text = f"{line.get('where')}: {line.get('error')}: {line.get('message')} {line.get('at', '')}"
                said[re.sub(r"\d+", "#", text)[:240]] += 1
        return said
