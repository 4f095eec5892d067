"""The whole network: embeddings, a trunk that carries state, heads on its hidden part."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.errors import ArtefactError
from models.features import HASH_BUCKETS, Inputs, numeric_width
from models.heads import Heads
from models.networks.lstm import LSTM

TRUNKS = {"lstm": LSTM}


@dataclass(frozen=True)
class Architecture:
    """Sizes that fix every weight's shape. ``kind`` names a file of ``models.networks``."""

    kind: str = "lstm"
    hidden: int = 64
    action_embedding: int = 8
    category_embedding: int = 16
    n_actions: int = 11
    n_categories: int = 0

    def as_dict(self) -> dict[str, object]:
        """As a manifest keeps it."""
        return asdict(self)


class Network(nn.Module):
    """Inputs of one event and the state before it -> the state after it -> heads."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        if a.kind not in TRUNKS:
            raise ArtefactError(
                f"This build has no architecture {a.kind!r}, only {', '.join(TRUNKS)}. Deploy the matching build."
            )
        self.architecture = a
        self.action = nn.Embedding(a.n_actions, a.action_embedding)
        self.category = nn.Embedding(1 + a.n_categories + HASH_BUCKETS, a.category_embedding)
        nn.init.normal_(self.category.weight, std=0.3)
        width = numeric_width(a.n_actions) + a.action_embedding + a.category_embedding
        self.trunk = TRUNKS[a.kind](width, a.hidden)
        self.heads = Heads(a.hidden, a.n_actions, a.n_categories)

    def embed(self, inputs: Inputs, room: int = 0) -> Tensor:
        """Scaled numbers and embeddings side by side, N x F, and ``room`` more columns without meaning."""
        parts = [inputs.x_NF, self.action(inputs.action_N), self.category(inputs.category_N)]
        if room:
            parts.append(inputs.x_NF.new_empty(len(inputs.x_NF), room))
        return torch.cat(parts, dim=1)
