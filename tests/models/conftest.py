from __future__ import annotations

import numpy as np
import pytest

from models.registry import Artefact, load_artefact, untrained
from models.runtime import StepEngine
from tests.models import synthetic


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """Random weights, big enough that states differ and the heads have opinions."""
    root = tmp_path_factory.mktemp("models")
    return load_artefact(untrained(root, actions=synthetic.ACTIONS, categories=synthetic.CATEGORIES))


@pytest.fixture(scope="session")
def engine(artefact: Artefact) -> StepEngine:
    return StepEngine(artefact, device="cpu")


@pytest.fixture(scope="session")
def columns() -> dict[str, np.ndarray]:
    """Some 900 events of 90 users."""
    return synthetic.shop(90, 900, seed=5)
