"""The root of every error that a user may see, and the errors of models.

ForeclickError
├── ModelError
│   ├── ArtefactError      a model folder that cannot be used, with the reason and the mending command
│   ├── NotFinite          a step made NaN or infinity: a broken invariant, not a row
│   └── TrainingError      input that no model can be trained on
├── SimulationError        numbers that make no log (models/simulator/simulate.py)
├── InjectionError         a log that holds too little for attacks (models/simulator/market.py)
└── (the rest of the tree is drawn in stream/errors.py)
"""

from __future__ import annotations


class ForeclickError(Exception):
    """What happened, to which input, and what to do next: ``str(error)`` is the whole message."""

    exit_code = 1


class ModelError(ForeclickError):
    """Anything wrong with a model, its training or its step."""


class ArtefactError(ModelError):
    """A model folder is missing, truncated, changed or foreign; the model in use stays."""


class NotFinite(ModelError):
    """The step engine made NaN or infinity; state rows must never hold either."""


class TrainingError(ModelError):
    """The log has nothing to train on, or a setting contradicts it."""
