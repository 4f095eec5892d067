"""Model folders: ``<root>/<name>/<version>/`` with model.safetensors and manifest.json.

A version is written once, whole or not at all, and never changed. Loading trusts nothing: sizes, hash, format,
features and golden outputs are checked, and what does not fit is refused with the reason and what mends it.
Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.anomaly import Reference
from models.columns import WINDOW, Columns, blank_columns, sample_columns
from models.errors import ArtefactError
from models.fake_order import Calibration
from models.features import (
    ITEM_BUCKETS,
    FeatureSpec,
    declared,
    extras_of,
    features_of,
    missing_features,
    numeric_width,
)
from models.network import Architecture, Network
from models.return_odds import ReturnOdds
from models.vocabulary import DEFAULT_ACTIONS, ActionVocabulary, CategoryVocabulary

FORMAT = 3
WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
DEFAULT_CHURN_HORIZON_S = 2_592_000.0
# Other processors and libraries round matrix products otherwise, and the float16 state amplifies it; over the few
# events of the golden sample CPU and CUDA stay within 1e-3, while a wrong weight does not.
GOLDEN_TOLERANCE = 1e-3
# From which value on an answer counts as a yes, unless training has found better ones on its tuning users.
DEFAULT_THRESHOLDS = {"anomaly_score": 0.99, "churn_probability": 0.5, "purchase_probability": 0.5}
_SAMPLE_CATEGORIES = tuple(f"c{number}" for number in range(100))
_GOLDEN_OUTPUTS = ("next_action", "purchase_probability", "churn_probability", "terms", "anomaly_score")


@dataclass(frozen=True)
class Artefact:
    """A model that was checked and can be served.

    ``fingerprint``: the first 8 bytes of the weights' SHA-256, never 0; a state row names the weights that made it.
    """

    name: str
    version: str
    fingerprint: int
    manifest: dict[str, Any]
    actions: ActionVocabulary
    categories: CategoryVocabulary
    features: FeatureSpec
    reference: Reference
    network: Network
    state_width: int
    window: int
    churn_horizon_s: float
    longest_gap_s: float
    fake_order: Calibration | None = None
    return_odds: ReturnOdds | None = None

    @property
    def purchase_code(self) -> int:
        """The code of ``purchase``; -1, which no event has, where the vocabulary lacks it."""
        return self.actions.names.index("purchase") if "purchase" in self.actions.names else -1


def bundled() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).parent / "pretrained" / "shop-lstm" / "1"


def next_version(root: Path, name: str) -> str:
    """One more than the greatest whole number among a model's versions; 1 for its first."""
    folder = root / name
    taken = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return str(max(taken, default=0) + 1)


def refuse_existing(root: Path, name: str, version: str) -> None:
    """Raise ArtefactError if the version exists."""
    if (root / name / version).exists():
        raise ArtefactError(
            f"Model {name}/{version} exists in {root}, and a version is never overwritten. Choose another version."
        )


def save_artefact(root: Path, network: Network, manifest: dict[str, Any]) -> Path:
    """Write ``<root>/<name>/<version>`` whole or not at all; fills in hash, size and golden outputs.

    Args:
        root: the model store; made when missing.
        network: the weights.
        manifest: as ``describe`` makes it, with name and version.

    Raises:
        ArtefactError: the version exists.
    """
    folder = root / manifest["name"] / manifest["version"]
    refuse_existing(root, manifest["name"], manifest["version"])
    weights = save_tensors({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    manifest = {
        **manifest,
        "weights": {"file": WEIGHTS, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
    }
    artefact = _assemble(manifest, network)
    window, columns = _sample(artefact)
    manifest["golden"] = {
        "inputs": {
            "window_category": window.tolist(),
            "columns": {name: _plain(values) for name, values in columns.items()},
        },
        "outputs": _golden_outputs(artefact, window, columns),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (draft / WEIGHTS).write_bytes(weights)
        (draft / MANIFEST).write_text(_readable(manifest))
        draft.chmod(0o755)
        os.rename(draft, folder)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def unsaved(network: Network, manifest: dict[str, Any]) -> Artefact:
    """A model that is not on disk yet, to be measured by the engine that will serve it."""
    return _assemble({**manifest, "weights": {"sha256": "01" * 32}}, network)


def describe(
    name: str,
    version: str,
    architecture: Architecture,
    features: FeatureSpec,
    reference: Reference,
    *,
    churn_horizon_s: float = DEFAULT_CHURN_HORIZON_S,
    longest_gap_s: float = DEFAULT_CHURN_HORIZON_S,
    calibration: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A manifest without what ``save_artefact`` fills in.

    Args:
        calibration: by head, how its probabilities were calibrated on the tuning users.
    """
    return {
        "format": FORMAT,
        "name": name,
        "version": version,
        "architecture": architecture.as_dict(),
        "features": declared(features.extras),
        "extra": list(features.extras),
        "actions": list(features.actions.names[:-1]),
        "categories": list(features.categories.names),
        "window": WINDOW,
        "utc_offset_s": features.utc_offset_s,
        "churn_horizon_s": churn_horizon_s,
        "longest_gap_s": longest_gap_s,
        "known_items": np.flatnonzero(features.known_items).tolist(),
        "scaling": {
            "mean": features.mean.tolist(),
            "sd": features.sd.tolist(),
            "log_price_median": features.log_price_median.tolist(),
            "action_share": features.action_share.tolist(),
        },
        "anomaly": reference.as_dict(),
        "calibration": calibration or {},
        "thresholds": dict(DEFAULT_THRESHOLDS),
        "training": training or {},
        "metrics": {},
    }


def load_artefact(folder: Path) -> Artefact:
    """Read and check a model folder.

    Raises:
        ArtefactError: it is missing, truncated, changed, of another format or made for other features; the message
            says which and what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtefactError(
            f"Model folder {folder} does not exist. Name a folder <root>/<name>/<version>, or make one with "
            f"`foreclick train`."
        )
    manifest = _read_manifest(folder)
    try:
        return _verified(folder, manifest)
    except (
        *(SafetensorError, RuntimeError, KeyError, IndexError),
        *(TypeError, ValueError, AttributeError, OverflowError),
    ) as error:
        raise ArtefactError(
            f"Model {manifest['name']}/{manifest['version']} in {folder} contradicts its own manifest ({error}). Copy "
            f"the folder again from where it was made."
        ) from error


def _verified(folder: Path, manifest: dict[str, Any]) -> Artefact:
    """Every check beyond the manifest's own fields; whatever else is raised is a contradiction in it."""
    label = f"{manifest['name']}/{manifest['version']}"
    wanted = manifest["features"]
    made = [feature.name for feature in features_of(extras_of(wanted))]
    if missing := missing_features(wanted):
        raise ArtefactError(
            f"Model {label} expects {len(wanted)} features, this build makes {len(made)} (missing "
            f"{', '.join(missing)}). Deploy the matching build or pin {_earlier(manifest['version'])}."
        )
    if [feature["name"] for feature in wanted] != made:
        raise ArtefactError(
            f"Model {label} expects {len(wanted)} features, this build makes {len(made)} in another order or "
            f"number. Deploy the matching build or train the model again."
        )
    if manifest["window"] != WINDOW:
        raise ArtefactError(
            f"Model {label} reads a window of {manifest['window']} events, rows of this build hold {WINDOW}. Train the "
            f"model again."
        )
    weights = _read_weights(folder, manifest)
    with torch.random.fork_rng(devices=[]):  # a running program's chances are not for loading to draw from
        network = Network(Architecture(**manifest["architecture"]))
    network.load_state_dict(load_tensors(weights))
    artefact = _assemble(manifest, network)
    _check_golden(artefact, folder)
    return artefact


def untrained(
    root: Path,
    *,
    seed: int = 1,
    name: str = "untrained",
    version: str = "1",
    actions: tuple[str, ...] = DEFAULT_ACTIONS,
    categories: tuple[str, ...] = _SAMPLE_CATEGORIES,
    architecture: str = "lstm",
    hidden: int = 64,
    extras: tuple[str, ...] = (),
    **changes: Any,
) -> Path:
    """A valid model with random weights, for tests and timings; returns its folder.

    ``changes`` are further fields of the manifest.
    """
    sizes = Architecture(
        architecture,
        hidden,
        n_actions=len(actions) + 1,
        n_categories=len(categories),
        n_extras=len(extras),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(sizes)
    width = numeric_width(sizes.n_actions, len(extras))
    features = FeatureSpec(
        ActionVocabulary(actions),
        CategoryVocabulary(categories),
        utc_offset_s=0,
        log_price_median=np.full(len(categories) + 1, 3.0, np.float32),
        mean=np.zeros(width, np.float32),
        sd=np.full(width, 2.0, np.float32),
        known_items=np.arange(ITEM_BUCKETS) % 2 == 0,
        action_share=np.full(sizes.n_actions, 1 / sizes.n_actions, np.float32),
        extras=extras,
    )
    network.begin_from(features)
    nothing = np.zeros(0)
    reference = Reference.fit(nothing, nothing, np.zeros((0, 3), np.float32))
    manifest = describe(name, version, sizes, features, reference)
    return save_artefact(Path(root), network, {**manifest, **changes})


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise ArtefactError(
            f"Model folder {folder} has no {MANIFEST}. Name a folder <root>/<name>/<version>, or copy the model again."
        ) from error
    except ValueError as error:
        raise ArtefactError(
            f"The {MANIFEST} of model folder {folder} is truncated or damaged ({error}). Copy the folder again from "
            f"where it was made."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtefactError(
            f"Model folder {folder} has manifest format {found}, this build reads format {FORMAT}. Train the model "
            f"again with this build, or deploy the build that made it."
        )
    needed = {
        "name",
        "version",
        "architecture",
        "features",
        "actions",
        "categories",
        "scaling",
        "known_items",
        "anomaly",
        "calibration",
        "thresholds",
        "training",
        "metrics",
        "weights",
        "golden",
        "window",
        "utc_offset_s",
        "churn_horizon_s",
        "longest_gap_s",
    }
    if lacking := sorted(needed - manifest.keys()):
        raise ArtefactError(
            f"The {MANIFEST} of model folder {folder} lacks {', '.join(lacking)}. Copy the folder again from where it "
            f"was made."
        )
    return manifest


def _read_weights(folder: Path, manifest: dict[str, Any]) -> bytes:
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except FileNotFoundError as error:
        raise ArtefactError(f"Model folder {folder} has no {WEIGHTS}. Copy the model again.") from error
    size = manifest["weights"]["bytes"]
    if len(weights) != size:
        raise ArtefactError(
            f"{folder / WEIGHTS} has {len(weights)} bytes, its manifest says {size}: it is truncated or of another "
            f"version. Copy the folder again from where it was made."
        )
    digest = hashlib.sha256(weights).hexdigest()
    if digest != manifest["weights"]["sha256"]:
        raise ArtefactError(
            f"{folder / WEIGHTS} has SHA-256 {digest[:12]}…, its manifest says "
            f"{manifest['weights']['sha256'][:12]}…: the weights were changed. Copy the folder again from where it "
            f"was made."
        )
    return weights


def _assemble(manifest: dict[str, Any], network: Network) -> Artefact:
    scaling = {name: np.array(values, np.float32) for name, values in manifest["scaling"].items()}
    features = FeatureSpec(
        ActionVocabulary(tuple(manifest["actions"])),
        CategoryVocabulary(tuple(manifest["categories"])),
        manifest["utc_offset_s"],
        scaling["log_price_median"],
        scaling["mean"],
        scaling["sd"],
        np.isin(np.arange(ITEM_BUCKETS), manifest["known_items"]),
        scaling["action_share"],
        extras_of(manifest["features"]),
    )
    return Artefact(
        name=manifest["name"],
        version=manifest["version"],
        fingerprint=int.from_bytes(bytes.fromhex(manifest["weights"]["sha256"])[:8], "little") or 1,
        manifest=manifest,
        actions=features.actions,
        categories=features.categories,
        features=features,
        reference=Reference.from_dict(manifest["anomaly"]),
        network=network.eval().requires_grad_(False),
        state_width=network.state_width,
        window=manifest["window"],
        churn_horizon_s=float(manifest["churn_horizon_s"]),
        longest_gap_s=float(manifest["longest_gap_s"]),
        return_odds=ReturnOdds.from_dict(manifest.get("return_odds")),
        fake_order=_fake_order_calibration(manifest["calibration"].get("fake_order")),
    )


def _fake_order_calibration(kept: dict[str, Any] | None) -> Calibration | None:
    if kept is None or kept["slope"] is None:
        return None
    return Calibration(float(kept["slope"]), float(kept["intercept"]))


def _sample(artefact: Artefact) -> tuple[NDArray[np.uint32], Columns]:
    """Made-up inputs: windows of three users before, and eight of their events."""
    actions, extras = len(artefact.actions), len(artefact.features.extras)
    return sample_columns(3, 8, actions, artefact.categories.codes, seed=20260101, n_extras=extras)


def _golden_outputs(artefact: Artefact, window: NDArray[np.uint32], columns: Columns) -> dict[str, list]:
    from models.runtime import StepEngine  # the engine takes an Artefact: imported late to keep the cycle out

    state = np.zeros((len(window), artefact.state_width), np.float16)
    result = StepEngine(artefact, device="cpu").step(state, window, columns)
    names = _GOLDEN_OUTPUTS if artefact.network.fake_order is None else (*_GOLDEN_OUTPUTS, "fake_order")
    outputs = {name: getattr(result, name) for name in names}
    if "fake_order" in outputs and artefact.fake_order is None:
        outputs["fake_order"] = outputs["fake_order"][:, :1]  # there is no probability yet
    return {name: np.round(values, 6).tolist() for name, values in outputs.items()}


def _check_golden(artefact: Artefact, folder: Path) -> None:
    inputs, kept = artefact.manifest["golden"]["inputs"], artefact.manifest["golden"]["outputs"]
    window = np.array(inputs["window_category"], np.uint32)
    extras = len(artefact.features.extras)
    columns = blank_columns(len(inputs["columns"]["row"]), len(artefact.actions), extras)
    for name, values in inputs["columns"].items():
        columns[name][:] = np.array(values, float)  # None becomes NaN; every integer in here fits
    for name, values in _golden_outputs(artefact, window, columns).items():
        difference = float(np.abs(np.array(values) - np.array(kept[name])).max())
        if not difference <= GOLDEN_TOLERANCE:
            raise ArtefactError(
                f"Model {artefact.name}/{artefact.version} in {folder} gives another {name} for its golden inputs "
                f"than when it was made (difference {difference:.2g}, allowed {GOLDEN_TOLERANCE:g}). This build "
                f"computes differently: deploy the matching build or train the model again."
            )


def _plain(values: NDArray) -> list:
    """An array for JSON: the shortest decimals that give the same floats, None for NaN."""
    if values.dtype.kind != "f":
        return values.tolist()
    decimals = np.array([None if np.isnan(v) else float(str(v)) for v in values.ravel()], object)
    return decimals.reshape(values.shape).tolist()


def _readable(manifest: dict[str, Any]) -> str:
    """JSON with a line a field; a list of numbers stays on one line."""
    text = json.dumps(manifest, indent=1, allow_nan=False)
    return re.sub(r"\[[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def _earlier(version: str) -> str:
    return f"version {int(version) - 1}" if version.isdigit() and int(version) > 1 else "an older version"
