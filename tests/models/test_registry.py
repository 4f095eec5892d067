"""Laws of model folders: whole or refused, with the reason and what mends it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import registry
from models.errors import ArtefactError
from models.older import OLDER
from models.registry import load_artefact, save_artefact, untrained
from models.runtime import StepEngine
from tests.models import synthetic


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return untrained(tmp_path, name="next-action", version="7", hidden=16, actions=synthetic.ACTIONS)


def change_manifest(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_model_loads_with_the_same_bits(folder, columns):
    """Two loads of one folder, and the network that was saved, give equal outputs."""
    one, other = (load_artefact(folder) for _ in range(2))
    users, before, part = synthetic.micro_batch(columns, np.arange(50))
    state = np.zeros((len(users), one.state_width), np.float16)
    results = [StepEngine(artefact, device="cpu").step(state, before, part) for artefact in (one, other)]
    for name in ("state", "next_action", "terms", "anomaly_score"):
        assert getattr(results[0], name).tobytes() == getattr(results[1], name).tobytes()
    assert one.fingerprint == other.fingerprint != 0


def test_fingerprint_is_the_head_of_the_hash_of_the_weights(folder):
    """A row names the weights that made it by the first eight bytes of their SHA-256."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).digest()
    assert load_artefact(folder).fingerprint == int.from_bytes(digest[:8], "little")


def test_a_version_is_never_overwritten(folder, tmp_path):
    """Saving under an existing version is refused, and the old one stays."""
    artefact = load_artefact(folder)
    with pytest.raises(ArtefactError, match=r"never overwritten\. Choose another version"):
        save_artefact(tmp_path, artefact.network, artefact.manifest)
    assert load_artefact(folder).fingerprint == artefact.fingerprint


def test_the_next_version_is_free(folder, tmp_path):
    """Numbers go on from the greatest; other names and drafts do not count."""
    (folder.parent / "beta").mkdir()
    (folder.parent / ".9-draft").mkdir()
    assert registry.next_version(tmp_path, "next-action") == "8"
    assert registry.next_version(tmp_path, "another") == "1"


def test_a_failed_save_leaves_nothing(folder, tmp_path, monkeypatch):
    """A disk that fills up while a model is written leaves no half model."""
    artefact = load_artefact(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry.os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        save_artefact(tmp_path, artefact.network, {**artefact.manifest, "version": "8"})
    assert [path.name for path in folder.parent.iterdir()] == ["7"]


def test_a_missing_folder_is_named(tmp_path):
    """The message names the folder and the command that makes one."""
    with pytest.raises(ArtefactError, match=r"nowhere does not exist\..*foreclick train"):
        load_artefact(tmp_path / "nowhere")


def test_a_folder_without_manifest_is_refused(folder):
    """A folder that lacks its manifest is no model."""
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match=r"has no manifest.json"):
        load_artefact(folder)


def test_a_truncated_manifest_is_refused(folder):
    """Half a manifest is said to be truncated."""
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtefactError, match=r"manifest.json of model folder .* is truncated or damaged"):
        load_artefact(folder)


def test_a_manifest_without_a_part_is_refused(folder):
    """What is lacking is named."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["scaling"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="lacks scaling"):
        load_artefact(folder)


def test_missing_weights_are_refused(folder):
    """A manifest alone is no model."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtefactError, match=r"has no model.safetensors"):
        load_artefact(folder)


def test_truncated_weights_are_refused(folder):
    """Both sizes are told."""
    path = folder / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtefactError, match=f"has 1000 bytes, its manifest says {size}"):
        load_artefact(folder)


def test_changed_weights_are_refused(folder):
    """One flipped bit is found by the hash."""
    path = folder / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    with pytest.raises(ArtefactError, match=r"the weights were changed\. Copy the folder again"):
        load_artefact(folder)


def test_features_that_this_build_does_not_make_are_refused(folder):
    """The message counts both sides, names what is missing and what to do."""
    features = json.loads((folder / "manifest.json").read_text())["features"]
    extra = [*features, {"name": "dwell_s", "version": 1, "unit": "s"}]
    change_manifest(folder, features=extra)
    with pytest.raises(ArtefactError) as refused:
        load_artefact(folder)
    assert str(refused.value) == (
        f"Model next-action/7 expects {len(extra)} features, this build makes {len(features)} (missing dwell_s). "
        f"Deploy the matching build or pin version 6."
    )


def test_an_older_version_of_a_feature_is_another_feature(folder):
    """A feature that is computed differently now is missing, by name."""
    features = json.loads((folder / "manifest.json").read_text())["features"]
    features[3]["version"] = 99
    change_manifest(folder, features=features)
    with pytest.raises(ArtefactError, match=rf"missing {features[3]['name']}\)"):
        load_artefact(folder)


def test_fewer_features_are_refused(folder):
    """A model that wants less than the build makes was made by another build."""
    features = json.loads((folder / "manifest.json").read_text())["features"]
    change_manifest(folder, features=features[:-1])
    with pytest.raises(ArtefactError, match="in another order or number"):
        load_artefact(folder)


def test_an_older_format_is_refused(folder):
    """The format of both sides is told."""
    change_manifest(folder, format=0)
    with pytest.raises(ArtefactError, match="has manifest format 0, this build reads format 3"):
        load_artefact(folder)


def test_an_architecture_that_contradicts_the_weights_is_refused(folder):
    """Weights of another size than declared do not load."""
    architecture = json.loads((folder / "manifest.json").read_text())["architecture"]
    change_manifest(folder, architecture={**architecture, "hidden": 24})
    with pytest.raises(ArtefactError, match="contradicts its own manifest"):
        load_artefact(folder)


def test_an_unknown_architecture_is_refused(folder):
    """The kinds that this build has are listed."""
    architecture = json.loads((folder / "manifest.json").read_text())["architecture"]
    change_manifest(folder, architecture={**architecture, "kind": "abacus"})
    with pytest.raises(
        ArtefactError, match="no architecture 'abacus', only linear, mlp, gru, lstm, transformer"
    ):
        load_artefact(folder)


def test_other_outputs_than_the_golden_ones_are_refused(folder):
    """A build that computes differently is found before it serves."""
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden["outputs"]["next_action"][0][0] += 0.01
    change_manifest(folder, golden=golden)
    with pytest.raises(ArtefactError, match="gives another next_action for its golden inputs"):
        load_artefact(folder)


def test_the_bundled_model_loads_and_is_small():
    """What comes with the package is whole and at most 1 MiB."""
    folder = registry.bundled()
    artefact = load_artefact(folder)
    assert artefact.state_width == len(artefact.actions) + 1 + 128 + OLDER
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20
    assert (artefact.name, artefact.version) == (folder.parent.name, folder.name)


def test_loading_draws_no_random_numbers(folder):
    """Loading a model in a running program leaves torch's generator alone."""
    before = torch.random.get_rng_state()
    load_artefact(folder)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_manifest_holds_all_that_is_needed_to_judge_and_to_check_a_model(folder):
    """What it reads, how its answers were scaled, calibrated and cut, what it was made of, and how good it was."""
    manifest = json.loads((folder / "manifest.json").read_text())
    told = {
        "features",
        "actions",
        "categories",
        "scaling",
        "calibration",
        "thresholds",
        "training",
        "metrics",
    }
    assert told < manifest.keys()
    assert manifest["thresholds"]["anomaly_score"] == 0.99
    assert len(manifest["weights"]["sha256"]) == 64
    assert set(manifest["golden"]) == {"inputs", "outputs"}


@pytest.mark.parametrize("lacking", ["calibration", "thresholds", "golden", "training"])
def test_a_manifest_that_lacks_something_is_refused(folder, lacking):
    """By name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[lacking]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=f"lacks {lacking}"):
        load_artefact(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": ["action"]},
        {"features": None},
        {"weights": {}},
        {"golden": {"inputs": {}, "outputs": {}}},
        {"golden": []},
        {"scaling": {"mean": "no"}},
        {"actions": ["view", "view"]},
        {"architecture": {"kind": "lstm", "depth": 7}},
        {"churn_horizon_s": "soon"},
        {"anomaly": 3},
    ],
)
def test_a_foreign_manifest_is_refused_and_nothing_else_is_raised(folder, changes):
    """Whatever stands in a folder, a running worker gets a refusal and keeps its model."""
    change_manifest(folder, **changes)
    with pytest.raises(ArtefactError):
        load_artefact(folder)


def test_another_window_is_refused(folder):
    """Rows hold 32 events; a model that reads another number was made by another build."""
    change_manifest(folder, window=64)
    with pytest.raises(ArtefactError, match="reads a window of 64 events, rows of this build hold 32"):
        load_artefact(folder)


def test_golden_inputs_are_those_of_the_manifest(folder):
    """A build that would make up other ones still computes these: their numbers, not a seed, are kept."""
    golden = json.loads((folder / "manifest.json").read_text())["golden"]
    golden["inputs"]["columns"]["gap_ms"][0] = 3_600_000
    golden["inputs"]["columns"]["action"][0] = 3
    change_manifest(folder, golden=golden)
    with pytest.raises(ArtefactError, match="for its golden inputs"):
        load_artefact(folder)
