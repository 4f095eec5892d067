"""What operators see in Prometheus. Base units, the prefix ``foreclick_``, never a user in a label.

Everything is observed once a micro-batch: label children are resolved once, and histograms of single events are
counted from arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stream.engine.scorer import Released
from stream.engine.service import EngineMetrics
from stream.groups_stage import GroupCounts
from stream.scoring import Counts
from stream.silence import EXPECTED, RETURNED

LATENCY_BOUNDS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
MAX_NAMES = 1000  # unknown fields that are remembered, so that a hostile producer cannot fill the memory
SIZE_BOUNDS = (1, 4, 16, 64, 256, 1024, 2048, 4096, 8192, 16384)


class ArrayHistogram(Collector):
    """A histogram that takes an array of observations at once; prometheus_client's takes one at a time."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float], registry: CollectorRegistry):
        self._name, self._documentation = name, documentation
        self._bounds = np.asarray(bounds, np.float64)
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: np.ndarray) -> None:
        # A value equal to a bound belongs below it: Prometheus buckets are "less than or equal".
        self._counts += np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())

    def quantile(self, q: float) -> float:
        """Upper bound of the bucket that holds the quantile; 0 before anything was observed."""
        total = self._counts.sum()
        if not total:
            return 0.0
        bucket = int(np.searchsorted(np.cumsum(self._counts), q * total))
        return float(self._bounds[min(bucket, len(self._bounds) - 1)])

    def collect(self) -> Iterable[Metric]:
        cumulative = np.cumsum(self._counts).tolist()
        labels = [str(bound) for bound in self._bounds.tolist()] + ["+Inf"]
        yield HistogramMetricFamily(
            self._name,
            self._documentation,
            buckets=list(zip(labels, cumulative, strict=True)),
            sum_value=self._sum,
        )


class StageMetrics(EngineMetrics):
    """What every engine tells alike; each stage has a counter and gauges of its own names for it."""

    mismatches: Counter
    _rows: Gauge
    _lag: Gauge

    def position_mismatch(self) -> None:
        self.mismatches.inc()

    def lag(self, partition: int, records: int) -> None:
        self._lag.labels(str(partition)).set(records)

    def rows(self, rows: int) -> None:
        self._rows.set(rows)

    def forget(self, partition: int) -> None:
        if (str(partition),) in self._lag._metrics:
            self._lag.remove(str(partition))


class Metrics(StageMetrics):
    """Every metric of a worker, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"foreclick_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"foreclick_{name}", text, labels, registry=registry)

        self.events = counter("events_total", "Records of the source that were processed and committed")
        self.predictions = counter("predictions_total", "Predictions that were committed")
        self.duplicates = counter(
            "duplicates_dropped_total", "Events dropped because their id was seen before"
        )
        self.late = counter("late_events_total", "Events older than their user's last, applied with gap 0")
        self.erased = counter("users_erased_total", "Users erased by a tombstone")
        self.alerts = counter("alerts_total", "Alerts that were committed", ("kind",))
        for kind in (EXPECTED, RETURNED):
            self.alerts.labels(kind)
        self._source_silent = gauge(
            "source_silent", "1 when no partition here has had a record for so long that nobody can be missed"
        )
        self.transactions = counter("transactions_total", "Committed transactions")
        self.dead_letters = counter(
            "dlq_records_total", "Rejected records sent to the dead letters", ("reason",)
        )
        unknown = gauge(
            "unknown_names", "Names not known so far, each counted once (fields are sampled)", ("kind",)
        )
        self._unknown_actions, self._unknown_fields = unknown.labels("action"), unknown.labels("field")
        self._fields: set[str] = set()
        self.mismatches = counter(
            "position_mismatch_total", "Partitions whose state and committed offset differed"
        )
        self.released = counter("batch_released_total", "Micro-batches given to the model", ("reason",))
        self.event_to_score = ArrayHistogram(
            "foreclick_event_to_score_seconds",
            "From the record's timestamp to the commit of its score",
            LATENCY_BOUNDS_S,
            registry,
        )
        self.batch_size = Histogram(
            "foreclick_batch_size",
            "Events in a micro-batch of the model",
            buckets=SIZE_BOUNDS,
            registry=registry,
        )
        self.batch_wait = Histogram(
            "foreclick_batch_wait_seconds",
            "Wait of a micro-batch's oldest event for the model",
            registry=registry,
        )
        self._inference = Histogram(
            "foreclick_inference_duration_seconds",
            "One step of the model",
            ("model", "version"),
            registry=registry,
        )
        self.commit = Histogram(
            "foreclick_commit_duration_seconds", "Receipt of chunks to commit", registry=registry
        )
        self._model_info = gauge("model_info", "The model in use", ("model", "version"))
        self.activations = counter(
            "model_activations_total", "Activations that were asked of this worker", ("result",)
        )
        for result in ("activated", "refused"):
            self.activations.labels(result)
        self._rows = gauge("state_rows", "Rows in the local stores, estimated")
        self._lag = gauge("consumer_lag_records", "Records not yet committed", ("partition",))
        self.owned = gauge("partitions_owned", "Partitions that the group gave to this worker")
        self.open = gauge("partitions_open", "Partitions that are being processed")
        self.degraded = gauge("degraded", "1 when the model fell back from its device to the CPU")
        self._unanswered = gauge("broker_unanswered_seconds", "Since a broker has answered this worker")
        # Of a registry of our own, which has no collector of the process.
        gauge("start_time_seconds", "When this worker started, Unix time").set_to_current_time()
        self._reasons = {name: self.released.labels(name) for name in ("full", "deadline", "flush")}

    def use_model(self, model: str, version: str) -> None:
        """Name the model that steps from now on."""
        self._model_info.clear()
        self._model_info.labels(model, version).set(1)
        self._inference_of_model = self._inference.labels(model, version)

    def activated(self, result: str) -> None:
        """An activation was ``activated`` or ``refused``."""
        self.activations.labels(result).inc()

    def committed(self, counts: Counts, received_s: float, committed_s: float) -> None:
        """Step 9 of a micro-batch."""
        self.events.inc(counts.events)
        self.predictions.inc(counts.predictions)
        self.duplicates.inc(counts.duplicates)
        self.late.inc(counts.late)
        self.erased.inc(counts.erased)
        for kind, count in counts.alerts.items():
            self.alerts.labels(kind).inc(count)
        self.transactions.inc()
        for reason, count in counts.dead_letters.items():
            self.dead_letters.labels(reason).inc(count)
        self._unknown_actions.set(counts.unknown_actions)
        if counts.unknown_fields and len(self._fields) < MAX_NAMES:
            self._fields |= counts.unknown_fields
            self._unknown_fields.set(len(self._fields))
        self.event_to_score.observe(committed_s - counts.timestamps_ms / 1000)
        self.commit.observe(committed_s - received_s)

    def model_released(self, released: Released) -> None:
        self._reasons[released.reason.value].inc()
        self.batch_size.observe(released.events)
        self.batch_wait.observe(released.waited_s)
        self._inference_of_model.observe(released.inference_s)

    def partitions(self, owned: int, open_: int) -> None:
        self.owned.set(owned)
        self.open.set(open_)

    def unanswered(self, seconds: float) -> None:
        self._unanswered.set(seconds)

    def source_silent(self, silent: bool) -> None:
        self._source_silent.set(silent)

    def text(self) -> bytes:
        """The exposition format that /metrics answers with."""
        return generate_latest(self.registry)


class GroupMetrics(StageMetrics):
    """What the second stage tells, in the worker's registry."""

    def __init__(self, worker: Metrics) -> None:
        registry, self.alerts = worker.registry, worker.alerts

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"foreclick_{name}", text, labels, registry=registry)

        self.events = counter("groups_events_total", "Records of groups that were processed and committed")
        self.late = counter("groups_late_events_total", "Records of groups older than the limit, left out")
        self.damaged = counter("groups_damaged_records_total", "Records of groups that could not be read")
        self.due = counter("groups_due_rows_total", "Rows looked at because something in them was due")
        self.transactions = counter("groups_transactions_total", "Committed transactions of groups")
        self.held_back = counter(
            "alerts_held_back_total", "Findings that said nothing new in a cool-down", ("kind",)
        )
        self.approximate = counter(
            "alerts_approximate_total", "Alerts that a bound on memory made approximate"
        )
        self.mismatches = counter("groups_position_mismatch_total", "As foreclick_position_mismatch_total")
        self.commit = Histogram(
            "foreclick_groups_commit_duration_seconds", "Receipt of chunks to commit", registry=registry
        )
        self._rows = Gauge("foreclick_groups_rows", "Rows of groups, estimated", registry=registry)
        self._lag = Gauge(
            "foreclick_groups_lag_records", "Records not yet committed", ("partition",), registry=registry
        )

    def committed(self, counts: GroupCounts, received_s: float, committed_s: float) -> None:
        """Step 9 of a micro-batch."""
        self.events.inc(counts.events)
        self.late.inc(counts.late)
        self.damaged.inc(counts.damaged)
        self.due.inc(counts.due)
        self.transactions.inc()
        self.approximate.inc(counts.approximate)
        for kind, count in counts.alerts.items():
            self.alerts.labels(kind).inc(count)
        for kind, count in counts.held_back.items():
            self.held_back.labels(kind).inc(count)
        self.commit.observe(committed_s - received_s)
