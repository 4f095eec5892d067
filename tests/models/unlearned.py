"""A network with first weights, and the users of a small shop as it reads them."""

from __future__ import annotations

import torch

from models.network import Architecture, Network
from models.related import related_categories
from models.sequences import Sequences, sequences_of
from models.training import fit_features
from models.training_log import TrainingLog
from models.vocabulary import ActionVocabulary, code_of
from tests.models import synthetic

NAMES = {code_of(name): name for name in synthetic.CATEGORIES + synthetic.RARE}


def unlearned(kind: str, seed: int) -> tuple[Network, Sequences]:
    """A network of 16 hidden units, and 120 users with 2,400 events of the seed."""
    columns = synthetic.shop(120, 2400, seed=seed)
    users = [f"u{row}" for row in range(int(columns["row"].max()) + 1)]
    log = TrainingLog(columns, users, NAMES, ActionVocabulary(synthetic.ACTIONS))
    spec = fit_features(log, columns)
    torch.manual_seed(1)
    network = Network(Architecture(kind, 16, n_actions=len(log.actions), n_categories=len(spec.categories)))
    network.begin_from(spec)
    related = related_categories(columns, spec.categories)
    network.heads.begin_from(related)
    purchase = log.actions.names.index("purchase")
    return network.eval(), sequences_of(columns, spec, purchase, related.log_lift[None])
