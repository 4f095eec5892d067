"""What is done to a running round: each fault of a plan, on workers, disks, connections, topics, clocks and broker."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Protocol

from tests.chaos import disk
from tests.chaos.fleet import Fleet, Worker
from tests.chaos.plan import Fault
from tests.chaos.proxy import ADD_PARTITIONS, COMMIT_OFFSETS, END_TRANSACTION, PRODUCE
from tests.chaos.traps import STOP_INSIDE

NAMES = "ABCDEFGH"
TAKEOVER_S = 40.0  # a partition that has no next owner by then is counted as taken over so late
FULL_S = 12.0  # a worker that has not written to a full disk by then has not noticed it
POISON_RECORDS = 150


class RunningBroker(Protocol):
    """What a round asks of the broker; ``stream.broker.Broker`` is one."""

    bootstrap_servers: str

    def kill(self) -> None: ...

    def restart(self) -> None: ...


class Traffic(Protocol):
    """What a round asks of whoever sends its events."""

    def poison(self, count: int) -> None: ...


class Faults:
    """The faults of one round.

    Args:
        swap: has the workers serve another model; (number drawn from the plan) -> None.

    Attributes:
        failovers_s: from a kill -9 to the first commit by the next owner of each partition, where nothing else
            happened in between.
        disturbed: partitions of killed workers whose next owner was ended as well.
        unclear: workers that ended on a full disk otherwise than in one clear line.
    """

    def __init__(
        self,
        fleet: Fleet,
        broker: RunningBroker,
        driver: Traffic,
        swap: Callable[[int], None] = lambda number: None,
    ):
        self._fleet, self._broker, self._driver, self._to_model = fleet, broker, driver, swap
        self._fresh = [name for name in NAMES if name not in fleet.workers]
        self._chance = random.Random()
        self.failovers_s: list[float] = []
        self.disturbed = 0
        self.unclear: list[str] = []
        self._by_kind: dict[str, Callable[[], bool]] = {
            "kill": lambda: self._down(graceful=False) is not None,
            "failover": self._failover,
            "term": self._term,
            "stop": self._stop,
            "stop inside": self._stop_inside,
            "join": self._join,
            "leave": self._leave,
            "wipe": self._wipe,
            "old": self._old,
            "ahead": self._ahead,
            "aged": self._aged,
            "damaged": self._damaged,
            "full disk": self._full_disk,
            "cut": self._cut,
            "slow": self._slow,
            "silence": self._silence,
            "lost answer": self._lost_answer,
            "compaction": self._compaction,
            "clock": self._clock,
            "poison": self._poison,
            "swap": self._swap,
            "power cut": self._power_cut,
            "broker": self._kill_broker,
            "broker and workers": self._kill_everything,
        }

    def cause(self, fault: Fault) -> bool:
        """Do it; False when it cannot happen just now."""
        self._chance = random.Random(fault.seed)
        return self._by_kind[fault.kind]()

    # ------------------------------------------------------------------ workers

    def _open(self) -> list[str]:
        workers = self._fleet.workers
        return sorted(name for name, worker in workers.items() if worker.open and not worker.stopped)

    def _name(self) -> str | None:
        """A worker, three times in four one that has opened partitions: a fault while starting tries less."""
        choice, among_all = self._chance.random(), self._chance.random() < 0.25
        names = (not among_all and self._open()) or sorted(self._fleet.workers)
        return names[int(choice * len(names))] if names else None

    def _open_name(self) -> str | None:
        names = self._open()
        return names[int(self._chance.random() * len(names))] if names else None

    def _down(self, graceful: bool) -> str | None:
        """Take a worker down and leave it to ``tend`` to start it again."""
        name = self._name()
        if name is not None:
            worker = self._fleet.workers[name]
            if graceful:
                worker.terminate()
            else:
                worker.kill()
        return name

    def _failover(self) -> bool:
        """Kill a worker and do nothing else until all of its partitions have committed elsewhere."""
        name = self._open_name()
        if name is None:
            return False
        victim = self._fleet.workers[name]
        group = (
            self._fleet.round.app_id
        )  # of the clicks; other stages of the product have groups of their own
        assigned = victim.said("partitions assigned", group=group)
        if not assigned:
            return False
        waiting = set(assigned[-1]["partitions"])
        exits, began_s = sum(self._fleet.exits.values()), time.time()
        victim.kill()
        taken: dict[int, float] = {}

        def over() -> bool:
            for worker in self._fleet.logs.values():
                for line in worker.said("first commit", earlier_lives=True, group=group):
                    if line["at_s"] > began_s and line["partition"] in waiting:
                        waiting.discard(line["partition"])
                        taken[line["partition"]] = line["at_s"] - began_s
            return not waiting

        self._fleet.tend_for(TAKEOVER_S, until=over)
        if sum(self._fleet.exits.values()) > exits + 1:  # more than the victim: an injected exit fell into it
            self.disturbed += len(taken) + len(waiting)
        else:
            self.failovers_s += [*taken.values(), *(TAKEOVER_S for _ in waiting)]
        return True

    def _term(self) -> bool:
        name = self._name()
        if name is None:
            return False
        self._fleet.workers[name].tell_to_stop()
        return True

    def _stop(self) -> bool:
        name = self._name()
        if name is None or self._fleet.workers[name].stopped:
            return False
        self._fleet.workers[name].signal(signal.SIGSTOP)  # tend wakes it after its session has timed out
        return True

    def _stop_inside(self) -> bool:
        """Have a worker stop itself in its next open transaction; tend wakes it as well."""
        name = self._open_name()
        if name is None:
            return False
        self._fleet.workers[name].signal(STOP_INSIDE)
        return True

    def _join(self) -> bool:
        if not self._fresh or len(self._fleet.workers) >= 3:
            return False
        self._fleet.start(self._fresh.pop(0))
        return True

    def _leave(self) -> bool:
        name = self._name()
        if name is None or len(self._fleet.workers) < 2:
            return False
        worker = self._fleet.workers.pop(name)
        worker.tell_to_stop()
        self._fleet.leaving.append(worker)
        return True

    def _power_cut(self) -> bool:
        self._fleet.kill()
        return True

    # ------------------------------------------------------------------ data directories and disks

    def _wipe(self) -> bool:
        name = self._down(graceful=False)
        if name is not None:
            self._fleet.wipe(name)
        return name is not None

    def _old(self) -> bool:
        name = self._down(graceful=True)
        if name is None:
            return False
        if self._fleet.has_copy(name):
            self._fleet.put_back(name)
        else:
            self._fleet.copy(name)  # to be put back when this name is drawn again
        return True

    def _ahead(self) -> bool:
        name = self._down(graceful=True)
        return name is not None and self._fleet.run_ahead(name) > 0

    def _aged(self) -> bool:
        name = self._down(graceful=True)
        return name is not None and disk.age(self._fleet.folder / name, self._chance.randint(2, 400)) > 0

    def _damaged(self) -> bool:
        name = self._down(graceful=self._chance.random() < 0.5)
        return name is not None and disk.damage(self._fleet.folder / name, self._chance) is not None

    def _full_disk(self) -> bool:
        """No space until the worker has ended, which it must do in one clear line."""
        name = self._open_name()
        if name is None or name not in self._fleet.disks:
            return False
        worker, full = self._fleet.workers[name], self._fleet.disks[name]
        self._fleet.held.add(name)
        full.fill()
        try:
            self._fleet.tend_for(FULL_S, until=lambda: not worker.running)
        finally:
            full.free()
            self._fleet.held.discard(name)
        if worker.running:
            return False  # it had nothing to write
        if worker.process.returncode == 0:
            return False  # it was told to stop before, and had room enough for that
        said = last_words(worker)
        if not (said.startswith(("StoreError:", "injected exit")) or "taken over" in said):
            self.unclear.append(f"full disk: {name} ended with {worker.process.returncode}: {said[:300]}")
        return True

    # ------------------------------------------------------------------ connections

    def _cut(self) -> bool:
        name = self._name()
        if name is None or name not in self._fleet.proxies:
            return False
        # Now and then for longer than a session: the worker is alive and no longer a member.
        longest_s = 1.5 * self._fleet.session_timeout_s
        self._fleet.proxies[name].cut(self._chance.choice((0.0, 0.5, self._chance.uniform(0, longest_s))))
        return True

    def _slow(self) -> bool:
        name = self._name()
        if name is None or name not in self._fleet.proxies:
            return False
        self._fleet.proxies[name].slow(self._chance.uniform(0.01, 0.4), self._chance.uniform(1, 6))
        return True

    def _silence(self) -> bool:
        """Nothing passes for longer than a session; then what was on its way arrives after all."""
        name = self._open_name()
        if name is None or name not in self._fleet.proxies:
            return False
        self._fleet.proxies[name].hush(self._fleet.session_timeout_s * self._chance.uniform(0.3, 1.6))
        return True

    def _lost_answer(self) -> bool:
        """The broker does what it is asked, and the worker never hears of it."""
        name = self._open_name()
        if name is None or name not in self._fleet.proxies:
            return False
        kinds = (END_TRANSACTION, END_TRANSACTION, PRODUCE, COMMIT_OFFSETS, ADD_PARTITIONS)
        self._fleet.proxies[name].swallow(self._chance.choice(kinds))
        return True

    # ------------------------------------------------------------------ topics, clocks, input

    def _compaction(self) -> bool:
        self._fleet.round.compact(self._chance.uniform(1, 3), self._fleet.tend_for)
        return True

    def _clock(self) -> bool:
        name = self._name()
        if name is None:
            return False
        hours = self._chance.choice((-24 * 40, -30, -1, 1, 30, 24 * 40, 0))
        self._fleet.clock(name).write_text(str(hours * 3_600_000 + self._chance.randint(-999, 999)))
        return True

    def _poison(self) -> bool:
        self._driver.poison(POISON_RECORDS)
        return True

    def _swap(self) -> bool:
        self._to_model(self._chance.getrandbits(16))
        return True

    # ------------------------------------------------------------------ the broker

    def _kill_broker(self) -> bool:
        self._broker.kill()
        self._fleet.tend_for(self._chance.uniform(0.5, 2.0))
        self._broker.restart()
        return True

    def _kill_everything(self) -> bool:
        self._broker.kill()
        self._fleet.kill()
        time.sleep(self._chance.uniform(0.2, 1.0))
        self._broker.restart()
        return True


def last_words(worker: Worker) -> str:
    """What a worker that has ended said of it: the class of the error and the message, or the last line at all."""
    ended = worker.said("process ended")
    if ended:
        return f"{ended[-1]['error']}: {ended[-1]['message']}"
    if worker.said("injected exit"):
        return "injected exit"
    return worker.log.read_text(errors="replace")[-300:]
