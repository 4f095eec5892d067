"""What lies in deploy/: no cluster and no Docker are at hand here, so what can be wrong on paper is looked for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream.label_join import Tally
from stream.label_metrics import LabelMetrics
from stream.metrics import GroupMetrics, Metrics
from stream.settings import PREFIX, Settings, _variables

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXTS = [path for path in sorted(DEPLOY.rglob("*")) if path.is_file()]
YAML = [path for path in TEXTS if path.suffix in {".yml", ".yaml"}]
CLOSING_S = 0.6 * 8 + 3 + 5 + 5  # the last transaction, goodbyes of producer and consumer, stores


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def rules() -> list[dict[str, Any]]:
    (document,) = documents(DEPLOY / "prometheus" / "foreclick.rules.yml")
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return json.loads((DEPLOY / "grafana" / "dashboards" / "foreclick.json").read_text())["panels"]


def exposed() -> set[str]:
    """Names that a worker's /metrics may show."""
    names: set[str] = set()
    metrics = Metrics()
    GroupMetrics(metrics)
    LabelMetrics(metrics, Tally)
    for line in metrics.text().decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            names |= (
                {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
            )
    return names


def settings() -> set[str]:
    """Every variable that a worker takes from its environment."""
    known = dict(_variables(Settings, PREFIX))
    return set(known) | {f"{name}_FILE" for name, secret in known.items() if secret}


def kubernetes(kind: str) -> dict[str, Any]:
    (found,) = [d for d in documents(DEPLOY / "kubernetes" / "foreclick.yaml") if d["kind"] == kind]
    return found


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_manifest_can_be_read(path: Path) -> None:
    """A tab or a lost indent is found here and not at night."""
    assert all(isinstance(document, dict) for document in documents(path))


def test_every_metric_of_a_rule_exists() -> None:
    """A rule on a name that nobody exposes never fires, and says nothing about that."""
    for rule in rules():
        named = set(re.findall(r"foreclick_\w+", rule["expr"]))
        assert named or rule["expr"].startswith("up"), rule
        assert named <= exposed(), f"{rule['alert']}: {sorted(named - exposed())}"
        assert rule["expr"].count("(") == rule["expr"].count(")"), rule
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
        assert rule["labels"]["severity"] in {"critical", "warning"}


@pytest.mark.parametrize(
    "metric",
    [
        "foreclick_consumer_lag_records",
        "foreclick_dlq_records_total",
        "foreclick_degraded",
        "foreclick_position_mismatch_total",
        "foreclick_transactions_total",
        "foreclick_start_time_seconds",
        "foreclick_broker_unanswered_seconds",
        "foreclick_groups_lag_records",
        "foreclick_labels_lag_records",
        "foreclick_groups_position_mismatch_total",
        "foreclick_labels_position_mismatch_total",
    ],
)
def test_what_goes_wrong_has_a_rule(metric: str) -> None:
    """Lag, dead letters, a lost device or marker, commits that stop, a worker that ends after each start, brokers."""
    assert any(metric in rule["expr"] for rule in rules())


def test_workers_that_are_all_gone_are_noticed() -> None:
    """Targets that are discovered go with their pods, and a series that is not there is not 0."""
    (down,) = [rule for rule in rules() if rule["alert"] == "ForeclickDown"]
    assert 'absent(up{job="foreclick"})' in down["expr"]


def test_every_metric_of_the_dashboard_exists_and_every_panel_has_a_unit() -> None:
    """An empty panel looks like a quiet night."""
    names = exposed()
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"foreclick_\w+", target["expr"]))
            assert named <= names, f"{panel['title']}: {sorted(named - names)}"
            assert target["expr"].count("(") == target["expr"].count(")"), target
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "prometheus"
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_setting_that_is_named_is_one(path: Path) -> None:
    """A worker refuses a variable that it does not know; better to hear it before the roll-out."""
    named = set(re.findall(rf"{PREFIX}[A-Z_]+", path.read_text()))
    assert named <= settings(), sorted(named - settings())


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_images_have_public_names_and_no_host(path: Path) -> None:
    """Where images come from is the machine's to say."""
    for image in re.findall(r"^\s*(?:image:|FROM)\s+(\S+)", path.read_text(), re.MULTILINE):
        assert "." not in image.partition("/")[0].partition(":")[0], image
        assert not image.endswith(":latest"), image


def test_the_image_runs_without_root_and_is_locked_by_hash() -> None:
    """What is installed is what was tested; what runs may do little."""
    lines = (DEPLOY / "Dockerfile").read_text()
    assert lines.count("FROM ") == 2
    assert re.search(r"^USER 10001:10001$", lines, re.MULTILINE)
    assert lines.index("USER 10001") < lines.index("ENTRYPOINT")
    assert lines.count("--require-hashes") == 2
    assert "HEALTHCHECK" in lines
    assert "/healthz" in lines


def test_lock_lists_the_installer_with_hashes() -> None:
    """The image takes the lines of uv from the lock before it has uv."""
    lock = (DEPLOY.parent / "requirements.lock").read_text().splitlines()
    start = next(number for number, line in enumerate(lock) if line.startswith("uv=="))
    end = next(number for number in range(start, len(lock)) if not lock[number].endswith("\\"))
    assert all("--hash=sha256:" in line for line in lock[start + 1 : end + 1])


def test_workers_keep_a_volume_each_and_may_end_in_order() -> None:
    """Two workers on one data directory refuse each other; a worker killed while it closes costs a session timeout."""
    stateful = kubernetes("StatefulSet")["spec"]
    pod = stateful["template"]["spec"]
    (container,) = pod["containers"]
    (claim,) = stateful["volumeClaimTemplates"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == "/var/lib/foreclick"
    assert "FORECLICK_DATA_DIR=/var/lib/foreclick" in (DEPLOY / "Dockerfile").read_text()
    assert pod["terminationGracePeriodSeconds"] >= CLOSING_S
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_disruptions_are_bounded_for_the_pods_that_there_are() -> None:
    """A budget that selects nothing bounds nothing."""
    labels = kubernetes("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    budget = kubernetes("PodDisruptionBudget")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert kubernetes("Service")["spec"]["selector"].items() <= labels.items()
    assert budget["maxUnavailable"] == 1


def test_secrets_are_files() -> None:
    """Never values in a manifest, never variables that a dump of the environment shows."""
    secret = {name for name, hidden in _variables(Settings, PREFIX) if hidden}
    for path in TEXTS:
        named = set(re.findall(rf"{PREFIX}[A-Z_]+", path.read_text()))
        assert not named & secret, path
    assert "secretKeyRef" not in (DEPLOY / "kubernetes" / "foreclick.yaml").read_text()
