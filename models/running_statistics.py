"""What a user's numbers were like so far: count, mean, variance, greatest and least of each, event by event.

A part of the user's state beside the trunk's, advanced by additions and comparisons alone, which give the same bits
for any number of rows. A number is a quantity of the event (gap, price, repeats, declared extras, and how an extra
changed since the event before, if at all), of all events or of those of one action. No quantity knows the hour, the day
or the date: where labelled users were recorded at different times, a clock would tell them apart and nothing else.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.columns import Columns
from models.features import numbers_of, numeric_width

#: Statistics a number.
KINDS = 5
#: Actions that have numbers of their own: the most frequent ones of training.
MOST_ACTIONS = 4
#: Counts stop here, the last that float16 holds one by one; from there on means forget slowly.
MOST_COUNTED = 2048.0
#: Stands for a statistic of nothing; scaled inputs lie within 8, and changes of them within 16.
NOTHING = -20.0
#: Quicker than people act one by one.
_QUICK_MS = 1000
_CHANGES = 3
_PLAIN = ("log_gap", "price", "repeat_item", "repeat_category")


class RunningStatistics(nn.Module):
    """The slots of one model; N events or users, J slots, E extras, Q quantities."""

    def __init__(self, n_actions: int, n_extras: int) -> None:
        super().__init__()
        self.n_actions, self.n_extras = n_actions, n_extras
        base = numeric_width(n_actions)
        plain = [numbers_of(name, n_actions).start for name in _PLAIN]
        #: Columns of the scaled inputs that are quantities by themselves.
        self.columns_Q = [*plain, *range(base, base + n_extras)]
        # Of each extra: its change, whether there was none, whether it fell.
        quantities = len(self.columns_Q) + 1 + _CHANGES * n_extras
        own = [0, *range(len(plain), len(plain) + n_extras)]
        actions = min(MOST_ACTIONS, n_actions)
        self.slot_quantity = [*range(quantities), *(own * actions)]
        self.slots = len(self.slot_quantity)
        self.state_width = KINDS * self.slots + 2 * n_extras
        self.general = quantities
        self.a_slot = len(own)
        self.actions_K: Tensor
        self.register_buffer("actions_K", torch.arange(actions))

    def begin_from(self, columns: Columns) -> None:
        """Let the most frequent actions of the training users have numbers of their own."""
        count = np.bincount(columns["action"], minlength=self.n_actions)
        self.actions_K.copy_(
            torch.from_numpy(np.argsort(-count, kind="stable")[: len(self.actions_K)].copy())
        )

    def quantities(self, x_NF: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        """The events' quantities but the changes and which of them are known, float32, (N, 5 + E) each.

        Args:
            x_NF: scaled inputs, rows padded to whole tiles, and further columns.
            columns: of the events themselves.
        """
        known = np.zeros((len(x_NF), len(self.columns_Q)), np.float32)
        n = len(columns["gap_ms"])
        known[:n] = 1.0
        known[:n, 0] = columns["gap_ms"] >= 0
        known[:n, 1] = ~np.isnan(columns["log_price"])
        known[:n, len(_PLAIN) :] = ~np.isnan(columns["extra"])
        quick = np.zeros((len(x_NF), 1), np.float32)
        quick[:n, 0] = columns["gap_ms"] < _QUICK_MS
        device = x_NF.device
        chosen = x_NF.index_select(1, torch.tensor(self.columns_Q, device=device))
        q_NQ = torch.cat([chosen, torch.from_numpy(quick).to(device)], dim=1)
        return q_NQ, torch.from_numpy(np.concatenate([known, known[:, :1]], axis=1)).to(device)

    def advance(
        self, q_NQ: Tensor, known_NQ: Tensor, action_N: Tensor, old_NS: Tensor, new_NS: Tensor
    ) -> None:
        """Take one event of each of N users in.

        Args:
            q_NQ, known_NQ: of ``quantities``.
            action_N: action codes.
            old_NS: float16, the states before the event.
            new_NS: float16, overwritten by those after it; other memory.
        """
        J, E = self.slots, self.n_extras
        old = old_NS.float()
        q, known = q_NQ, known_NQ
        if E:
            # As float16 keeps them: an extra that stays as it is has changed by exactly 0.
            extra, here = q_NQ[:, -1 - E : -1].half().float(), known_NQ[:, -1 - E : -1]
            last, held = old[:, KINDS * J : KINDS * J + E], old[:, KINDS * J + E :]
            change = extra - last
            q = torch.cat([q, change, (change == 0).float(), (change < 0).float()], dim=1)
            known = torch.cat([known, (here * held).repeat(1, _CHANGES)], dim=1)
            new_NS[:, KINDS * J : KINDS * J + E] = torch.where(here > 0, extra, last)
            new_NS[:, KINDS * J + E :] = torch.maximum(here, held)
        slot = torch.tensor(self.slot_quantity, device=q.device)
        q, known = q.index_select(1, slot), known.index_select(1, slot)
        of_action = (action_N[:, None] == self.actions_K).float().repeat_interleave(self.a_slot, dim=1)
        known = torch.cat([known[:, : self.general], known[:, self.general :] * of_action], dim=1) > 0
        count, mean, variance, high, low = old[:, : KINDS * J].split(J, dim=1)
        seen, n = count > 0, (count + known).clamp_max(MOST_COUNTED)
        share = known / n.clamp_min(1.0)
        # The variance itself, not the mean square: float16 would lose it where numbers hardly differ.
        new_mean = mean + (q - mean) * share
        parts = (
            n,
            new_mean,
            variance + ((q - mean) * (q - new_mean) - variance) * share,
            torch.where(known, torch.where(seen, torch.maximum(high, q), q), high),
            torch.where(known, torch.where(seen, torch.minimum(low, q), q), low),
        )
        for kind, part in enumerate(parts):
            new_NS[:, kind * J : (kind + 1) * J] = part

    def read(self, state_NS: Tensor) -> Tensor:
        """Count, mean, spread, greatest and least of each slot, (N, 5 J); ``NOTHING`` where nothing was counted."""
        count, mean, variance, high, low = state_NS[:, : KINDS * self.slots].float().split(self.slots, dim=1)
        spread = variance.clamp_min(0.0).sqrt()
        nothing = (count == 0).repeat(1, KINDS - 1)
        rest = torch.cat([mean, spread, high, low], dim=1).masked_fill(nothing, NOTHING)
        return torch.cat([count, rest], dim=1)

    def advance_users(self, q_NQ: Tensor, known_NQ: Tensor, columns: Columns) -> Tensor:
        """The states after each of N events, float16, (N, S); every user from the blank state."""
        states = torch.zeros(len(columns["row"]) + 1, self.state_width, dtype=torch.float16)
        order = np.argsort(columns["wave"], kind="stable")
        ends = np.cumsum(np.bincount(columns["wave"]))
        latest: NDArray[np.int64] = np.full(int(columns["row"].max()) + 1, len(columns["row"]))
        start = 0
        for end in ends.tolist():
            at = order[start:end]
            here, before = torch.from_numpy(at), torch.from_numpy(latest[columns["row"][at]])
            new = torch.empty(len(at), self.state_width, dtype=torch.float16)
            action = torch.from_numpy(columns["action"][at].astype(np.int64))
            self.advance(q_NQ[here], known_NQ[here], action, states[before], new)
            states[here] = new
            latest[columns["row"][at]] = at
            start = end
        return states[:-1]
