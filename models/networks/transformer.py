"""A causal transformer over the last 32 events, whose keys and values the state keeps."""

from __future__ import annotations

import copy
from math import sqrt

import torch
from torch import Tensor, nn

from models.networks.window import PAST, WindowTrunk, move_up

HEADS = 4
KEY_WIDTH = 16
VALUE_WIDTH = 32


class Transformer(WindowTrunk):
    """One block: attention of four query heads over one key and one value an event, then a perceptron.

    The heads share keys and values, which keeps an entry at 48 numbers: S = H + 31 x 48, 3,104 bytes a user for 64
    units. Keys and values depend on their own event alone and position enters as a learned bias by distance, so
    cached entries stay right as they move up. An empty slot has a key and a value of zeros: attention to it reads
    nothing, and so says that the user is new.

    Source: Vaswani et al. (2017); shared keys and values after Shazeer (2019); bias by distance after Raffel et al.
        (2020), beginning as the slopes of Press et al. (2022); normalisation before the perceptron after Xiong et
        al. (2020). The map of the inputs and those of queries, keys and values are linear, so they are one.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, KEY_WIDTH + VALUE_WIDTH)
        self.read = nn.Linear(inputs, hidden + HEADS * KEY_WIDTH + KEY_WIDTH + VALUE_WIDTH)
        self.mix = nn.Linear(HEADS * VALUE_WIDTH, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.wide = nn.Linear(hidden, 2 * hidden)
        self.narrow = nn.Linear(2 * hidden, hidden)
        self.last_norm = nn.LayerNorm(hidden)
        # By distance, the event itself last, as entries lie. Some heads begin short-sighted, some see all.
        slope_H = 2.0 ** -torch.arange(HEADS).mul(2)
        self.bias_HW = nn.Parameter(slope_H[:, None] * torch.arange(-PAST, 1))
        with torch.no_grad():
            self.mix.weight.mul_(0.5)
            self.narrow.weight.mul_(0.5)

    def parts(self, x_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of any number of events: the embedded event (H), its queries (heads x key) and its entry (key, value)."""
        queries = HEADS * KEY_WIDTH
        e, q, entry = self.read(x_NF).split([self.hidden, queries, self.entry_width], dim=-1)
        return e, q, entry

    def answer(self, e_NH: Tensor, read_NV: Tensor) -> Tensor:
        """From the embedded event and what its heads read to what the network says, N x H."""
        r = e_NH + self.mix(read_NV)
        h: Tensor = self.last_norm(r + self.narrow(torch.relu(self.wide(self.norm(r)))))
        return h

    def forward(self, x_TBF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Trunk.forward``; all T events at once, each reading itself and the 31 entries before."""
        T, B, _ = x_TBF.shape
        e_TBH, q, entry_TBE = self.parts(x_TBF)
        line_BLE = self.line_up(state_BS, entry_TBE)
        k_BLK, v_BLV = line_BLE.split([KEY_WIDTH, VALUE_WIDTH], dim=2)
        q_BXK = q.view(T, B, HEADS, KEY_WIDTH).permute(1, 2, 0, 3).reshape(B, HEADS * T, KEY_WIDTH)
        score = (q_BXK @ k_BLK.transpose(1, 2) / sqrt(KEY_WIDTH)).view(B, HEADS, T, PAST + T)
        # Event t sees the places t (oldest) to t + PAST (itself) of the line.
        place_TL = torch.arange(PAST + T, device=x_TBF.device) - torch.arange(T, device=x_TBF.device)[:, None]
        bias_HTL = self.bias_HW[:, place_TL.clamp(0, PAST)]
        score = (score + bias_HTL).masked_fill((place_TL < 0) | (place_TL > PAST), -torch.inf)
        weight_BXL = torch.softmax(score, dim=3).view(B, HEADS * T, PAST + T)
        read = (weight_BXL @ v_BLV).view(B, HEADS, T, VALUE_WIDTH).permute(2, 0, 1, 3)
        h_TBH = self.answer(e_TBH, read.reshape(T, B, HEADS * VALUE_WIDTH))
        return h_TBH, self.carry(h_TBH[-1], line_BLE)

    def prepared(self) -> PreparedTransformer:
        """The same weights laid out for serving."""
        return PreparedTransformer(self)


class PreparedTransformer:
    """A trained transformer for serving: each user's one query over its own 32 keys."""

    room = 0

    def __init__(self, transformer: Transformer) -> None:
        self.hidden, self.entry_width = transformer.hidden, transformer.entry_width
        self.block = copy.deepcopy(transformer).requires_grad_(False)

    def step(self, x_NK: Tensor, old_NS: Tensor, new_NS: Tensor) -> tuple[Tensor, Tensor]:
        """See ``PreparedTrunk.step``."""
        N, H, E = len(x_NK), self.hidden, self.entry_width
        e, q, entry = self.block.parts(x_NK)
        line_NWE = torch.cat([old_NS[:, H:].float(), entry], dim=1).view(N, PAST + 1, E)
        k_NWK, v_NWV = line_NWE.split([KEY_WIDTH, VALUE_WIDTH], dim=2)
        score = q.reshape(N, HEADS, KEY_WIDTH) @ k_NWK.transpose(1, 2)
        weight = torch.softmax(score.div_(sqrt(KEY_WIDTH)).add_(self.block.bias_HW), dim=2)
        h = self.block.answer(e, (weight @ v_NWV).view(N, HEADS * VALUE_WIDTH))
        move_up(old_NS, h, entry, new_NS)
        return entry, h
