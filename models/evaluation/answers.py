"""What really came for the measured users, which events count for which head, and how near predictions came."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.columns import Columns
from models.evaluation import measures
from models.evaluation.intervals import Estimate, Resamples
from models.evaluation.predictions import Predictions
from models.split import next_gap_s, scored_events
from models.training_log import targets_of

HEADS = ("next_action", "purchase", "gap", "next_category")
#: Purchase is measured again among the k-th events of their sessions.
SESSION_EVENTS = (1, 2, 3, 5, 8, 13)


class Answers:
    """The truth about N events of the measured users.

    Args:
        columns: each user's events contiguous, in time order, from the first; rows from 0 in that order.
        purchase_code: of the vocabulary, -1 without one.
        gap_unit_s: the unit in which gap errors are told, seconds.
        from_ms: events before this moment are history and do not count.

    ``missing`` says, for each head that cannot be measured on these events, why.
    """

    def __init__(
        self,
        columns: Columns,
        purchase_code: int,
        gap_unit_s: float = 1.0,
        from_ms: int | None = None,
    ) -> None:
        self.columns, self.gap_unit_s = columns, gap_unit_s
        self.user_N = columns["row"]
        self.users = int(self.user_N[-1]) + 1 if len(self.user_N) else 0
        self.resamples = Resamples(self.users)
        counted = scored_events(columns, purchase_code, from_ms)
        self.purchase_N = targets_of(columns, purchase_code).purchase
        self.gap_s_N = next_gap_s(columns)
        self.at = {
            "next_action": np.flatnonzero(counted.action),
            "purchase": np.flatnonzero(counted.purchase),
            "gap": np.flatnonzero(counted.gap),
            "next_category": np.flatnonzero(counted.category),
        }
        self.missing = self._missing(purchase_code)

    def heads(self) -> tuple[str, ...]:
        """The heads that can be measured."""
        return tuple(head for head in HEADS if head not in self.missing)

    def _missing(self, purchase_code: int) -> dict[str, str]:
        missing: dict[str, str] = {}
        if not len(self.at["next_action"]):
            missing["next_action"] = missing["gap"] = "no measured user has a second event"
        if purchase_code < 0:
            missing["purchase"] = "the model's actions hold no purchase"
        elif not len(self.at["purchase"]):
            missing["purchase"] = "the log knows the end of no measured session"
        else:
            label = self.purchase_N[self.at["purchase"]]
            if not label.any():
                missing["purchase"] = "no purchase follows any measured event within its session"
            elif label.all():
                missing["purchase"] = "a purchase follows every measured event within its session"
        if not len(self.at["next_category"]):
            missing["next_category"] = "no measured event but a user's first has a category"
        return missing

    # ------------------------------------------------------------------ one head each, N rows or (N, ...)

    def next_action(self, p_NA: NDArray) -> list[Estimate]:
        """See ``measures.next_action``."""
        at = self.at["next_action"]
        return measures.next_action(p_NA[at], self.columns["action"][at], self.user_N[at], self.resamples)

    def purchase(self, p_N: NDArray, threshold: float | None = None) -> list[Estimate]:
        """See ``measures.purchase``; and the area under the ROC curve after k events of the session.

        ``threshold``: fitted on the tuning users; None fits it on the measured users of other folds.
        """
        at = self.at["purchase"]
        p, label, user = p_N[at], self.purchase_N[at], self.user_N[at]
        if threshold is None:
            threshold_N = measures.cross_fitted_threshold(p, label, user)
        else:
            threshold_N = np.full(len(p), threshold)
        estimates = measures.purchase(p, label, threshold_N, user, self.resamples)
        position = self.columns["session_position"][at]
        for k in SESSION_EVENTS:
            now = position == k
            if label[now].any() and not label[now].all():
                area, _ = measures.areas(p[now], label[now], user[now], self.resamples)
                estimates.append(Estimate(f"roc_auc_after_{k}", area.value, area.draws_R, area.n))
        return estimates

    def gap(self, gap_s_N: NDArray, nats_N: NDArray | None = None) -> list[Estimate]:
        """See ``measures.gap``, in the log's unit; with ``nats_N`` (of the gap before each event) the log-likelihood.

        The log-likelihood is of log seconds, with a lump of probability at one second and below.
        """
        at = self.at["gap"]
        user = self.user_N[at]
        unit = self.gap_unit_s
        estimates = measures.gap(gap_s_N[at] / unit, self.gap_s_N[at] / unit, user, self.resamples)
        if nats_N is not None:
            # An event that counts has a follower, and that is the next in order.
            estimates.append(self.resamples.mean("log_likelihood", -nats_N[at + 1].astype(np.float64), user))
        return estimates

    def next_category(self, code_NK: NDArray, p_NK: NDArray | None = None) -> list[Estimate]:
        """See ``measures.next_category``; with probabilities also the calibration error of the likeliest."""
        at = self.at["next_category"]
        code, user = self.columns["category"][at], self.user_N[at]
        estimates = measures.next_category(code_NK[at], code, user, self.resamples)
        if p_NK is not None:
            hit = code_NK[at, 0] == code
            estimates.append(measures.calibration_error("ece", p_NK[at, 0], hit, user, self.resamples))
        return estimates

    # ------------------------------------------------------------------

    def of_model(self, head: str, made: Predictions, threshold: float | None) -> list[Estimate]:
        """The estimates of one head of a network."""
        if head == "next_action":
            return self.next_action(made.next_action)
        if head == "purchase":
            return self.purchase(made.purchase, threshold)
        if head == "gap":
            return self.gap(made.gap_s, made.gap_nats)
        return self.next_category(made.next_category, made.next_category_probability)

    def of_baseline(self, head: str, predicted: NDArray) -> list[Estimate]:
        """The estimates of a simple method for one head."""
        measure = {
            "next_action": self.next_action,
            "purchase": self.purchase,
            "gap": self.gap,
            "next_category": self.next_category,
        }[head]
        return measure(predicted)  # type: ignore[operator]
