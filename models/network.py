"""The whole network: embeddings, a trunk that carries state, heads on its hidden part and on a shortcut past it.

The state of a user begins with A + 1 logits that are linear in the last event's numbers, of the next action and of a
purchase; then comes the trunk's state, and the places of ``models.older``. The heads read the first A + 1 + H of its
numbers. The logits begin as a Markov
chain of the user's own, made of smoothed log counts, and the trunk learns only what a linear model misses.

Source: wide and deep parts trained together (Cheng et al. 2016).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from models.errors import ArtefactError
from models.fake_order import FakeOrder
from models.features import (
    HASH_BUCKETS,
    ITEM_BUCKETS,
    ITEM_UNSEEN,
    LAGS,
    FeatureSpec,
    Inputs,
    numbers_of,
    numeric_width,
)
from models.heads import Heads
from models.networks.gru import GRU
from models.networks.linear import Linear
from models.networks.lstm import LSTM
from models.networks.mlp import MLP
from models.networks.transformer import Transformer
from models.networks.trunk import MOST_STATE_BYTES, Trunk
from models.older import OLDER

TRUNKS: dict[str, type[Trunk]] = {
    "linear": Linear,
    "mlp": MLP,
    "gru": GRU,
    "lstm": LSTM,
    "transformer": Transformer,
}


HABITS = ("habit", "next_habit")
# Of the numbers and embeddings that the trunk reads; the shortcut takes them whole.
INPUT_DROPOUT = 0.1


@dataclass(frozen=True)
class Architecture:
    """Sizes that fix every weight's shape. ``kind`` names a file of ``models.networks``.

    ``fake_order_trees``: of the supervised head, 0 without one.
    """

    kind: str = "lstm"
    hidden: int = 64
    action_embedding: int = 8
    category_embedding: int = 16
    item_embedding: int = 4
    n_actions: int = 11
    n_categories: int = 0
    n_extras: int = 0
    fake_order_trees: int = 0

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
        self.shortcut_width = a.n_actions + 1
        self.read_width = self.shortcut_width + a.hidden
        #: Where the trunk's part of the state ends, and where that of the older categories does.
        self.trunk_end = self.shortcut_width + self.trunk.state_width
        self.older_end = self.state_width = self.trunk_end + OLDER
        self.direct = nn.Parameter(torch.zeros(self.shortcut_width, width))
        self.habit_weight = nn.Parameter(torch.zeros(len(HABITS)))
        self.fake_order: FakeOrder | None = None
        if a.fake_order_trees:
            self.attach(FakeOrder(a.n_actions, a.n_extras, a.fake_order_trees))
        self._refuse_wide_state()
        self.heads = Heads(self.shortcut_width, self.read_width, a.n_actions, a.n_categories)

    def attach(self, fake_order: FakeOrder) -> None:
        """Take a supervised head, whose part of the state follows all others.

        Raises:
            ArtefactError: the state gets too wide for a row.
        """
        self.fake_order = fake_order
        self.architecture = replace(self.architecture, fake_order_trees=fake_order.forest.trees)
        self.state_width = self.older_end + fake_order.state_width
        self._refuse_wide_state()

    def _refuse_wide_state(self) -> None:
        if 2 * self.state_width > MOST_STATE_BYTES:
            a = self.architecture
            raise ArtefactError(
                f"Architecture {a.kind!r} with {a.hidden} hidden units carries {2 * self.state_width:,} bytes of "
                f"state a user, and a row has room for {MOST_STATE_BYTES:,}. Choose fewer hidden units."
            )

    @torch.no_grad()
    def begin_from(self, spec: FeatureSpec) -> None:
        """Let the next action begin as the user's own habits, so that only what they miss is left to learn.

        The logits become the log shares of the training users, plus half of how the user's own shares differ from
        them, plus half of how those after this action do.
        """
        n_actions = self.architecture.n_actions
        for weight, name in zip(self.habit_weight, HABITS, strict=True):
            weight.copy_(torch.from_numpy(spec.sd[numbers_of(name, n_actions)]).mean() / len(HABITS))
        self.heads.small.bias[:n_actions] = torch.from_numpy(spec.action_share).log()

    def shortcut_weight(self, direct: Tensor | None = None, habit_weight: Tensor | None = None) -> Tensor:
        """What leads from an event's numbers past the trunk to the heads, (A + 1) x F.

        The habits, each action's own number to its own logit, and what is learned for all numbers; the network's own
        unless others are given.
        """
        n_actions = self.architecture.n_actions
        direct = self.direct if direct is None else direct
        habit_weight = self.habit_weight if habit_weight is None else habit_weight
        weight, action = direct.clone(), torch.arange(n_actions, device=direct.device)
        for habit, name in zip(habit_weight, HABITS, strict=True):
            weight[action, numbers_of(name, n_actions).start + action] += habit
        return weight

    def forward(self, inputs_TB: Inputs, users: int, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Advance B users by T events each.

        Args:
            inputs_TB: T x B rows, in time order.
            users: B.
            state_BS: float32, from before the first event; zeros for a new user. A supervised head's part is not
                advanced: it learns nothing here.

        Returns:
            What the heads read after each event, T x B x (A + 1 + H), and the last state, B x S, whose older categories
            are those from before: the histories that training goes through know them.
        """
        x_TBF = self.embed(inputs_TB).unflatten(0, (-1, users))
        shortcut_TBD = nn.functional.linear(x_TBF, self.shortcut_weight())
        if self.training:
            x_TBF = nn.functional.dropout(x_TBF, INPUT_DROPOUT)
        h_TBH, last_BS = self.trunk(x_TBF, state_BS[:, self.shortcut_width : self.trunk_end])
        rest_BS = state_BS[:, self.trunk_end :]
        return torch.cat([shortcut_TBD, h_TBH], dim=2), torch.cat([shortcut_TBD[-1], last_BS, rest_BS], dim=1)

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
