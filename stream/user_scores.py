"""The detector of fake accounts as settings and the model in use want it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from models.fraud.own_terms import OwnScores, plain_scores
from stream.errors import ConfigurationError
from stream.fraud_alerts import usual_of
from stream.fraud_rules import read_rules
from stream.settings import Settings
from stream.user_watch import UserWatch, countable

__all__ = ["ScoresInUse", "user_watch"]

logger = structlog.get_logger("foreclick.groups")


class ScoresInUse:
    """Scores of users by the reference population of the model in use; by plain limits where it has none.

    Args:
        in_use: the artefact of the model that scores now; None before there is one.
    """

    def __init__(self, in_use: Callable[[], Any]) -> None:
        self._in_use = in_use
        self._artefact: Any = None
        self._scores = plain_scores()

    def __call__(self) -> OwnScores:
        """Those of now; the same object until another model is in use."""
        artefact = self._in_use()
        if artefact is not self._artefact:
            try:
                self._scores = OwnScores(usual_of(artefact))
            except ConfigurationError as error:
                # The model predicts as well as before; only its users are of another build.
                logger.warning("users are judged by plain limits", reason=str(error))
                self._scores = plain_scores()
            self._artefact = artefact
        return self._scores


def user_watch(settings: Settings, topic: str, scores: Callable[[], OwnScores]) -> UserWatch:
    """The detector.

    Args:
        topic: that evidence names.
        scores: of users, by the model in use.

    Raises:
        ConfigurationError: the file of rules is wrong.
    """
    fraud = settings.fraud
    return UserWatch(
        topic,
        limits=countable(read_rules(fraud.rules)),
        threshold=fraud.threshold,
        anomaly=fraud.anomaly,
        scores=scores,
    )
