"""What the stage of labels tells in Prometheus: what became of labels, and how good the detectors are by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream.label_join import Tally
from stream.label_records import is_churn
from stream.labels_stage import LabelCounts
from stream.metrics import Metrics, StageMetrics

__all__ = ["LabelMetrics"]


class LabelMetrics(StageMetrics):
    """What the stage of labels tells, in the worker's registry.

    Args:
        metrics: the worker's.
        tally: counts over this worker's partitions of labels; asked whenever somebody looks.
    """

    def __init__(self, metrics: Metrics, tally: Callable[[], Tally]) -> None:
        registry = metrics.registry
        self._dead_letters = metrics.dead_letters
        self.records = Counter(
            "foreclick_labels_records_total",
            "Labels and notes that were processed and committed",
            registry=registry,
        )
        self.orders = Counter(
            "foreclick_labels_orders_total", "Orders that labels may be about, known now", registry=registry
        )
        self.labels = Counter(
            "foreclick_labels_total", "Labels by what became of them", ("outcome",), registry=registry
        )
        for outcome in ("joined", "waiting", "older"):
            self.labels.labels(outcome)
        self.audits = Counter("foreclick_audits_total", "Subjects sent to the audit", registry=registry)
        self.mismatches = Counter(
            "foreclick_labels_position_mismatch_total",
            "As foreclick_position_mismatch_total",
            registry=registry,
        )
        self._rows = Gauge(
            "foreclick_labels_rows", "Users with labels or notes, estimated", registry=registry
        )
        self._lag = Gauge(
            "foreclick_labels_lag_records", "Records not yet committed", ("partition",), registry=registry
        )
        registry.register(_Judged(tally))

    def committed(self, counts: LabelCounts, received_s: float, committed_s: float) -> None:  # noqa: ARG002
        """Step 9 of a micro-batch."""
        self.records.inc(counts.records)
        self.orders.inc(counts.orders)
        self.audits.inc(counts.audits)
        for outcome, count in counts.outcomes.items():
            self.labels.labels(outcome).inc(count)
        for reason, count in counts.dead_letters.items():
            self._dead_letters.labels(reason).inc(count)


class _Judged(Collector):
    """Precision and recall of the detectors, as the labels of this worker's partitions know them now."""

    def __init__(self, tally: Callable[[], Tally]):
        self._tally = tally

    def collect(self) -> Iterable[Metric]:
        tally = self._tally()
        precision = GaugeMetricFamily(
            "foreclick_alert_precision",
            "Of the flagged subjects that have a label, the share whose label agrees; NaN without one",
            labels=("detector",),
        )
        recall = GaugeMetricFamily(
            "foreclick_alert_recall",
            "Of all fraud, as the audit estimates it, the share that was flagged; NaN before labels tell",
            labels=("detector", "subject"),
        )
        labelled = GaugeMetricFamily(
            "foreclick_alert_labelled", "Flagged subjects by their label", labels=("detector", "label")
        )
        for kind in tally.kinds:
            precision.add_metric((kind,), tally.precision(kind))
            right, wrong = tally.labelled(kind)
            labelled.add_metric((kind, "right"), right)
            labelled.add_metric((kind, "wrong"), wrong)
            for subject in ("order", "user"):
                if f"{kind}/{subject}" in tally.detectors and not is_churn(kind):
                    recall.add_metric((kind, subject), tally.recall(kind, subject))
        audits = GaugeMetricFamily(
            "foreclick_audit_sample",
            "Unflagged subjects of the audit by their label",
            labels=("subject", "label"),
        )
        for subject, audit in tally.audits.items():
            audits.add_metric((subject, "fraud"), audit.fraud)
            audits.add_metric((subject, "genuine"), audit.genuine)
            audits.add_metric((subject, "none"), audit.drawn - audit.fraud - audit.genuine)
        yield from (precision, recall, labelled, audits)
