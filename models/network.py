"""The whole network: embeddings, a trunk that carries state, heads on its hidden part."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models.errors import ArtefactError
from models.features import HASH_BUCKETS, ITEM_BUCKETS, ITEM_UNSEEN, LAGS, Inputs, numeric_width
from models.heads import Heads
from models.networks.gru import GRU
from models.networks.linear import Linear
from models.networks.lstm import LSTM
from models.networks.mlp import MLP
from models.networks.transformer import Transformer
from models.networks.trunk import MOST_STATE_BYTES, Trunk

TRUNKS: dict[str, type[Trunk]] = {
    "linear": Linear,
    "mlp": MLP,
    "gru": GRU,
    "lstm": LSTM,
    "transformer": Transformer,
}


@dataclass(frozen=True)
class Architecture:
    """Sizes that fix every weight's shape. ``kind`` names a file of ``models.networks``."""

    kind: str = "lstm"
    hidden: int = 64
    action_embedding: int = 8
    category_embedding: int = 16
    item_embedding: int = 4
    n_actions: int = 11
    n_categories: int = 0
    n_extras: int = 0

    def as_dict(self) -> dict[str, object]:
        """As a manifest keeps it."""
        return asdict(self)


class Network(nn.Module):
    """Inputs of one event and the state before it -> the state after it -> heads."""

    def __init__(self, architecture: Architecture) -> None:
        """Make first weights.

        Raises:
            ArtefactError: the kind is none of this build's, or its state is too wide for a row.
        """
        super().__init__()
        a = architecture
        if a.kind not in TRUNKS:
            raise ArtefactError(
                f"This build has no architecture {a.kind!r}, only {', '.join(TRUNKS)}. Deploy the matching build."
            )
        self.architecture = a
        self.action = nn.Embedding(a.n_actions + 1, a.action_embedding)
        self.category = nn.Embedding(1 + a.n_categories + HASH_BUCKETS, a.category_embedding)
        nn.init.normal_(self.category.weight, std=0.3)
        self.item = nn.Embedding(ITEM_UNSEEN + 1 + ITEM_BUCKETS, a.item_embedding)
        nn.init.zeros_(self.item.weight)  # an item that training says nothing of says nothing
        width = numeric_width(a.n_actions, a.n_extras) + a.action_embedding * (1 + LAGS)
        width += a.category_embedding + a.item_embedding
        self.trunk = TRUNKS[a.kind](width, a.hidden)
        if 2 * self.trunk.state_width > MOST_STATE_BYTES:
            raise ArtefactError(
                f"Architecture {a.kind!r} with {a.hidden} hidden units carries {2 * self.trunk.state_width:,} bytes of "
                f"state a user, and a row has room for {MOST_STATE_BYTES:,}. Choose fewer hidden units."
            )
        self.heads = Heads(a.hidden, a.n_actions, a.n_categories)

    def embed(self, inputs: Inputs, room: int = 0) -> Tensor:
        """Scaled numbers and embeddings side by side, N x F, and ``room`` more columns without meaning."""
        action, category, item = (
            self.action(inputs.action_NL),
            self.category(inputs.category_N),
            self.item(inputs.item_N),
        )
        parts = [inputs.x_NF, action.flatten(1), category, item]
        if room:
            parts.append(inputs.x_NF.new_empty(len(inputs.x_NF), room))
        return torch.cat(parts, dim=1)
