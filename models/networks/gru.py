"""A gated recurrent unit: half the state of an LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.trunk import Trunk


class GRU(Trunk):
    """One layer. The state is the hidden state, S = H numbers: 128 bytes a user for 64 units.

    Source: Cho et al. (2014). Gate order r, z, n and parameter shapes as in torch.nn.GRU, which resets after the
        matrix product; the two biases of r and z are added, n keeps both.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.state_width = hidden
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(3 * hidden))
        self.bias_hn = nn.Parameter(torch.zeros(hidden))
        nn.init.xavier_uniform_(self.weight_ih)
        for gate in range(3):
            nn.init.orthogonal_(self.weight_hh.data[gate * hidden : (gate + 1) * hidden])
        # A shut update gate keeps the past, so that gradients reach far back from the first epoch on.
        self.bias.data[hidden : 2 * hidden] = 1.0

    def advance(self, gates_B3H: Tensor, h_BH: Tensor) -> Tensor:
        """One time step from projected inputs: the next state, B x H. The arguments are left unchanged."""
        H = self.hidden
        recurrent = torch.addmm(self._recurrent_bias(), h_BH, self.weight_hh.t())
        r, z = torch.sigmoid(gates_B3H[:, : 2 * H] + recurrent[:, : 2 * H]).chunk(2, dim=1)
        n = torch.tanh(gates_B3H[:, 2 * H :] + r * recurrent[:, 2 * H :])
        return n + z * (h_BH - n)

    def forward(self, x_TBF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Trunk.forward``."""
        states = []
        # The inputs' share of the gates needs no state, so it is done for all events at once.
        for gates_B3H in nn.functional.linear(x_TBF, self.weight_ih, self.bias):
            state_BS = self.advance(gates_B3H, state_BS)
            states.append(state_BS)
        return torch.stack(states), state_BS

    def _recurrent_bias(self) -> Tensor:
        return torch.cat([torch.zeros_like(self.bias[: 2 * self.hidden]), self.bias_hn])

    def prepared(self) -> PreparedGRU:
        """The same weights laid out for serving."""
        return PreparedGRU(self)


class PreparedGRU:
    """A trained GRU for serving: one matrix product makes r, z and both halves of n.

    The weights of n's halves are zero where the other half's inputs stand.
    """

    def __init__(self, gru: GRU) -> None:
        self.hidden = self.room = gru.hidden
        self.inputs = gru.inputs
        F, H = gru.inputs, gru.hidden
        weight = torch.zeros(F + H, 4 * H, device=gru.bias.device)
        weight[:F, : 3 * H] = gru.weight_ih.detach().t()
        weight[F:, : 2 * H] = gru.weight_hh.detach()[: 2 * H].t()
        weight[F:, 3 * H :] = gru.weight_hh.detach()[2 * H :].t()
        self.weight_KG, self.bias_G = weight, torch.cat([gru.bias, gru.bias_hn]).detach()

    def step(self, x_NK: Tensor, old_NS: Tensor, new_NS: Tensor) -> tuple[Tensor]:
        """See ``PreparedTrunk.step``. A state moves towards n, which lies within ±1: it cannot outgrow float16."""
        H = self.hidden
        x_NK[:, self.inputs :] = old_NS
        gates = torch.addmm(self.bias_G, x_NK, self.weight_KG)
        r, z = gates[:, : 2 * H].sigmoid().chunk(2, dim=1)
        n = gates[:, 3 * H :].mul(r).add_(gates[:, 2 * H : 3 * H]).tanh_()
        h = (old_NS.float() - n).mul_(z).add_(n)
        new_NS.copy_(h)
        return (h,)
