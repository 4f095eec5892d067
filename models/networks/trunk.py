"""What every trunk is: numbers of one event and a user's state go in, the next state comes out.

The state of a user is one vector of ``state_width`` numbers, zeros for a new user. Its first ``hidden`` numbers are
what the heads read. A state row keeps it as float16; training carries it from chunk to chunk in float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor, nn

# The greatest float16: states are clamped to it before they are cast.
HALF_MAX = 65504.0
# A row goes through Kafka with every event of its user: the state must leave it far below a record's limit.
MOST_STATE_BYTES = 8192


class Trunk(nn.Module, ABC):
    """A network that carries a user's state from event to event."""

    state_width: int

    def __init__(self, inputs: int, hidden: int) -> None:
        """Make first weights.

        Args:
            inputs: F, numbers that one event gives.
            hidden: H, numbers that the heads read.
        """
        super().__init__()
        self.inputs, self.hidden = inputs, hidden

    @abstractmethod
    def forward(self, x_TBF: Tensor, state_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Advance B users by T events each.

        Args:
            x_TBF: float32 inputs, in time order.
            state_BS: float32, from before the first of them; zeros for a new user.

        Returns:
            h_TBH, what the heads read after each event, and the last state, B x S. The arguments are left unchanged.
        """

    def step(self, x_NF: Tensor, state_NS: Tensor) -> Tensor:
        """Advance N users by one event: the next state, N x S, of a sequence of one event."""
        state: Tensor = self(x_NF[None], state_NS)[1]
        return state

    @abstractmethod
    def prepared(self) -> PreparedTrunk:
        """A copy of the weights laid out for serving; later changes of this trunk are not seen."""


class PreparedTrunk(Protocol):
    """A trained trunk for serving: float16 states, no gradients. Equals ``Trunk.step`` but for rounding."""

    hidden: int
    room: int

    def step(self, x_NK: Tensor, old_NS: Tensor, new_NS: Tensor) -> tuple[Tensor, ...]:
        """Advance N users by one event.

        Args:
            x_NK: float32, the inputs F, then ``room`` columns that are overwritten.
            old_NS: float16, the states before the event.
            new_NS: float16, overwritten by the states after it, clamped to what float16 holds. Other memory than
                ``old_NS``.

        Returns:
            What was computed, float32, before clamping; the last part is finite only if the whole state is.
        """
        ...
