"""Churn alerts as records: what ``stream.silence`` says, in the alert's JSON with CloudEvents headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from models.return_odds import ReturnOdds
from stream.alerts import Alert, severity_of
from stream.outputs import Headers, constant_headers, printable_subject
from stream.rendering import rfc3339
from stream.silence import EXPECTED, Said

__all__ = ["ALERT_TYPE", "ChurnAlertRenderer"]

#: CloudEvents type of every alert.
ALERT_TYPE: Final = "foreclick.alert.v1"
_DAY_S: Final = 86_400
_json: Final = msgspec.json.encode


class ChurnAlertRenderer:
    """Renders the churn alerts of a source topic, of all its partitions alike.

    Args:
        topic, topic_id: the source; the id as readable text.
        source: CloudEvents source, a URI reference.
        horizon_s: coming back later than this is churn, seconds.
        threshold: of the chance of coming back within the horizon; below it a silence is an alert.
        odds: of a model that has return odds; without, the chance is the gap head's.
    """

    def __init__(
        self,
        *,
        topic: str,
        topic_id: str,
        source: str,
        horizon_s: int,
        threshold: float,
        odds: ReturnOdds | None = None,
    ) -> None:
        self.horizon_s, self.threshold, self.odds = horizon_s, threshold, odds
        self._topic, self._topic_id, self._horizon = topic, topic_id, _words(horizon_s)
        self._topic_json = _json(topic).decode()
        self._constant_headers = constant_headers(ALERT_TYPE, source)

    def messages(self, said: Sequence[Said], partition: int) -> list[tuple[bytes, bytes, Headers]]:
        """Key, value and headers of each alert; the value is ``alert`` as JSON."""
        if not said:
            return []
        times = rfc3339(np.array([one.event_time_ms for one in said], np.int64))
        prefix = f"{self._topic_id}/{partition}"
        users = [one.key.decode() for one in said]
        # Many run out at once: numbers and names become JSON by one call for all, and the object is written straight.
        millionths = np.array([one.silence.return_millionths for one in said], np.int64)
        percents = np.rint(millionths / 1e6 * 100).astype(np.int64).tolist()
        scores = ((1_000_000 - millionths) / 1e6).tolist()
        numbers = _json(scores)[1:-1].decode().split(",")
        # Within a JSON string every quote follows a backslash, so this stands between two strings only.
        names = _json(users)[2:-2].decode().split('","')
        begins = f'{{"id":"{prefix}/'
        reason = '"reasons":[{"code":"silence","text":"silent for '
        back = f"; back within {self._horizon}: "
        horizon = f',"horizon_s":{self.horizon_s}}}],"evidence":[{{"user_id":"'
        source = f',"source":{{"topic":{self._topic_json},"partition":{partition},"offset":'
        made: list[tuple[bytes, bytes, Headers]] = []
        for one, time, user, name, percent, score, number in zip(
            said, times, users, names, percents, scores, numbers, strict=True
        ):
            kind, key, (last_ms, _, deadline_ms, _), time_ms, offset = one
            subject = user if user.isprintable() else printable_subject(user)
            if kind == EXPECTED:
                silence_s = (time_ms - last_ms) // 1000
                alert_id = f"{prefix}/{offset}/{kind}/{subject}/{deadline_ms}"
                value = (
                    f'{begins}{offset}/{kind}/{name}/{deadline_ms}","kind":"{kind}","subject_type":"user",'
                    f'"subject":"{name}","score":{number},"probability":{number},"severity":"{severity_of(score)}",'
                    f'"event_time_ms":{time_ms},{reason}{_words(silence_s)}{back}{percent}%","silence_s":{silence_s}'
                    f'{horizon}{name}","event_time_ms":{last_ms}{source}{offset}}}}}],"members":[],'
                    f'"approximate":false,"supersedes":null,"held_back":0}}'
                ).encode()
            else:
                alert_id, value = one.id(prefix, subject), self.alert(one, partition).as_json()
            headers: Headers = [
                *self._constant_headers,
                ("ce_id", alert_id.encode()),
                ("ce_time", time),
                ("ce_subject", subject.encode()),
            ]
            made.append((key, value, headers))
        return made

    def alert(self, said: Said, partition: int) -> Alert:
        """The alert about a silence or about its end."""
        silence, user, prefix = said.silence, said.key.decode(), f"{self._topic_id}/{partition}"
        silence_s = (said.event_time_ms - silence.last_ms) // 1000
        if said.kind == EXPECTED:
            chance = silence.return_millionths / 1e6
            score, time_ms, supersedes = round(1 - chance, 6), silence.last_ms, None
            reason = {
                "code": "silence",
                "text": f"silent for {_words(silence_s)}; back within {self._horizon}: {chance:.0%}",
            }
        else:
            score, time_ms = 0.0, said.event_time_ms
            supersedes = said._replace(kind=EXPECTED, offset=silence.offset).id(prefix, user)
            reason = {"code": "returned", "text": f"back after {_words(silence_s)}"}
        return Alert(
            id=said.id(prefix, user),
            kind=said.kind,
            subject_type="user",
            subject=user,
            score=score,
            # What the model's survival function says; it is a probability by itself.
            probability=None if supersedes else score,
            severity=severity_of(score),
            event_time_ms=said.event_time_ms,
            reasons=[{**reason, "silence_s": silence_s, "horizon_s": self.horizon_s}],
            evidence=[
                {
                    "user_id": user,
                    "event_time_ms": time_ms,
                    "source": {"topic": self._topic, "partition": partition, "offset": said.offset},
                }
            ],
            supersedes=supersedes,
        )


def _words(seconds: float) -> str:
    if seconds >= 2 * _DAY_S:
        return f"{round(seconds / _DAY_S)} days"
    return f"{seconds / 3600:.1f} hours"
