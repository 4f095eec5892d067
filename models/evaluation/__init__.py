"""How good predictions are, with honest intervals: the same events for every method, and users resampled.

``intervals`` resamples users; ``measures`` are the metrics, each one function of aligned arrays; ``answers`` knows what
really came and which events count; ``predictions`` runs the step engine as the worker would; ``comparison`` puts
the model beside the baselines.
"""

from models.evaluation.intervals import Interval, mean_interval
from models.evaluation.measures import auc
from models.evaluation.predictions import run, scored

__all__ = ["Interval", "auc", "mean_interval", "run", "scored"]
