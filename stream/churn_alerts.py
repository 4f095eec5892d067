"""Churn from silence over a file: the timers of ``stream.silence`` driven by the offline stage's own model step.

Event time alone moves the timers, so a log of a year takes as long as its events take to be scored, and the log's end
alerts nobody. The deadline of an event is looked for only where its timer could run out before the user's next event
in the micro-batch: within a session it never does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.churn import FIRST_SILENCE_S, ReturnCurves
from models.return_odds import ReturnOdds
from stream.alerts import severity_of
from stream.rounds import FoldedRound
from stream.scoring import ClicksRequest
from stream.silence import EXPECTED, RETURNED, Said, SilenceTimers, SortedIndex

__all__ = ["ChurnAlerts"]

_DAY_S = 86_400


class ChurnAlerts:
    """The alerts ``churn.expected`` and ``churn.returned`` of one partition's records.

    Args:
        topic: the source that evidence names.
        horizon_s: coming back later than this is churn, seconds.
        threshold: of the chance of coming back within the horizon; below it the silence is an alert.
        odds: of a model that has return odds; without, the chance is the gap head's.

    Attributes:
        counts: alerts so far, by kind.
    """

    def __init__(
        self, topic: str, horizon_s: float, threshold: float, odds: ReturnOdds | None = None
    ) -> None:
        self._topic, self._horizon_s, self._threshold, self._odds = topic, horizon_s, threshold, odds
        self._timers = SilenceTimers({}, SortedIndex())
        self._chances: dict[bytes, float] = {}
        self.counts = {EXPECTED: 0, RETURNED: 0}

    def of_round(self, request: ClicksRequest, folded: FoldedRound, scores: Any) -> list[dict[str, Any]]:
        """What the applied events of a micro-batch say, in their order.

        Args:
            request: the only one of the round.
            folded, scores: of ``stream.rounds.ClicksRounds.fold`` and ``step``.
        """
        decoded, applied = request.decoded, folded.folded.applied
        times_ms = folded.folded.columns["event_time_ms"]
        silences_s, chances = self._deadlines(folded.folded.columns["row"], times_ms, scores)
        alerts: list[dict[str, Any]] = []
        for number, (index, time_ms) in enumerate(zip(applied.tolist(), times_ms.tolist(), strict=True)):
            record = decoded.records[decoded.event_records[index]]
            said = self._timers.apply_event(record.key, time_ms, record.offset, silences_s[number] * 1000)
            alerts += [self._alert(one, request) for one in said]
            self._chances[record.key] = chances[number]
        self._timers.take_changes()  # there is no store that follows
        return alerts

    def _deadlines(self, row: np.ndarray, times_ms: np.ndarray, scores: Any) -> tuple[list[int], list[float]]:
        """Seconds of silence until the alert after each event, 0 for none, and the chance of a return then."""
        watermark_ms = np.maximum.accumulate(np.maximum(times_ms, self._timers.watermark_ms))
        order = np.lexsort((np.arange(len(row)), row))
        same = row[order][1:] == row[order][:-1]
        until_ms = np.full(len(row), np.iinfo(np.int64).max)
        until_ms[order[:-1][same]] = watermark_ms[order[1:][same]]
        # A late event counts as the user's last time, which is not before its own.
        open_ = np.flatnonzero(until_ms - times_ms > FIRST_SILENCE_S * 1000)
        silences_s, chances = np.zeros(len(row), np.int64), np.zeros(len(row))
        curves = ReturnCurves(
            self._horizon_s,
            scores.gap_mixture[open_].parameters(),
            self._odds,
            None if self._odds is None else scores.return_base[open_],
        )
        found = curves.deadlines(self._threshold)
        silences_s[open_] = found
        chances[open_] = curves.chance(np.maximum(found, 1).astype(np.float64))
        return silences_s.tolist(), chances.tolist()

    def _alert(self, said: Said, request: ClicksRequest) -> dict[str, Any]:
        self.counts[said.kind] += 1
        user, source = said.key.decode(), request.source_prefix.decode()
        silence_s = (said.event_time_ms - said.silence.last_ms) // 1000
        score = round(1 - self._chances[said.key], 6)
        if said.kind == EXPECTED:
            code, words = (
                "silence",
                f"silent for {_words(silence_s)}; back within {_words(self._horizon_s)}: ",
            )
            words += f"{self._chances[said.key]:.0%}"
        else:
            score, code, words = 0.0, "returned", f"back after {_words(silence_s)}"
        return {
            "id": said.id(source, user),
            "kind": said.kind,
            "subject_type": "user",
            "subject": user,
            "score": score,
            # What the model's survival function says; it is a probability by itself.
            "probability": score if said.kind == EXPECTED else None,
            "severity": severity_of(score),
            "event_time_ms": said.event_time_ms,
            "reasons": [
                {"code": code, "text": words, "silence_s": silence_s, "horizon_s": int(self._horizon_s)}
            ],
            "evidence": [
                {
                    "source": {"topic": self._topic, "partition": request.partition, "offset": said.offset},
                    "event_time_ms": said.silence.last_ms if said.kind == EXPECTED else said.event_time_ms,
                }
            ],
            "members": [],
            "approximate": False,
            "supersedes": None if said.kind == EXPECTED else self._expected_id(said, source, user),
            "held_back": 0,
        }

    @staticmethod
    def _expected_id(said: Said, source: str, user: str) -> str:
        expected = said._replace(kind=EXPECTED, offset=said.silence.offset)
        return expected.id(source, user)


def _words(seconds: float) -> str:
    if seconds >= 2 * _DAY_S:
        return f"{seconds / _DAY_S:.0f} days"
    return f"{seconds / 3600:.1f} hours"
