"""Probabilities of alerts, from labels: an isotonic curve a detector, of the counts that the labels stage keeps. Pure.

A score orders the alerts of one detector and is no probability. Where enough subjects that a detector flagged have a
label, the share that was right, by score, is one: neighbouring bins of scores are pooled until it rises with the score
(pool adjacent violators), and each pool is smoothed by one subject either way, so that no few labels say never or
always. Between the pools' mean scores the curve is a straight line, beyond them flat.

Only flagged subjects have a score here, so it is the probability of being right given that there is an alert.

Source: Ayer et al. (1955), "An empirical distribution function for sampling with incomplete information".
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import msgspec

from stream.errors import ConfigurationError
from stream.label_join import ANY, SCORE_BINS, Tally

__all__ = ["AlertCalibration", "Curve"]

_SCHEMA: Final = "foreclick.alert_calibration.v1"


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class AlertCalibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Curves by detector; a detector without one has too few labels."""

    curves: dict[str, Curve] = {}
    schema: str = _SCHEMA

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

    def as_json(self) -> bytes:
        """For a file."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    @classmethod
    def of_json(cls, text: bytes, name: str) -> AlertCalibration:
        """What ``as_json`` wrote.

        Args:
            name: of the file, for the error.

        Raises:
            ConfigurationError: it is no calibration.
        """
        try:
            found = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ConfigurationError(
                f"{name} is no calibration of alerts: {error}. Write it: foreclick labels calibrate"
            ) from None
        for kind, curve in found.curves.items():
            sound = 0 < len(curve.scores) == len(curve.probabilities) and found.schema == _SCHEMA
            rising = all(
                list(each) == sorted(each) and 0 <= each[0] <= each[-1] <= 1
                for each in (curve.scores, curve.probabilities)
                if each
            )
            if not (sound and rising and len(set(curve.scores)) == len(curve.scores)):
                raise ConfigurationError(
                    f"{name} has no rising curve of probabilities for {kind!r}. Write it: foreclick labels calibrate"
                )
        return found


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
