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

    def prepared(self) -> PreparedLSTM:
        """The same weights laid out for serving."""
        return PreparedLSTM(self)

    def forward(self, x_TBF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Trunk.forward``."""
        # torch's own kernel, one call for all steps: four times faster than a loop over them.
        H = self.hidden
        state = (state_BS[None, :, :H].contiguous(), state_BS[None, :, H:].contiguous())
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
        h_TBH, h_1BH, c_1BH = torch.lstm(
            x_TBF,
            state,
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=torch.is_grad_enabled(),
            bidirectional=False,
            batch_first=False,
        )
        return h_TBH, torch.cat([h_1BH[0], c_1BH[0]], dim=1)


class PreparedLSTM:
    """A trained LSTM for serving: half the memory traffic of ``LSTM.step``, no gradients.

    Inputs and hidden state lie side by side in one matrix, so that one product makes the gates. tanh(x) is computed
    as 2 sigmoid(2x) - 1, because one vectorised pass over all gates is four times faster than a tanh; so g's weights
    are doubled beforehand. Equals ``LSTM.step`` but for the last bits.
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
