"""Users' histories as tensors, in chunks that carry state: what an epoch of training walks over.

Sequences run in chunks of 64 events with the state carried on, so long histories are learned from whole and
gradients reach 64 events back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.columns import Columns
from models.features import HASH_BUCKETS, ITEM_UNSEEN, FeatureSpec, Inputs, inputs
from models.network import Network
from models.older import older_before
from models.teaching import Teaching
from models.training_log import targets_of, windows_before

CHUNK = 64
USERS_A_BATCH = 32
# A frequent category or item is read as an unseen one this often, so that the fallback embeddings learn something.
NAME_DROPOUT = 0.05


@dataclass(frozen=True)
class Sequences:
    """Tensors of N events, each user's contiguous; ``first`` event and ``length`` of each user.

    ``inputs``: scaled features. ``bucket_N``: embedding index of the event's category if it were not frequent.
    ``action_N``, ``code_N`` and ``index_N`` (category code, 0 = missing, and vocabulary index, 0 = unseen): of the
    event itself, the answers to predictions made before it. ``codes_before_NW`` and ``index_before_NW``: what the
    pointer may point at before the event, older categories and the window. ``lift_LV`` and ``lift_N``: how much
    likelier each category is after the newest one, a row of the table for each event. The others are of
    ``models.training_log.Targets``, the answers to predictions made after it.
    ``soft_action_NA`` and ``soft_purchase_N``: what teachers say, if there are any.
    """

    inputs: Inputs
    bucket_N: Tensor
    action_N: Tensor
    code_N: Tensor
    index_N: Tensor
    codes_before_NW: Tensor
    index_before_NW: Tensor
    lift_LV: Tensor
    lift_N: Tensor
    follows_N: Tensor
    log_gap_N: Tensor
    purchase_N: Tensor
    purchase_known_N: Tensor
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    soft_action_NA: Tensor | None = None
    soft_purchase_N: Tensor | None = None

    def taught_by(self, teaching: Teaching) -> Sequences:
        """The same with soft targets."""
        return replace(
            self,
            soft_action_NA=torch.from_numpy(teaching.action_NA),
            soft_purchase_N=torch.from_numpy(teaching.purchase_N),
        )

    def to(self, device: str) -> Sequences:
        """The same with its tensors on another device."""
        moved = {
            field.name: getattr(self, field.name).to(device)
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor | Inputs)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Chunk:
    """Up to 64 events each of B users: event numbers (T, B), and which are real; the rest repeat a user's first.

    ``opens``: the users begin here, from the zero state. Otherwise they are the first B of the chunk before.
    """

    event_TB: NDArray[np.int64]
    held_TB: NDArray[np.bool_]
    opens: bool


@dataclass(frozen=True)
class Reading:
    """What the heads read around each real event of a chunk.

    ``event_N``: event numbers. ``before_NR``: of the state that predicts the event's action and category.
    ``after_NR``: of the state that predicts the gap after it and the end of its session.
    """

    event_N: Tensor
    before_NR: Tensor
    after_NR: Tensor


def sequences_of(
    columns: Columns, spec: FeatureSpec, purchase_code: int, log_lift_FVV: NDArray[np.float32]
) -> Sequences:
    """Tensors of folded events.

    Args:
        columns: each user's events contiguous and in order.
        spec: of the features.
        purchase_code: negative if the log has no such action.
        log_lift_FVV: of ``models.related``, a table for each of F parts of the users, counted without them.
    """
    target = targets_of(columns, purchase_code)
    index = spec.categories.index_of
    older = older_before(columns, spec.categories)
    # Index 0 has no code.
    codes = np.append(np.uint32(0), spec.categories.codes)
    before = np.concatenate([codes[older], windows_before(columns)], axis=1)
    first = np.flatnonzero(columns["wave"] == 0)
    hashed = len(spec.categories) + 1 + (columns["category"] % HASH_BUCKETS).astype(np.int64)
    tensor = torch.from_numpy
    newest = index(before[:, -1]).astype(np.int64)
    folds, size = len(log_lift_FVV), log_lift_FVV.shape[1]
    return Sequences(
        inputs=inputs(columns, spec),
        bucket_N=tensor(np.where(columns["category"] != 0, hashed, 0)),
        action_N=tensor(columns["action"].astype(np.int64)),
        code_N=tensor(columns["category"].view(np.int32)),
        index_N=tensor(index(columns["category"]).astype(np.int64)),
        codes_before_NW=tensor(before.view(np.int32)),
        index_before_NW=tensor(index(before).astype(np.int64)),
        lift_LV=tensor(log_lift_FVV.reshape(folds * size, size)),
        lift_N=tensor(columns["row"].astype(np.int64) % folds * size + newest),
        follows_N=tensor(target.follows),
        log_gap_N=tensor(target.log_gap_s),
        purchase_N=tensor(target.purchase.astype(np.float32)),
        purchase_known_N=tensor(target.purchase_known & (purchase_code >= 0)),
        first=first,
        length=np.diff(np.append(first, len(columns["row"]))),
    )


def chunks_of(part: Sequences, rng: np.random.Generator | None) -> list[Chunk]:
    """All events once, users of similar length side by side; without ``rng`` the order is fixed."""
    jitter = rng.random(len(part.length)) if rng else np.zeros(len(part.length))
    order = np.argsort(np.log2(part.length) + jitter, kind="stable")
    batches = [order[at : at + USERS_A_BATCH] for at in range(0, len(order), USERS_A_BATCH)]
    chunks = []
    for batch in rng.permutation(len(batches)) if rng else range(len(batches)):
        # The longest first: who has ended is cut off from the next chunk on.
        users = batches[batch][np.argsort(-part.length[batches[batch]], kind="stable")]
        for start in range(0, int(part.length[users[0]]), CHUNK):
            users = users[part.length[users] > start]
            turn = np.arange(start, min(start + CHUNK, int(part.length[users[0]])))[:, None]
            held = turn < part.length[users]
            event = np.where(held, part.first[users] + turn, part.first[users])
            chunks.append(Chunk(event, held, opens=start == 0))
    return chunks


def readings(network: Network, part: Sequences, chunks: list[Chunk]) -> Iterator[Reading]:
    """Walk the trunk over the chunks in their order; gradients end where a chunk begins."""
    device = part.action_N.device
    state_BS = torch.zeros(0, network.state_width, device=device)
    for chunk in chunks:
        B = chunk.event_TB.shape[1]
        if chunk.opens:
            state_BS = torch.zeros(B, network.state_width, device=device)
        state_BS = state_BS[:B].detach()
        event_N = torch.from_numpy(chunk.event_TB.ravel()).to(device)
        chosen = part.inputs.take(event_N)
        if network.training:
            unseen = (torch.rand(len(event_N)) < NAME_DROPOUT).to(device)
            chosen = replace(
                chosen,
                category_N=torch.where(unseen, part.bucket_N[event_N], chosen.category_N),
                item_N=torch.where(unseen, chosen.item_N.clamp_max(ITEM_UNSEEN), chosen.item_N),
            )
        read_TBR, after_BS = network(chosen, B, state_BS)
        before_TBR = torch.cat([state_BS[None, :, : network.read_width], read_TBR[:-1]])
        held = torch.from_numpy(chunk.held_TB.ravel().nonzero()[0]).to(device)
        yield Reading(event_N[held], before_TBR.flatten(0, 1)[held], read_TBR.flatten(0, 1)[held])
        state_BS = after_BS
