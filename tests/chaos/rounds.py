"""Rounds: steady traffic, the faults of a plan, then everything is compared. One line a round.

A round is clean when the oracle finds nothing, and whoever ended on a full disk said so. One exception, which is
reported: a repeated output with the same ``ce_id`` in a round whose broker was killed and whose worker counted
foreclick_position_mismatch_total. A single broker can lose a transaction marker when it is killed; state stays exact
then, outputs may repeat.
"""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.chaos.cluster import Round
from tests.chaos.driver import Driver
from tests.chaos.faults import NAMES, Faults, RunningBroker
from tests.chaos.fleet import Fleet
from tests.chaos.oracle import Input, judge
from tests.chaos.plan import BROKER_FAULTS, PRODUCT_FAULTS, WORKER_FAULTS, Plan, draw, quantile
from tests.chaos.planted_product import PLANTED as PRODUCT_PLANTED
from tests.chaos.product import Product, ProductFleet
from tests.chaos.traffic import Clicks
from tests.chaos.verdict import Verdict

OPENING_S = 20.0


@dataclass(frozen=True)
class Shape:
    """What a round is like.

    Args:
        faults: of each round.
        rate: events a second, while the faults last.
        pause_s: between two faults, drawn evenly from the two.
        exit_probability: of an injected exit at each step of each micro-batch; ten times that while opening.
        write_buffer_bytes: of each store: rows reach the disk within a round, in many files.
        broker_share: of rounds in which the broker is killed, ``broker_kills`` times.
        only: these kinds of faults; all when empty.
        product_share: of rounds of the product itself; the others have a stage that an oracle of its own can judge.
    """

    faults: int = 8
    rate: float = 1000
    users: int = 500
    partitions: int = 8
    session_timeout_s: float = 6.0
    pause_s: tuple[float, float] = (0.4, 1.6)
    exit_probability: float = 0.0002
    write_buffer_bytes: int = 64 << 10
    broker_share: float = 1 / 3
    broker_kills: int = 1
    only: Sequence[str] = ()
    product_share: float = 0.2  # not more: each of its workers loads torch
    planted: str | None = None

    def plan(self, seed: int) -> Plan:
        """What happens in the round of this seed."""
        return draw(
            seed,
            self.faults,
            self.pause_s,
            kinds=self._asked(WORKER_FAULTS),
            broker_share=self.broker_share,
            broker_kills=self.broker_kills,
            product_share=float(self.planted in PRODUCT_PLANTED) if self.planted else self.product_share,
            product_kinds=self._asked(PRODUCT_FAULTS),
        )

    def _asked(self, kinds: Mapping[str, int]) -> dict[str, int]:
        return {kind: weight for kind, weight in kinds.items() if not self.only or kind in self.only}

    def switches(self, faulty: bool) -> list[str]:
        """Of every worker, while the faults last or after them."""
        switches = ["--write-buffer-bytes", str(self.write_buffer_bytes)]
        if self.planted:
            switches += ["--planted", self.planted]
        if faulty and self.exit_probability:
            switches += ["--exit-at", "any", "--exit-probability", str(self.exit_probability)]
        return switches


@dataclass
class Outcome:
    """What became of a round."""

    seed: int
    workers: int
    product: bool = False
    faults: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)  # could not happen when their moment came
    exits: Counter[str] = field(default_factory=Counter)
    verdict: Verdict | None = None
    caught_up_s: float | None = None
    failovers_s: list[float] = field(default_factory=list)
    disturbed: int = 0
    mismatches: int = 0
    stops_inside: int = 0
    injected_exits: int = 0
    slow_exits: int = 0
    last_words: Counter[str] = field(default_factory=Counter)
    failure: str | None = None
    kept: Path | None = None
    seconds: float = 0.0

    @property
    def broker_killed(self) -> bool:
        return any(fault in BROKER_FAULTS for fault in self.faults)

    @property
    def clean(self) -> bool:
        if self.failure or self.verdict is None or not self.verdict.exact():
            return False
        return self.verdict.repeats == 0 or (self.broker_killed and self.mismatches > 0)

    def kinds(self) -> Counter[str]:
        """Faults by kind, with the exits that workers injected themselves."""
        return Counter(self.faults) + Counter({"exit at a step": self.injected_exits})

    def __str__(self) -> str:
        waited = "never" if self.caught_up_s is None else f"{self.caught_up_s:.1f}s"
        parts = [
            f"seed={self.seed}",
            "CLEAN" if self.clean else "NOT CLEAN",
            f"{self.seconds:.0f}s",
            f"workers={self.workers}" + " of the product" * self.product,
            f"faults={','.join(self.faults)}",
            f"missed={','.join(self.missed)}",
            f"injected_exits={self.injected_exits}",
            f"exits={dict(self.exits)}",
            f"slow={self.slow_exits}",
            f"stopped_in_transaction={self.stops_inside}",
            f"mismatch_total={self.mismatches}",
            f"failovers_s={[round(seconds, 1) for seconds in sorted(self.failovers_s)]}",
            f"caught_up={waited}",
            str(self.verdict),
        ]
        if self.failure:
            parts.append(f"failure: {self.failure}")
        if self.last_words:
            said = (f"{count}x {text}" for text, count in self.last_words.most_common(8))
            parts.append(f"said: {'; '.join(said)}")
        if self.kept:
            parts.append(f"logs: {self.kept}")
        return " ".join(parts)


def run_round(broker: RunningBroker, seed: int, shape: Shape, folder: Path) -> Outcome:
    """One round on topics of its own; its folder is kept only when it is not clean."""
    began_s = time.monotonic()
    plan = shape.plan(seed)
    if plan.product:
        shape = replace(shape, partitions=4, rate=min(shape.rate, 300))
    # The id is new in every run, so that a round can be repeated with its seed on the same broker.
    round_ = Round(
        broker.bootstrap_servers, f"chaos-{seed}-{time.time_ns() // 1_000_000 % 10**9}", shape.partitions
    )
    fleet = (ProductFleet if plan.product else Fleet)(
        *(round_, folder, shape.switches(faulty=True), shape.session_timeout_s),
        proxied=True,
        disks=True,
        seed=seed,
    )
    outcome = Outcome(seed, plan.workers, plan.product)
    product = Product(round_, folder) if plan.product else None
    try:
        (product or round_).create()
        _play(broker, round_, fleet, shape, plan, outcome, product)
        fleet.stop()
        if outcome.failure is None:
            outcome.verdict = (
                product.judge(fleet.data_dirs)
                if product
                else judge(round_, Input(round_).read(), fleet.data_dirs)
            )
    except Exception as error:
        outcome.failure = f"{type(error).__name__}: {error} {traceback.format_exc(limit=-3)!r}"
    finally:
        fleet.kill()
        outcome.exits, outcome.slow_exits = fleet.exits, fleet.slow
        outcome.stops_inside = fleet.count("injected stop")
        outcome.injected_exits = fleet.count("injected exit")
        outcome.mismatches = fleet.count("foreclick_position_mismatch_total")
        outcome.last_words = fleet.last_words()
        fleet.end(keep=not outcome.clean)
    outcome.seconds = time.monotonic() - began_s
    (product or round_).delete()
    if outcome.clean:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        outcome.kept = folder
    return outcome


def _play(
    broker: RunningBroker,
    round_: Round,
    fleet: Fleet,
    shape: Shape,
    plan: Plan,
    outcome: Outcome,
    product: Product | None,
) -> None:
    for name in NAMES[: plan.workers]:
        fleet.start(name)
    driver: Driver | Clicks
    if product:
        driver = Clicks(product.settings, shape.rate, plan.seed)
        faults = Faults(fleet, broker, driver, product.swap)
    else:
        options = {"rate": shape.rate, "users": shape.users, "seed": plan.seed}
        driver = Driver(round_.bootstrap, round_.source, events=None, **options)  # type: ignore[arg-type]
        faults = Faults(fleet, broker, driver)
    driver.start()
    try:
        fleet.tend_for(OPENING_S, until=fleet.all_open)
        for fault in plan.faults:
            fleet.tend_for(fault.pause_s)
            fleet.tend_for(
                OPENING_S, until=fleet.any_open
            )  # while all are starting most faults try nothing new
            (outcome.faults if faults.cause(fault) else outcome.missed).append(fault.kind)
    finally:
        driver.finish()
        outcome.failovers_s, outcome.disturbed = faults.failovers_s, faults.disturbed
    fleet.switches = shape.switches(faulty=False)
    if not fleet.workers:
        fleet.start("A")
    began_s = time.monotonic()
    if fleet.catch_up():
        outcome.caught_up_s = time.monotonic() - began_s
        outcome.failure = "; ".join(faults.unclear) or None
        if product and not product.finish_windows(fleet):
            outcome.failure = "the second stage has not read all that it was told"
    else:
        outcome.failure = f"not caught up: committed {round_.committed()}, ends {round_.ends(round_.source)}"


def totals(outcomes: Sequence[Outcome]) -> str:
    """One JSON object over all rounds."""
    verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict is not None]
    failovers_s = [seconds for outcome in outcomes for seconds in outcome.failovers_s]

    def at(q: float) -> float | None:
        found = quantile(failovers_s, q)
        return None if found is None else round(found, 2)

    names = (
        "lost",
        "twice",
        "contradicting",
        "out_of_order",
        "events",
        "predictions",
        "dead_letters",
        "alerts",
        "repeats",
    )
    names += (
        "mismatching_rows",
        "mismatching_groups",
        "mismatching_positions",
        "mismatching_local",
        "hanging",
    )
    return json.dumps(
        {
            "rounds": len(outcomes),
            "clean": sum(outcome.clean for outcome in outcomes),
            "faults": sum(outcome.kinds().total() for outcome in outcomes),
            **{name: sum(getattr(verdict, name) for verdict in verdicts) for name in names},
            "alert_kinds": dict(sum((Counter(verdict.alert_kinds) for verdict in verdicts), Counter())),
            "failover_p50_s": at(0.5),
            "failover_p95_s": at(0.95),
            "failovers": len(failovers_s),
            "failovers_disturbed": sum(outcome.disturbed for outcome in outcomes),
            "faults_by_kind": dict(sum((outcome.kinds() for outcome in outcomes), Counter()).most_common()),
            "missed": sum(len(outcome.missed) for outcome in outcomes),
            "product_rounds": sum(outcome.product for outcome in outcomes),
            "broker_kill_rounds": sum(outcome.broker_killed for outcome in outcomes),
            "repeat_rounds": sum(bool(outcome.verdict and outcome.verdict.repeats) for outcome in outcomes),
            "stopped_in_transaction": sum(outcome.stops_inside for outcome in outcomes),
            "position_mismatch_total": sum(outcome.mismatches for outcome in outcomes),
            "exits": dict(sum((outcome.exits for outcome in outcomes), Counter())),
            "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        }
    )
