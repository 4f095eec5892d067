"""The supervised head: how much a user's events so far look like those of users that somebody labelled.

It reads the event's scaled numbers and the user's running statistics, and boosted trees make a log-odds of them. It
shares nothing with the trunk, for two reasons. The trunk reads the clock, and labelled users were often recorded at
other hours than the rest: hour and weekday would give the label away, and the score would be worth nothing the day
after. And labels are few: they must not move what unlabelled users taught.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.columns import Columns
from models.features import Inputs, numbers_of, numeric_width
from models.forest import Forest
from models.running_statistics import RunningStatistics

#: Leaves a tree.
LEAVES = 8
#: Features that tell the time of day or the date in any way: never read here.
CLOCK = ("hour", "weekday")


@dataclass(frozen=True)
class Calibration:
    """The probability is the sigmoid of slope x log-odds + intercept; source: Platt (1999)."""

    slope: float
    intercept: float


class FakeOrder(nn.Module):
    """Running statistics and a forest; N events, S numbers of state."""

    def __init__(self, n_actions: int, n_extras: int, trees: int) -> None:
        super().__init__()
        self.statistics = RunningStatistics(n_actions, n_extras)
        self.forest = Forest(trees, LEAVES)
        self.state_width = self.statistics.state_width
        clock = {at for name in CLOCK for at in range(*numbers_of(name, n_actions).indices(10**6))}
        self.read_columns = [at for at in range(numeric_width(n_actions, n_extras)) if at not in clock]

    def inputs(self, x_NF: Tensor, action_N: Tensor, state_NS: Tensor) -> Tensor:
        """What the forest reads after each event.

        Args:
            x_NF: scaled inputs of the events, and further columns.
            action_N: their action codes.
            state_NS: float16, this head's part of the states after them.
        """
        own = x_NF.index_select(1, torch.tensor(self.read_columns, device=x_NF.device))
        is_action = (action_N[:, None] == self.statistics.actions_K).float()
        return torch.cat([own, is_action, self.statistics.read(state_NS)], dim=1)

    def inputs_of_users(self, made: Inputs, columns: Columns) -> Tensor:
        """``inputs`` of whole histories, every user from the blank state; rows as of the columns."""
        N = len(columns["row"])
        q_NQ, known_NQ = self.statistics.quantities(made.x_NF, columns)
        states = self.statistics.advance_users(q_NQ, known_NQ, columns)
        return self.inputs(made.x_NF[:N], made.action_NL[:N, 0], states)
