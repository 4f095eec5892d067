"""The arrows of the house, read from the imports of every file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT) for package in ("stream", "models") for path in (ROOT / package).rglob("*.py")
)
PURE = [
    Path("stream/events.py"),
    Path("stream/event_columns.py"),
    Path("stream/sessions.py"),
    Path("stream/rows.py"),
    Path("stream/batching.py"),
    Path("stream/activation.py"),
    Path("stream/model_step.py"),
    Path("stream/outputs.py"),
    Path("stream/packed_rows.py"),
    Path("stream/user_vectors.py"),
    Path("stream/rendering.py"),
    Path("stream/canvas.py"),
    Path("stream/prediction_values.py"),
    Path("stream/dead_letters.py"),
    Path("stream/silence.py"),
    Path("stream/moments.py"),
    Path("stream/silence_fold.py"),
    Path("stream/churn_alerts.py"),
    Path("stream/idle_partitions.py"),
    Path("models/churn.py"),
    Path("models/return_odds.py"),
    Path("models/older.py"),
    Path("stream/alerts.py"),
    Path("stream/alert_calibration.py"),
    Path("stream/label_join.py"),
    Path("stream/label_records.py"),
    Path("stream/partitioner.py"),
    Path("stream/timeline.py"),
    Path("stream/wording.py"),
    Path("stream/order_brushing.py"),
    Path("stream/engagements.py"),
    Path("stream/item_farms.py"),
    Path("stream/boosted_items.py"),
    Path("stream/crowd_alerts.py"),
    Path("stream/shared_devices.py"),
    Path("stream/buyer_rings.py"),
    Path("stream/insistence.py"),
    Path("stream/fraud_alerts.py"),
    Path("stream/group_detectors.py"),
    Path("stream/group_sources.py"),
    Path("stream/group_due.py"),
    Path("stream/brushed_shops.py"),
    Path("stream/user_news.py"),
    Path("stream/user_row.py"),
    Path("stream/user_watch.py"),
    Path("models/split.py"),
    *(
        path
        for path in FILES
        if path.parent in {Path("stream/formats"), Path("models/baselines"), Path("models/fraud")}
    ),
]
# What looks at the world: files, processes, the network, other threads, chance, the clock. pathlib may find the
# schemas that are shipped beside the code: they are constants.
WORLD = {"os", "io", "shutil", "tempfile", "subprocess", "socket", "select", "ssl", "urllib", "http"}
WORLD |= {
    "asyncio",
    "threading",
    "multiprocessing",
    "concurrent",
    "signal",
    "random",
    "secrets",
    "uuid",
    "time",
}
ACTS = {"open", "print", "input", "write_text", "write_bytes", "mkdir", "unlink"}
CLOCKS = {"now", "utcnow", "today", "time_ns", "monotonic", "perf_counter"}
COMMAND_LINE = {"typer", "rich", "click"}


def imports(file: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively; write the whole name"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def importers(*packages: str) -> set[Path]:
    """The files that import one of the top-level packages."""
    return {file for file in FILES if any(name.split(".")[0] in packages for name in imports(file))}


def inside(file: Path, *folders: str) -> bool:
    return any(file.is_relative_to(folder) for folder in folders)


def test_models_never_import_the_stream() -> None:
    """Networks and training know nothing of Kafka, Faust or the command line."""
    assert [file for file in importers("stream") if inside(file, "models")] == []


def test_torch_stays_in_models() -> None:
    """Only models import torch, so that everything else starts quickly and another runtime can replace it."""
    assert [file for file in importers("torch") if not inside(file, "models")] == []


def test_faust_and_aiokafka_stay_in_the_engine() -> None:
    """What relies on Faust or aiokafka stands in the engine, beside the broker, or in app.py."""
    allowed = ("stream/engine", "stream/broker", "stream/app.py")
    assert [file for file in importers("faust", "mode", "aiokafka") if not inside(file, *allowed)] == []


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    """Arrows point inward: no part knows of the commands that call it, or of how they are written on a terminal."""
    outside = [file for file in FILES if not inside(file, "stream/cli")]
    assert [
        file for file in outside if any(f"{name}.".startswith("stream.cli.") for name in imports(file))
    ] == []
    assert [file for file in importers("typer", "click") if not inside(file, "stream/cli")] == []


@pytest.mark.parametrize("file", PURE, ids=str)
def test_pure_core_does_not_look_at_the_world(file: Path) -> None:
    """Decoding, folding, batching and rendering do no I/O and take the clock as an argument."""
    names = set(imports(file))
    assert {name.split(".")[0] for name in names} & (WORLD | COMMAND_LINE) == set()
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Call)
    }
    assert called & (CLOCKS | ACTS) == set()


@pytest.mark.parametrize("file", PURE, ids=str)
def test_pure_core_imports_nothing_of_the_stream_but_pure_core(file: Path) -> None:
    """A pure file that imported an impure one would be pure in name only."""
    allowed = {*PURE, Path("stream/errors.py"), Path("stream/formats/__init__.py")}
    for name in imports(file):
        if name.split(".")[0] == "stream":
            parts = name.split(".")
            found = [
                Path(*parts[:length]).with_suffix(".py")
                for length in range(len(parts), 1, -1)
                if (ROOT / Path(*parts[:length]).with_suffix(".py")).exists()
            ] or [Path(*parts[:-1]) / "__init__.py", Path(*parts) / "__init__.py"]
            assert set(found) & allowed, f"{file} imports {name}"


def test_stage_knows_nothing_of_clicks() -> None:
    """The protocol of a micro-batch is the same for every stage: it imports no event, fold or model."""
    known = {name for name in imports(Path("stream/stage.py")) if name.split(".")[0] in {"stream", "models"}}
    assert {name.split(".")[1] for name in known} <= {"errors", "stage", "batching", "moments"}


def test_file_names_tell_a_story() -> None:
    """No file is a drawer for what had no place."""
    drawers = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
    assert [file for file in FILES if drawers & set(file.stem.split("_"))] == []
