"""The machine and the versions behind a set of figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tests.bench.processes import ROOT

LOCKED = {
    "quixstreams": "requirements-quix.lock",
    "bytewax": "requirements-bytewax.lock",
    "apache-flink": "requirements-flink.lock",
}
OURS = ("faust-streaming", "confluent-kafka", "torch", "numpy")


def machine(model: Path, broker: str, load_before: float) -> dict[str, Any]:
    """What ran where: printed with every set of figures, since those of two machines are not comparable.

    Args:
        load_before: processes that wanted a core before the bench began.
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "java": _java(),
        "broker": broker,
        "model": f"{model.parent.name}/{model.name}",
        "load_before": round(load_before, 2),
        "versions": {**{name: version(name) for name in OURS}, **locked_versions()},
    }


def said(about: Mapping[str, Any]) -> str:
    """The machine as a sentence of a report."""
    return (
        f"Machine: {about['processor']}, {about['cores']} cores that worker, broker, source and reader share, "
        f"{about['memory_gib']} GiB, {about['system']}, Python {about['python']}, {about['java']}, CPU only; "
        f"load before: {about['load_before']}. Model {about['model']}. "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + "."
    )


def locked_versions() -> dict[str, str]:
    """Versions of the peers, as their lock files name them."""
    found = {}
    for name, file in LOCKED.items():
        text = (ROOT / "tests" / "bench" / "peers" / file).read_text()
        match = re.search(rf"^{re.escape(name)}==(\S+)", text, re.MULTILINE)
        found[name] = match[1] if match else "?"
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _java() -> str:
    try:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    except FileNotFoundError:
        return "none"
    return (said.splitlines() or ["?"])[0]
