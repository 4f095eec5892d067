"""Boosted trees as comparisons and small matrix products, so that they serve beside a network.

All inner nodes of all trees compare at once; which leaf is reached follows from how many comparisons on its path came
out as the path wants. These are small whole numbers, and leaves are multiples of 2^-16: float32 adds both exactly, so
a score has the same bits in any company and on any device.

Source: the GEMM strategy of Hummingbird (Nakandala et al. 2020).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_UNIT = 65_536.0
#: Of one leaf: hundreds of them still add up exactly.
_MOST = 8.0


class Forest(nn.Module):
    """T trees of at most L leaves over F numbers; the sum of their leaves is a log-odds."""

    def __init__(self, trees: int, leaves: int) -> None:
        """Make room; ``fill`` or a model's weights say what the trees are."""
        super().__init__()
        nodes = leaves - 1
        self.trees, self.leaves = trees, leaves
        self.feature_TN: Tensor
        self.threshold_TN: Tensor
        self.path_TNL: Tensor
        self.offset_TL: Tensor
        self.value_TL: Tensor
        self.register_buffer("feature_TN", torch.zeros(trees, nodes, dtype=torch.int32))
        self.register_buffer("threshold_TN", torch.zeros(trees, nodes))
        # +1: the leaf lies on the side of the smaller values of that node; -1: on the other; 0: not below it.
        self.register_buffer("path_TNL", torch.zeros(trees, nodes, leaves))
        # How many smaller values the leaf's path wants; -1, which no sum is, where there is no leaf.
        self.register_buffer("offset_TL", torch.full((trees, leaves), -1.0))
        self.register_buffer("value_TL", torch.zeros(trees, leaves))

    def fill(self, tree_info: list[dict[str, Any]]) -> None:
        """Take over the trees of ``lightgbm.Booster.dump_model()["tree_info"]``, made without missing values."""
        for tree, info in enumerate(tree_info):
            nodes, leaves = 0, 0
            todo: list[tuple[dict[str, Any], list[tuple[int, float]]]] = [(info["tree_structure"], [])]
            while todo:
                at, path = todo.pop()
                if "split_feature" not in at:
                    for node, side in path:
                        self.path_TNL[tree, node, leaves] = side
                    self.offset_TL[tree, leaves] = float(sum(side > 0 for _, side in path))
                    value = max(-_MOST, min(_MOST, float(at["leaf_value"])))
                    self.value_TL[tree, leaves] = round(value * _UNIT) / _UNIT
                    leaves += 1
                    continue
                self.feature_TN[tree, nodes] = at["split_feature"]
                self.threshold_TN[tree, nodes] = _rounded_down(float(at["threshold"]))
                todo += [
                    (at["left_child"], [*path, (nodes, 1.0)]),
                    (at["right_child"], [*path, (nodes, -1.0)]),
                ]
                nodes += 1

    def forward(self, z_NF: Tensor) -> Tensor:
        """The log-odds (N,) of N rows of numbers without NaN."""
        T, L = self.trees, self.leaves
        smaller = z_NF.index_select(1, self.feature_TN.flatten().long()) <= self.threshold_TN.flatten()
        smaller_TNK = smaller.float().view(-1, T, L - 1).transpose(0, 1)
        reached = torch.bmm(smaller_TNK, self.path_TNL) == self.offset_TL[:, None, :]
        return (reached * self.value_TL[:, None, :]).sum(dim=(0, 2))


def _rounded_down(threshold: float) -> float:
    """The greatest float32 that is not above: float32 numbers are at most the one exactly if at most the other."""
    near = np.float32(threshold)
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))
