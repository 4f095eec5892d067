"""What is found by whoever compares what workers wrote with what they should have written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

EXAMPLES = 5


@dataclass
class Verdict:
    r"""What the oracle found; every count but the first five must be 0, ``repeats`` with one exception.

    Args:
        lost: input positions without a right prediction or dead letter.
        twice: input positions with more than one output that are not mere repeats.
        contradicting: outputs that say something else than the fold, whose position is not in the input, or that are
            in another partition than their topic has for it.
        out_of_order: outputs after those of a later event, rows and positions older than the ones before them.
        repeats: further copies with the same ``ce_id`` and the same content.
        mismatching_rows: users whose row in the changelog differs, is missing or should not be there.
        mismatching_groups: rows of the second stage that its fold of what it was told does not write, or not so.
        mismatching_positions: partitions whose ``\\0src`` in the changelog is not the input's end.
        mismatching_local: rows of local stores that differ from the input up to that store's own position.
        hanging: topics with a transaction that nobody ended.
        alerts: of the second stage and about churn, in rounds of the product; ``alert_kinds`` counts them by kind.
        labels: what became of those that were put, in rounds of the product.
        quiet_transactions: of the second stage that only quiet partitions of the input explain.
    """

    events: int = 0
    users: int = 0
    predictions: int = 0
    dead_letters: int = 0
    stores: int = 0
    lost: int = 0
    twice: int = 0
    contradicting: int = 0
    out_of_order: int = 0
    repeats: int = 0
    mismatching_rows: int = 0
    mismatching_groups: int = 0
    mismatching_positions: int = 0
    mismatching_local: int = 0
    hanging: int = 0
    alerts: int = 0
    quiet_transactions: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    alert_kinds: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def exact(self) -> bool:
        """Nothing lost, doubled, contradicted or left over; repeats are judged by who asks."""
        return not (
            self.lost
            or self.twice
            or self.contradicting
            or self.out_of_order
            or self.mismatching_rows
            or self.mismatching_groups
            or self.mismatching_positions
            or self.mismatching_local
            or self.hanging
        )

    def note(self, text: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)

    def __str__(self) -> str:
        counts = " ".join(f"{name}={value}" for name, value in asdict(self).items() if name != "examples")
        return f"{counts} {self.examples}" if self.examples else counts
