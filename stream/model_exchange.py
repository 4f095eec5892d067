"""The model that a worker serves, and its exchange for another one while micro-batches run.

The next one is loaded, verified and tried beside the one in use, in a thread of its own; then one assignment in the
event loop makes it the model of every micro-batch that is folded from then on. Those in flight end with the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from models.errors import ArtefactError, ModelError
from stream.activation import Activation, newest_first, refusal
from stream.model_step import ServedModel
from stream.settings import Settings

logger = structlog.get_logger("foreclick.model")


class ModelExchange:
    """The model in use.

    Args:
        settings: the model until one is activated, the device, and where activated ones lie.
        load: (folder, device) -> a model that was checked and can step; called in another thread.
        told: of each activation: ``activated`` or ``refused``.
        exchanged: called in the event loop with the model that is served from now on.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Path | None, str], ServedModel],
        *,
        told: Callable[[str], None],
        exchanged: Callable[[ServedModel], None],
    ):
        self._settings = settings
        self._load, self._told, self._exchanged = load, told, exchanged
        self._served: ServedModel | None = None

    @property
    def served(self) -> ServedModel:
        """The model of the next micro-batch."""
        if self._served is None:
            raise ModelError("No model is loaded yet.")
        return self._served

    @property
    def loaded(self) -> bool:
        """Whether there is one."""
        return self._served is not None

    async def begin(self, records: list[bytes | None]) -> None:
        """Serve the newest activation that can be served, else the configured model.

        Args:
            records: the control topic from its beginning.

        Raises:
            ArtefactError: nothing was activated that can be served, and the configured model cannot be either.
        """
        if not await self.follow(records):
            self._use(await asyncio.to_thread(self._load, self._settings.model, self._settings.device))

    async def follow(self, records: list[bytes | None]) -> bool:
        """Serve the newest of these activations that can be served; those that cannot leave the model in use.

        Returns:
            Whether one of them is served now.
        """
        for activation in newest_first(records):
            if await self._activate(activation):
                return True
        return False

    async def _activate(self, activation: Activation) -> bool:
        if self._served is not None and _same(self._served, activation):
            return True
        try:
            found = await asyncio.to_thread(self._checked, activation)
        except (ModelError, OSError, RuntimeError) as error:  # whatever it is, the one in use stays
            self._told("refused")
            serving = self._served.label if self._served else None
            logger.error(
                "model refused", model=activation.label, by=activation.by, serving=serving, because=str(error)
            )
            return False
        self._use(found)
        self._told("activated")
        logger.info("model activated", model=found.label, by=activation.by, device=found.engine.device_name)
        return True

    def _checked(self, activation: Activation) -> ServedModel:
        found = self._load(activation.folder(self._settings.model_root), self._settings.device)
        because = refusal(found.artefact.manifest, activation.sha256)
        if because is None and found.label != activation.label:
            because = f"The folder of {activation.label} holds {found.label}. Copy the right one there."
        if because is not None:
            raise ArtefactError(because)
        return found

    def _use(self, found: ServedModel) -> None:
        self._served = found
        self._exchanged(found)


def _same(served: ServedModel, activation: Activation) -> bool:
    sha256: Any = served.artefact.manifest["weights"]["sha256"]
    return served.label == activation.label and sha256 == activation.sha256
