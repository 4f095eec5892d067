"""Composition only: settings -> Faust app, the clicks stage, the operators' HTTP server.

``faust -A stream.app worker`` finds ``app`` here; it is built on first access, so importing this module does nothing.
Faust keeps its sensors, timers, commands and agents on low-rate topics; its consumer, conductor and table recovery
stay off the hot path, which is the engine.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import faust
import structlog
from faust.app.base import BootStrategy

from models.errors import ForeclickError
from stream.alert_calibration import LabelledAlerts
from stream.broker.client import connect
from stream.broker.topics import describe
from stream.clicks_stage import clicks_rounds, clicks_work
from stream.engine import requirements
from stream.engine.exit import end_process
from stream.engine.kafka_log import TopicSet
from stream.engine.model_watch import ModelWatch
from stream.engine.scorer import Scorer
from stream.engine.service import Engine, Plan
from stream.engine.store import Store, make_data_dir
from stream.engine.tables import StateTable
from stream.formats import record_adapter
from stream.group_records import routed
from stream.groups_app import Groups, group_records, told_kinds
from stream.health import Health, readiness
from stream.label_notes import click_notes
from stream.labels_app import Labels, label_outputs, noting
from stream.logs import configure_logs
from stream.metrics import Metrics
from stream.model_exchange import ModelExchange
from stream.model_step import ServedModel
from stream.partition_names import MODEL_KEY, NAME_KEY, PartitionNames
from stream.rows import read
from stream.scoring import ClicksRequest
from stream.settings import Kafka, Settings, load_settings
from stream.silence import PartitionTimers, moved_timers
from stream.stage import Rendered, Work
from stream.topics import fresh_start

logger = structlog.get_logger("foreclick.app")


class Clicks:
    """The clicks stage of one worker: model, scorer, metrics and HTTP around an engine."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.metrics = Metrics()
        self.engine = Engine(settings, self.prepare, release=self.release, metrics=self.metrics)
        self.labelled = LabelledAlerts(settings.labels.calibrate_from)
        self.groups = (
            Groups(settings, self.engine, self.metrics, self.labelled, self.artefact_in_use)
            if settings.groups.enabled
            else None
        )
        self.labels = Labels(settings, self.metrics) if settings.labels.enabled else None
        self.not_loaded: str | None = "model not loaded"
        self.health = Health(
            settings.http, ready=self.ready, metrics=self.metrics_text, state=self.state, stats=self.stats
        )
        self.scorer: Scorer[ClicksRequest, Rendered] | None = None
        self.models = ModelExchange(
            settings, load_model, told=self.metrics.activated, exchanged=self.exchanged
        )
        self.watch = ModelWatch(settings.kafka, settings.control_topic)
        self._watching: asyncio.Task[None] | None = None

    async def prepare(self) -> Plan:
        """Listen for operators, check the topics, load the model; then the group may be joined."""
        await self.health.start()
        settings = self.settings
        logger.info("settings", **settings.described())
        topics, group_partitions = await asyncio.to_thread(topic_set, settings)
        told = await asyncio.to_thread(label_outputs, settings)
        topics = replace(topics, outputs={**topics.outputs, **told})
        control = await self.watch.start()
        self.labelled.follow(control)
        await self.models.begin(control)
        rounds = clicks_rounds(
            settings, lambda: self.models.served, topic=topics.source, topic_id=topics.source_id
        )
        self.scorer = Scorer(
            rounds,
            max_batch_size=settings.max_batch_size,
            max_batch_wait_s=settings.max_batch_wait_ms / 1000,
            joining=self.engine.joining,
            spent_s=self.engine.spent_s,
            observe=self.metrics.model_released,
        )
        self.scorer.start()
        self.not_loaded = None
        spare_the_collector()
        self._watching = asyncio.create_task(self._follow(), name="models")
        served = self.models.served
        logger.info(
            "model loaded",
            model=served.artefact.name,
            version=served.artefact.version,
            device=served.engine.device_name,
            http=f"http://{settings.http.host}:{self.health.port}",
        )
        adapt = record_adapter(settings.input_format)

        async def score(request: ClicksRequest) -> Rendered:
            assert self.scorer is not None
            return await self.scorer.score(request, len(request.decoded.events))

        def make_work(partition: int, store: Store) -> Work[Any]:
            remembered = chain(store.reserved(NAME_KEY), store.reserved(MODEL_KEY))
            mark = store.mark()
            watermark_ms = 0 if mark is None else mark.watermark_ms
            timers = PartitionTimers(store, watermark_ms, store.said_before())
            work = clicks_work(
                settings,
                topic=topics.source,
                topic_id=topics.source_id,
                partition=partition,
                score=score,
                names=PartitionNames(remembered),
                timers=timers if settings.churn.alerts else None,
                adapt=adapt,
                observe=self.metrics.committed,
                groups=group_records(settings, group_partitions),
            )
            notes = click_notes(told_kinds(settings), settings.labels.audit_rate)
            return noting(settings, told, work, notes, lambda: self.labelled.calibration)

        # Also while nobody is missed: rows change, and their timers are needed when alerts are switched on again.
        return Plan(topics, make_work, moved_timers)

    async def _follow(self) -> None:
        try:
            async for records in self.watch.follow():
                self.labelled.follow(records)
                await self.models.follow(records)
        except Exception as error:
            end_process("watching for another model", error)

    def artefact_in_use(self) -> Any:
        """Of the model that scores now; None while none is loaded."""
        return self.models.served.artefact if self.models.loaded else None

    def exchanged(self, served: ServedModel) -> None:
        """Tell the metrics which model scores from now on."""
        self.metrics.use_model(served.artefact.name, served.artefact.version)
        self.metrics.degraded.set(served.engine.degraded)

    async def release(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self.watch.stop()
        if self.scorer is not None:
            await self.scorer.stop()
        await self.health.stop()

    # ------------------------------------------------------------------ seen from outside

    def ready(self) -> str | None:
        if self.not_loaded is not None:
            return self.not_loaded
        if reason := self._ready(self.engine):
            return reason
        for name, stage in (("groups", self.groups), ("labels", self.labels)):
            # A worker may have no partition of theirs: there are fewer of them than workers may be.
            if stage is not None and stage.engine.parts and (reason := self._ready(stage.engine)):
                return f"{name}: {reason}"
        return None

    def _ready(self, engine: Engine) -> str | None:
        parts = engine.parts.values()
        commits = [part.last_commit_s for part in parts if part.last_commit_s is not None]
        return readiness(
            {part.number: part.state.value for part in parts},
            lag_records=sum(engine.lag().values()),
            last_commit_s=max(commits, default=None),
            unanswered_s=engine.watch.unanswered_s if parts else 0.0,
            max_age_s=self.settings.commit_max_age_s,
        )

    def metrics_text(self) -> bytes:
        self.metrics.degraded.set(self.models.loaded and self.models.served.engine.degraded)
        return self.metrics.text()

    def state(self, user: str) -> dict[str, Any] | None:
        """The row of a user in this worker's partitions."""
        key = user.encode()
        found = self.engine.row(key)
        if found is None:
            return None
        part, raw = found
        row = read(raw, part.store.said_before().ends_ms(key))
        return {"user_id": user, "partition": part.number, "bytes": len(raw), **row}

    def stats(self) -> dict[str, Any]:
        """Where every partition stands, and where the worker's time went."""
        engine = self.engine
        return {
            "model": self.models.served.label if self.models.loaded else None,
            **engine.described(),
            "groups": self.groups.stats() if self.groups is not None else None,
            "labels": self.labels.stats() if self.labels is not None else None,
            "spent_s": {step: round(seconds, 6) for step, seconds in engine.spent_s.items()},
            "process_s": round(time.process_time(), 3),
        }


def faust_credentials(kafka: Kafka) -> faust.types.auth.CredentialsT | None:
    """The same security for Faust's own producer and agents as for the engine; None for a plain broker."""
    context = kafka.aiokafka().get("ssl_context")
    if kafka.security_protocol.startswith("SASL"):
        password = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
        # Without a context Faust silently means SASL_PLAINTEXT, which is what no context means here too.
        return faust.SASLCredentials(
            mechanism=kafka.sasl_mechanism,
            username=kafka.sasl_username,
            password=password,
            ssl_context=context,
        )
    return faust.SSLCredentials(context=context) if context is not None else None


def spare_the_collector() -> None:
    """Let Python's cycle collector look rarely, and never at what is loaded for good.

    A micro-batch makes some ten containers an event and no cycles; by default the collector walked them so often that
    it took a third of the rendering (12.5 against 8.1 us an event).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


def load_model(folder: Path | None, device: str) -> ServedModel:
    """A verified artefact and a step engine over it; without a folder the bundled one.

    Raises:
        ModelError: it cannot be served; the message says why.
    """
    from models.registry import bundled, load_artefact
    from models.runtime import StepEngine

    artefact = load_artefact(folder or bundled())
    return ServedModel(artefact, StepEngine(artefact, device=device))


def topic_set(settings: Settings) -> tuple[TopicSet, int]:
    """The topics as the broker has them, and how many partitions that of groups has (0 without groups).

    Raises:
        TopicError: one is missing, or the changelog has not the partitions of the source.
    """
    client = settings.kafka.librdkafka()
    names = [
        settings.clicks_topic,
        settings.changelog_topic,
        settings.predictions_topic,
        settings.dead_letters_topic,
        *([settings.alerts_churn_topic] if settings.churn.alerts else []),
        *([settings.user_vectors_topic] if settings.user_vectors == "topic" else []),
    ]
    groups = [settings.groups_topic] if settings.groups.enabled else []
    found = {name: describe(client, name) for name in [*names, settings.control_topic, *groups]}
    partitions = found[settings.groups_topic].partitions if groups else 0
    source, changelog = found[settings.clicks_topic], found[settings.changelog_topic]
    outputs = {name: found[name].partitions for name in names[2:]}
    outputs |= {routed(settings.groups_topic, number): partitions for number in range(partitions)}
    return TopicSet.over(source, changelog, outputs, fresh_start(settings, changelog.name)), partitions


class Boot(BootStrategy):
    """Starts the engine after Faust's own services; Faust's consumer only when some agent reads a low-rate topic."""

    def server(self) -> Iterable[Any]:
        yield from super().server()
        clicks = cast("ForeclickApp", self.app).clicks
        yield clicks.engine
        if clicks.groups is not None:
            yield clicks.groups.engine
        if clicks.labels is not None:
            yield clicks.labels.engine

    @property
    def enable_kafka_consumer(self) -> bool:  # type: ignore[override]
        return bool(self.app.agents)


class ForeclickApp(faust.App):
    """The Faust application; ``clicks`` is the stage on the hot path, ``table`` its rows."""

    BootStrategy = Boot
    clicks: Clicks
    table: StateTable

    async def on_first_start(self) -> None:
        try:
            # Before Faust's producer asks: that one answers a broker that is not there, or refuses our password,
            # with a traceback.
            await asyncio.to_thread(connect, self.clicks.settings.kafka.librdkafka())
        except ForeclickError as error:
            end_process("start", error)
        await super().on_first_start()


def create_app(settings: Settings) -> ForeclickApp:
    """A Faust app over the settings; nothing is connected before it is started."""
    requirements.check()
    configure_logs(settings.log_format, settings.log_level)
    make_data_dir(settings.data_dir)
    app = ForeclickApp(
        f"{settings.app_id}-low",  # Faust's own group: its agents must not share the engine's
        broker="aiokafka://" + settings.kafka.bootstrap_servers.replace(",", ";"),
        broker_credentials=faust_credentials(settings.kafka),
        store="memory://",
        datadir=settings.data_dir / "faust",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
    )
    app.clicks = Clicks(settings)
    app.table = StateTable(app, app.clicks.engine, read, name="state", partitions=settings.topics.partitions)
    return app


def run_worker(settings: Settings) -> None:
    """Run the worker until SIGTERM or SIGINT; the process exits with 0 after the open transactions have ended."""
    # quiet, and no spinner: standard output and error are not Faust's to decorate.
    worker = faust.Worker(create_app(settings), quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None
    code: Any = 0
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        code = ended.code or 0
    # Everything is closed. Taking the interpreter and torch apart would only add seconds to a rolling restart.
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        app = create_app(load_settings())
    except ForeclickError as error:
        end_process("start", error)
    globals()["app"] = app
    return app
