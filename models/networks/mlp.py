"""A perceptron over the last 32 events, each but the newest compressed to a few numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.window import PAST, WindowTrunk, move_up

ENTRY_WIDTH = 16


class MLP(WindowTrunk):
    """Two layers over the newest event's inputs and 31 compressed ones, each at its own place in the window.

    S = H + 31 x 16 numbers: 1,120 bytes a user for 64 units. The first layer is the time-delay network of Waibel et
    al. (1989), with one position: the newest.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, ENTRY_WIDTH)
        self.compress = nn.Linear(inputs, ENTRY_WIDTH)
        self.newest = nn.Linear(inputs, 2 * hidden)
        self.past = nn.Linear(PAST * ENTRY_WIDTH, 2 * hidden, bias=False)
        self.out = nn.Linear(2 * hidden, hidden)

    def forward(self, x_TBF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Trunk.forward``; all T events at once."""
        T, B, _ = x_TBF.shape
        line_BLE = self.line_up(state_BS, torch.tanh(self.compress(x_TBF)))
        # Event t reads the PAST entries before its own: places t to t + PAST - 1 of the line.
        past_BTEP = line_BLE[:, :-1].unfold(1, PAST, 1)
        past_TBK = past_BTEP.permute(1, 0, 3, 2).reshape(T, B, PAST * ENTRY_WIDTH)
        h_TBH = torch.tanh(self.out(torch.relu(self.newest(x_TBF) + self.past(past_TBK))))
        return h_TBH, self.carry(h_TBH[-1], line_BLE)

    def prepared(self) -> PreparedMLP:
        """The same weights laid out for serving."""
        return PreparedMLP(self)


class PreparedMLP:
    """A trained perceptron for serving: inputs and entries lie side by side, so that one product reads both."""

    room = PAST * ENTRY_WIDTH

    def __init__(self, mlp: MLP) -> None:
        self.hidden, self.inputs = mlp.hidden, mlp.inputs
        self.compress_FE, self.compress_bias_E = (
            mlp.compress.weight.detach().t().contiguous(),
            mlp.compress.bias.detach().clone(),
        )
        read = torch.cat([mlp.newest.weight, mlp.past.weight], dim=1).detach()
        self.read_KG, self.read_bias_G = read.t().contiguous(), mlp.newest.bias.detach().clone()
        self.out_GH, self.out_bias_H = mlp.out.weight.detach().t().contiguous(), mlp.out.bias.detach().clone()

    def step(self, x_NK: Tensor, old_NS: Tensor, new_NS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``PreparedTrunk.step``."""
        x_NK[:, self.inputs :] = old_NS[:, self.hidden :]
        entry = torch.addmm(self.compress_bias_E, x_NK[:, : self.inputs], self.compress_FE).tanh_()
        read = torch.addmm(self.read_bias_G, x_NK, self.read_KG).relu_()
        h = torch.addmm(self.out_bias_H, read, self.out_GH).tanh_()
        move_up(old_NS, h, entry, new_NS)
        return entry, h
