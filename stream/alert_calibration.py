"""Probabilities of alerts, from labels: an isotonic curve a detector, of the counts that the labels stage keeps. Pure.

A score orders the alerts of one detector and is no probability. Where enough subjects that a detector flagged have a
label, the share that was right, by score, is one: neighbouring bins of scores are pooled until it rises with the score
(pool adjacent violators), and each pool is smoothed by one subject either way, so that no few labels say never or
always. Between the pools' mean scores the curve is a straight line, beyond them flat.

The stage of labels writes its counts to the control topic when a label has changed them, a record a partition, in its
own transaction; every worker reads that topic whole, so all of them say the same, whoever owns the labels.

Only flagged subjects have a score here, so it is the probability of being right given that there is an alert.

Source: Ayer et al. (1955), "An empirical distribution function for sampling with incomplete information".
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable
from typing import Literal

import msgspec

from stream.label_join import ANY, SCORE_BINS, Detector, Tally, tallied

__all__ = ["AlertCalibration", "Curve", "LabelledAlerts", "LabelledScores"]


class Curve(msgspec.Struct, frozen=True):
    """Of one detector: probabilities at scores, both rising, and the labels that they were counted from."""

    scores: list[float]
    probabilities: list[float]
    labels: int

    def at(self, score: float) -> float:
        """The probability that an alert with this score is right."""
        place = bisect_right(self.scores, score)
        if place == 0:
            return self.probabilities[0]
        if place == len(self.scores):
            return self.probabilities[-1]
        low, high = self.scores[place - 1], self.scores[place]
        share = (score - low) / (high - low)
        below, above = self.probabilities[place - 1], self.probabilities[place]
        return round(below + share * (above - below), 6)


class AlertCalibration(msgspec.Struct, frozen=True):
    """Curves by detector; a detector without one has too few labels."""

    curves: dict[str, Curve] = {}

    @classmethod
    def of_counts(cls, tally: Tally, min_labels: int) -> AlertCalibration:
        """The curves of the detectors that have enough labels.

        Args:
            tally: over all partitions.
            min_labels: fewer are not enough.
        """
        curves = {}
        for kind in tally.kinds:
            parts = [each for name, each in tally.detectors.items() if name.rpartition("/")[0] == kind]
            right = [sum(each.right[place] for each in parts) for place in range(SCORE_BINS)]
            wrong = [sum(each.wrong[place] for each in parts) for place in range(SCORE_BINS)]
            if kind != ANY and sum(right) + sum(wrong) >= max(min_labels, 1):
                curves[kind] = _curve(right, wrong)
        return cls(curves)

    def probability(self, kind: str, score: float) -> float | None:
        """That an alert is right; None of a detector without a curve."""
        curve = self.curves.get(kind)
        return None if curve is None else curve.at(score)


class LabelledScores(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record of the control topic: what one partition of labels has counted, ``Tally.detectors``."""

    partition: int
    detectors: dict[str, Detector]
    kind: Literal["labels"] = "labels"
    schema: Literal["foreclick.control.v1"] = "foreclick.control.v1"

    @property
    def key(self) -> bytes:
        """Of the record: compaction keeps the newest of each partition."""
        return f"labels/{self.partition}".encode()


class LabelledAlerts:
    """What all partitions of labels have counted, as the control topic tells every worker.

    Args:
        min_labels: of a detector; fewer give no probability.

    Attributes:
        calibration: of the newest counts.
    """

    def __init__(self, min_labels: int) -> None:
        self.calibration = AlertCalibration()
        self._min_labels = min_labels
        self._newest: dict[int, Tally] = {}

    def follow(self, values: Iterable[bytes | None]) -> None:
        """Take records of the control topic in their order; those of other kinds say nothing here."""
        told = False
        for value in values:
            with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
                found = _decode(value or b"")
                self._newest[found.partition] = Tally(found.detectors)
                told = True
        if told:
            self.calibration = AlertCalibration.of_counts(tallied(self._newest.values()), self._min_labels)


_decode = msgspec.json.Decoder(LabelledScores).decode


def _curve(right: list[int], wrong: list[int]) -> Curve:
    # A pool: sum of the bins' middles weighted by their labels, right ones, all.
    pools: list[tuple[float, int, int]] = []
    for place, (yes, no) in enumerate(zip(right, wrong, strict=True)):
        if not yes + no:
            continue
        pools.append(((place + 0.5) / SCORE_BINS * (yes + no), yes, yes + no))
        while len(pools) > 1 and _share(pools[-2]) >= _share(pools[-1]):
            last, before = pools.pop(), pools.pop()
            pools.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    return Curve(
        [round(weighted / count, 6) for weighted, _, count in pools],
        [round(_share(pool), 6) for pool in pools],
        sum(count for _, _, count in pools),
    )


def _share(pool: tuple[float, int, int]) -> float:
    return (pool[1] + 1) / (pool[2] + 2)
