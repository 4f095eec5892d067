"""Laws of the probabilities that labels give to scores."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.alert_calibration import AlertCalibration, LabelledAlerts, LabelledScores
from stream.label_join import SCORE_BINS, Detector, Tally, tallied

COUNTS = st.lists(st.integers(0, 50), min_size=SCORE_BINS, max_size=SCORE_BINS)


def tally_of(right: list[int], wrong: list[int], kind: str = "rates") -> Tally:
    return Tally({f"{kind}/user": Detector(sum(right) + sum(wrong), right, wrong)})


def spread(**by_bin: int) -> list[int]:
    return [by_bin.get(f"b{place}", 0) for place in range(SCORE_BINS)]


@settings(deadline=None)
@given(COUNTS, COUNTS, st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_a_higher_score_is_never_less_probable(
    right: list[int], wrong: list[int], scores: list[float]
) -> None:
    """Whatever the counts; and it is a probability, never quite 0 or 1."""
    made = AlertCalibration.of_counts(tally_of(right, wrong), 1)
    if not sum(right) + sum(wrong):
        assert made.curves == {}
        return
    found = [made.probability("rates", score) for score in sorted(scores)]
    assert found == sorted(found, key=lambda p: p or 0)
    assert all(p is not None and 0 < p < 1 for p in found)


def test_many_labels_at_a_score_give_the_share_that_was_right() -> None:
    """300 of 400 at .975, 40 of 400 at .525; between them a line."""
    made = AlertCalibration.of_counts(tally_of(spread(b19=300, b10=40), spread(b19=100, b10=360)), 200)
    assert made.probability("rates", 1.0) == pytest.approx(301 / 402, abs=1e-6)
    assert made.probability("rates", 0.0) == pytest.approx(41 / 402, abs=1e-6)
    middle = made.probability("rates", (0.975 + 0.525) / 2)
    assert middle == pytest.approx((301 + 41) / 402 / 2, abs=1e-5)


def test_bins_that_fall_are_pooled() -> None:
    """A dip among few labels is chance, not a law."""
    made = AlertCalibration.of_counts(tally_of(spread(b10=30, b12=20), spread(b10=20, b12=30)), 1)
    assert made.probability("rates", 0.5) == made.probability("rates", 0.7) == pytest.approx(51 / 102)


def test_a_detector_with_few_labels_has_no_probability() -> None:
    """Null stays null until there are enough; one detector's labels say nothing of another."""
    made = AlertCalibration.of_counts(tally_of(spread(b19=100), spread(b19=99)), 200)
    assert made.probability("rates", 0.9) is None
    enough = AlertCalibration.of_counts(tally_of(spread(b19=100), spread(b19=100)), 200)
    assert enough.probability("brushing", 0.9) is None
    assert AlertCalibration.of_counts(tally_of(spread(b19=500), spread(), "any"), 200).curves == {}


@settings(deadline=None)
@given(COUNTS, COUNTS, COUNTS)
def test_every_worker_has_the_curves_of_all_partitions(
    right: list[int], wrong: list[int], more: list[int]
) -> None:
    """Each partition's newest counts, whoever owns it; other records of the control topic say nothing."""
    told = LabelledAlerts(1)
    first, second = tally_of(right, wrong), tally_of(more, wrong)
    records = [
        msgspec.json.encode(LabelledScores(number, tally.detectors))
        for number, tally in ((0, tally_of(wrong, wrong)), (0, first), (1, second))
    ]
    told.follow([None, b"", b"\xff", b'{"kind": "activate"}', *records[:2]])
    assert told.calibration == AlertCalibration.of_counts(first, 1)
    told.follow(records[2:])
    assert told.calibration == AlertCalibration.of_counts(tallied([first, second]), 1)
    told.follow([b"{}"])
    assert told.calibration == AlertCalibration.of_counts(tallied([first, second]), 1)
