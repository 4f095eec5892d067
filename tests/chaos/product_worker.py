"""`foreclick worker` with the switches of a round: traps at every step of all its stages, a clock, planted bugs.

    FORECLICK_...=... python -m tests.chaos.product_worker --exit-at any --exit-probability 0.001

Nothing of what it computes or writes is another's: its engines are the product's with a probe and a clock, which are
arguments of theirs.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from stream import app, groups_app, labels_app
from stream.engine.service import Engine
from stream.metrics import StageMetrics
from stream.settings import load_settings
from tests.chaos import planted_product
from tests.chaos.traps import ProbedLog, ShiftedClock, add_switches, end_with_parent, say, set_traps


def install(options: argparse.Namespace) -> None:
    """Have the product's app be composed with the traps, the clock and the planted bugs."""
    probe = set_traps(options)
    clock = ShiftedClock(options.clock)

    class ProbedEngine(Engine):
        """The product's, with what a round has to say in it."""

        log_class = ProbedLog

        def __init__(self, *arguments: Any, **kept: Any):
            super().__init__(*arguments, probe=probe, clock=clock, **kept)

    for module in (app, groups_app, labels_app):
        module.Engine = ProbedEngine  # type: ignore[attr-defined]
    counted = StageMetrics.position_mismatch

    def position_mismatch(metrics: StageMetrics) -> None:
        """The counter that excuses a repeat is a line in the log as well."""
        counted(metrics)
        say("foreclick_position_mismatch_total")

    StageMetrics.position_mismatch = position_mismatch  # type: ignore[method-assign]
    if options.planted:
        for bug in options.planted.split(","):
            planted_product.PLANTED[bug]()


def main() -> None:
    """Run the worker as `foreclick worker` would."""
    end_with_parent()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.product_worker", description=__doc__)
    add_switches(parser)
    parser.add_argument(
        "--quiet-s", type=float, help="instead of the environment's FORECLICK_GROUPS__QUIET_S"
    )
    options = parser.parse_args(sys.argv[1:])
    install(options)
    app.run_worker(load_settings(groups__quiet_s=options.quiet_s))


if __name__ == "__main__":
    main()
