"""Randomised fault rounds against a real broker.

make chaos ROUNDS=30 SEED=1 ARGS="--broker-kills 12"
make chaos ROUNDS=20 ARGS="--planted no-cleanse --broker-kills 20"
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stream.broker import Broker
from tests.chaos.planted import PLANTED
from tests.chaos.rounds import Outcome, Shape, run_round, totals


def main(arguments: Sequence[str]) -> int:
    """Run the rounds; 0 when every one was clean, or when a planted bug was caught."""
    default = Shape()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each next has one more")
    parser.add_argument(
        "--broker-kills", type=int, default=None, help="rounds in which the broker is killed; a third"
    )
    parser.add_argument("--kills-a-round", type=int, default=1, help="how often in each of those")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="of traffic in a round")
    parser.add_argument("--rate", type=float, default=default.rate, help="events a second")
    parser.add_argument("--planted", choices=PLANTED, help="run with a bug until it is caught")
    options = parser.parse_args(arguments)
    kills = options.rounds // 3 if options.broker_kills is None else min(options.broker_kills, options.rounds)
    killing = set(random.Random(options.seed).sample(range(options.rounds), kills))
    shape = Shape(seconds=options.seconds, rate=options.rate, planted=options.planted)
    # An order to stop is an exception like Ctrl-C's, so that workers and broker are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="foreclick-chaos-"))
    outcomes: list[Outcome] = []
    with Broker(data_dir=folder / "broker") as broker:
        for number in range(options.rounds):
            seed = options.seed + number
            broker_kills = options.kills_a_round if number in killing else 0
            outcome = run_round(broker, seed, shape, folder / f"seed-{seed}", broker_kills)
            outcomes.append(outcome)
            print(f"round {number + 1}/{options.rounds} {outcome}", flush=True)
            if options.planted and not outcome.clean:
                print(f"{options.planted} was caught in round {number + 1}", flush=True)
                break
    print(totals(outcomes), flush=True)
    if all(outcome.clean for outcome in outcomes):
        shutil.rmtree(folder, ignore_errors=True)
    caught = any(not outcome.clean for outcome in outcomes)
    return int(not caught if options.planted else caught)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
