"""Randomised fault rounds against a real broker.

make chaos ROUNDS=30 SEED=1
make chaos ROUNDS=20 ARGS="--planted no-cleanse --broker-share 1"
make chaos ROUNDS=3 ARGS="--only 'lost answer' --only cut --broker-share 0"
make chaos ROUNDS=3 ARGS="--product-share 1"
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stream.broker import Broker
from tests.chaos.plan import PRODUCT_FAULTS, WORKER_FAULTS
from tests.chaos.planted import PLANTED
from tests.chaos.planted_product import PLANTED as PRODUCT_PLANTED
from tests.chaos.rounds import Outcome, Shape, run_round, totals


def main(arguments: Sequence[str]) -> int:
    """Run the rounds; 0 when every one was clean, or when a planted bug was caught."""
    default = Shape()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each next has one more")
    parser.add_argument("--faults", type=int, default=default.faults, help="in a round")
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted({*WORKER_FAULTS, *PRODUCT_FAULTS}),
        help="these kinds of faults; repeatable",
    )
    parser.add_argument(
        "--broker-share", type=float, default=default.broker_share, help="of rounds that kill the broker"
    )
    parser.add_argument("--broker-kills", type=int, default=1, help="in each of those")
    parser.add_argument(
        "--product-share", type=float, default=default.product_share, help="of rounds with `foreclick worker`"
    )
    parser.add_argument("--rate", type=float, default=default.rate, help="events a second")
    parser.add_argument(
        "--planted", choices=[*PLANTED, *PRODUCT_PLANTED], help="run with a bug until it is caught"
    )
    options = parser.parse_args(arguments)
    shape = Shape(
        faults=options.faults,
        rate=options.rate,
        broker_share=options.broker_share,
        broker_kills=options.broker_kills,
        only=options.only or (),
        product_share=options.product_share,
        planted=options.planted,
    )
    # An order to stop is an exception like Ctrl-C's, so that workers and broker are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="foreclick-chaos-"))
    outcomes: list[Outcome] = []
    with Broker(data_dir=folder / "broker") as broker:
        for number in range(options.rounds):
            seed = options.seed + number
            outcome = run_round(broker, seed, shape, folder / f"seed-{seed}")
            outcomes.append(outcome)
            print(f"round {number + 1}/{options.rounds} {outcome}", flush=True)
            if not outcome.clean:
                print(f"the same plan again: {replay(arguments, seed)}", flush=True)
            if options.planted and not outcome.clean:
                print(f"{options.planted} was caught in round {number + 1}", flush=True)
                break
    print(totals(outcomes), flush=True)
    if all(outcome.clean for outcome in outcomes):
        shutil.rmtree(folder, ignore_errors=True)
    caught = any(not outcome.clean for outcome in outcomes)
    return int(not caught if options.planted else caught)


def replay(arguments: Sequence[str], seed: int) -> str:
    """The command for the one round of this seed: what was asked for, with other numbers."""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        name, equals, _ = argument.partition("=")
        if name in {"--rounds", "--seed"}:
            if not equals:
                next(left, None)
        else:
            kept.append(argument)
    command = f"make chaos ROUNDS=1 SEED={seed}"
    return f"{command} ARGS={shlex.quote(shlex.join(kept))}" if kept else command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
