"""A long short-term memory whose carried state is what a state row keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.trunk import HALF_MAX, Trunk


class LSTM(Trunk):
    """One layer. The state is the hidden state h, then the cell state c.

    S = 2 H numbers: 256 bytes a user for 64 units.

    Source: Hochreiter & Schmidhuber (1997); forget gate after Gers et al. (2000).
        Gate order i, f, g, o and parameter shapes as in torch.nn.LSTM, its two biases added.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.state_width = 2 * hidden
        self.weight_ih = nn.Parameter(torch.empty(4 * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        nn.init.xavier_uniform_(self.weight_ih)
        for gate in range(4):
            nn.init.orthogonal_(self.weight_hh.data[gate * hidden : (gate + 1) * hidden])
        # An open forget gate lets gradients reach far back from the first epoch on.
        self.bias.data[hidden : 2 * hidden] = 1.0

    def project(self, x_NF: Tensor) -> Tensor:
        """The inputs' share of the four gates, N x 4H: it needs no state, so it is done for all events at once."""
        return torch.addmm(self.bias, x_NF, self.weight_ih.t())

    def advance(self, gates_N4H: Tensor, state_NS: Tensor) -> Tensor:
        """One time step from projected inputs: the next state, N x 2H. The arguments are left unchanged."""
        H = self.hidden
        gates = torch.addmm(gates_N4H, state_NS[:, :H], self.weight_hh.t())
        # tanh(x) = 2 sigmoid(2x) - 1: one vectorised pass over all gates is four times faster than a tanh.
        gates[:, 2 * H : 3 * H].mul_(2)
        i, f, g, o = torch.sigmoid(gates).chunk(4, dim=1)
        c = f * state_NS[:, H:] + i * (2 * g - 1)
        return torch.cat([o * (2 * torch.sigmoid(2 * c) - 1), c], dim=1)

    def prepared(self) -> PreparedLSTM:
        """The same weights laid out for serving."""
        return PreparedLSTM(self)

    def forward(self, x_TBF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Trunk.forward``."""
        T, B, F = x_TBF.shape
        gates_TB4H = self.project(x_TBF.reshape(T * B, F)).view(T, B, 4 * self.hidden)
        states = []
        for gates_B4H in gates_TB4H:
            state_BS = self.advance(gates_B4H, state_BS)
            states.append(state_BS)
        return torch.stack(states)[..., : self.hidden], state_BS


class PreparedLSTM:
    """A trained LSTM for serving: half the memory traffic of ``LSTM.step``, no gradients.

    Inputs and hidden state lie side by side in one matrix, so that one product makes the gates, and g's weights are
    doubled beforehand (see ``LSTM.advance``). Equals ``LSTM.step`` but for the last bits.
    """

    def __init__(self, lstm: LSTM) -> None:
        self.hidden = self.room = lstm.hidden
        self.inputs = lstm.inputs
        weight = torch.cat([lstm.weight_ih, lstm.weight_hh], dim=1).detach().clone()
        bias = lstm.bias.detach().clone()
        for doubled in (weight, bias):
            doubled[2 * self.hidden : 3 * self.hidden] *= 2
        self.weight_KG, self.bias_G = weight.t().contiguous(), bias

    def step(self, x_NK: Tensor, old_NS: Tensor, new_NS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``PreparedTrunk.step``: h and c, whose NaN or infinity is in both."""
        H = self.hidden
        x_NK[:, self.inputs :] = old_NS[:, :H]
        i, f, g, o = torch.addmm(self.bias_G, x_NK, self.weight_KG).sigmoid_().chunk(4, dim=1)
        c = old_NS[:, H:].float().mul_(f).add_(g.mul_(2).sub_(1).mul_(i))
        h = (c * 2).sigmoid_().mul_(2).sub_(1).mul_(o)
        new_NS[:, :H] = h  # |h| < 1: only the cell state can outgrow float16
        new_NS[:, H:] = c.clamp(-HALF_MAX, HALF_MAX)
        return h, c
