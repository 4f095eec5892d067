"""A bounded memory: the state carries an entry for each of the user's last events, oldest first.

The state is the hidden vector, then ``PAST`` slots of E numbers. With every event the slots move up by one, the
oldest is forgotten, and the newest takes the last slot. An empty slot holds zeros, so zeros are a new user and
nothing needs to count. With the event itself a network reads 32 events: as many as a state row keeps in its window,
so that a state rebuilt from the row has the whole memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.columns import WINDOW
from models.networks.trunk import HALF_MAX, Trunk

PAST = WINDOW - 1


class WindowTrunk(Trunk):
    """A trunk whose memory are the entries of the last ``PAST`` events, of ``entry_width`` numbers each."""

    def __init__(self, inputs: int, hidden: int, entry_width: int) -> None:
        super().__init__(inputs, hidden)
        self.entry_width = entry_width
        self.state_width = hidden + PAST * entry_width

    def line_up(self, state_BS: Tensor, entry_TBE: Tensor) -> Tensor:
        """The carried entries, then those of T further events: B x (PAST + T) x E."""
        past_BPE = state_BS[:, self.hidden :].view(len(state_BS), PAST, self.entry_width)
        return torch.cat([past_BPE, entry_TBE.transpose(0, 1)], dim=1)

    def carry(self, h_BH: Tensor, line_BLE: Tensor) -> Tensor:
        """The state after the last event of a line, B x S."""
        return torch.cat([h_BH, line_BLE[:, -PAST:].flatten(1)], dim=1)


def move_up(old_NS: Tensor, h_NH: Tensor, entry_NE: Tensor, new_NS: Tensor) -> None:
    """Write the served state after an event: hidden vector, slots moved up, the new entry in the last."""
    H, E = h_NH.shape[1], entry_NE.shape[1]
    new_NS[:, :H] = h_NH.clamp(-HALF_MAX, HALF_MAX)
    new_NS[:, H:-E] = old_NS[:, H + E :]
    new_NS[:, -E:] = entry_NE.clamp(-HALF_MAX, HALF_MAX)
