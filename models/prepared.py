"""A network laid out for serving: weights widened and transposed once, and row counts that are safe to compute with.

Matrix products of other row counts, and the remainders of vectorised functions, round differently. So floating point
runs on tiles of fixed row counts, all multiples of 64, padded with rows that nobody reads; which tile sizes agree bit
for bit is measured here, on the machine that serves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.columns import WINDOW
from models.errors import ModelError
from models.features import TILE_ROWS
from models.networks.trunk import PreparedTrunk
from models.registry import Artefact

_TILE_SIZES = (1024, 256, TILE_ROWS)
# A category's column in the ranking takes 11 bits; 32 columns are the window's, and widths are multiples of 16.
KEY_BITS = 11
MOST_CATEGORIES = (1 << KEY_BITS) - 16 - 1 - WINDOW


class PreparedNetwork:
    """The network of an artefact on a device; ``network`` itself is only read.

    ``rank_V``: int32, counts the columns of the category ranking from the last one, so that ties go to the first.
    ``code_by_column``: the category code of each column, 0 for the unseen and for the window's columns.
    """

    def __init__(self, artefact: Artefact, device: str) -> None:
        """Copy and transpose the weights.

        Raises:
            ModelError: the model has more categories than can be ranked.
        """
        self.artefact, self.device = artefact, device
        network = artefact.network if device == "cpu" else copy.deepcopy(artefact.network).to(device)
        self.network = network.eval()
        self.trunk: PreparedTrunk = network.trunk.prepared()
        self.read_width = network.read_width
        known = 1 + len(artefact.categories)
        if known - 1 > MOST_CATEGORIES:
            raise ModelError(
                f"Model {artefact.name}/{artefact.version} has {known - 1} categories, the engine ranks at most "
                f"{MOST_CATEGORIES}. Train it with fewer."
            )
        # The vocabulary's logits get 32 and more columns that are never likely: the pointer's share of categories
        # outside the vocabulary is added there, in place.
        self._category_weight, self._category_bias = _widened(network.heads.category, known + WINDOW, -1e9)
        self._small_weight, self._small_bias = _widened(
            network.heads.small, network.heads.small.out_features, 0.0
        )
        shortcut = network.shortcut_weight().detach()
        self._shortcut_weight = torch.zeros(shortcut.shape[1], -(-len(shortcut) // 16) * 16, device=device)
        self._shortcut_weight[:, : len(shortcut)] = shortcut.t()
        self.shortcut_width = len(shortcut)
        columns = len(self._category_bias)
        self.rank_V = torch.arange(columns - 1, -1, -1, dtype=torch.int32, device=device)
        self.code_by_column: NDArray[np.uint32] = np.zeros(columns, np.uint32)
        self.code_by_column[1:known] = artefact.categories.codes
        self.calibration = artefact.fake_order
        self.log_horizon = log(artefact.churn_horizon_s)
        self.log_longest_gap = log(artefact.longest_gap_s)
        with torch.inference_mode():
            self._tiles = self._agreeing_tiles()

    @property
    def small_width(self) -> int:
        """Columns that ``small_heads`` writes."""
        return len(self._small_bias)

    def shortcut(self, x_NK: Tensor) -> Tensor:
        """The first numbers of the states after N events, N x (A + 1).

        Args:
            x_NK: the inputs F, then columns that are not read.
        """
        inputs = len(self._shortcut_weight)
        return torch.mm(x_NK[:, :inputs], self._shortcut_weight)[:, : self.shortcut_width]

    def small_heads(self, read_NR: Tensor, out_NK: Tensor) -> None:
        """Write the outputs of all heads but the vocabulary's, see ``models.heads.Heads.read``."""
        torch.addmm(self._small_bias, read_NR, self._small_weight, out=out_NK)

    def category_logits(self, read_NR: Tensor) -> Tensor:
        """Logits of the vocabulary, then columns that are never likely."""
        return torch.addmm(self._category_bias, read_NR, self._category_weight)

    def tiled(self, start: int, stop: int) -> Iterator[slice]:
        """Cut whole tiles out of [start, stop), the largest first; the length is a multiple of 64."""
        for size in self._tiles:
            while stop - start >= size:
                yield slice(start, start + size)
                start += size

    def tensor(self, values: NDArray) -> Tensor:
        """An array on this device; indices become 64 bits wide there, where narrower ones are not taken."""
        if values.dtype == np.int32 and self.device != "cpu":
            values = values.astype(np.int64)
        return torch.from_numpy(values).to(self.device)

    def _agreeing_tiles(self) -> tuple[int, ...]:
        """The tile sizes whose matrix products equal those of 64 rows bit for bit on this machine."""
        most, generator = _TILE_SIZES[0], torch.Generator().manual_seed(1)
        width = self.network.trunk.inputs + self.trunk.room
        inputs = torch.randn(most, width, generator=generator).to(self.device)
        direct = self.shortcut_width
        state = torch.randn(most, self.artefact.state_width, generator=generator).half().to(self.device)

        def results(size: int) -> Tensor:
            tiles = []
            for start in range(0, most, size):
                part = slice(start, start + size)
                new = state[part].clone()
                trunk = slice(direct, self.network.trunk_end)
                made = self.trunk.step(inputs[part].clone(), state[part, trunk], new[:, trunk])
                new[:, :direct] = self.shortcut(inputs[part])
                read = new[:, : self.read_width].float()
                self.small_heads(read, small := torch.empty(size, self.small_width, device=self.device))
                tiles.append(torch.cat([*made, read, small, self.category_logits(read)], dim=1))
            return torch.cat(tiles)

        expected = results(TILE_ROWS)
        # 64 rows always: damaged weights make NaN, which equals nothing, and the step must still run to find it.
        larger = tuple(size for size in _TILE_SIZES[:-1] if torch.equal(results(size), expected))
        return (*larger, TILE_ROWS)


def _widened(layer: torch.nn.Linear, columns: int, bias: float) -> tuple[Tensor, Tensor]:
    """Weight (in, columns) and bias of a layer with further outputs that are constant, up to a multiple of 16.

    A matrix product is quicker when its width is one.
    """
    columns = -(-columns // 16) * 16
    weight = torch.zeros(layer.in_features, columns, device=layer.weight.device)
    weight[:, : layer.out_features] = layer.weight.detach().t()
    biases = torch.full((columns,), bias, device=layer.weight.device)
    biases[: layer.out_features] = layer.bias.detach()
    return weight, biases
