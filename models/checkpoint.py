"""Where a training stands after an epoch, in one file beside the version that it will make.

``<root>/<name>/.<version>-training/checkpoint.safetensors`` holds tensors, and in its header the numbers as JSON. It
is replaced whole by a rename, so a kill leaves the one before; readers of a model store pass hidden folders over.
Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from models.errors import TrainingError

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training.

    ``folder``: holds nothing else. ``settings``: JSON values that decide the weights; a checkpoint of others is
    refused, since what it would go on with is nobody's training.
    """

    folder: Path
    settings: dict[str, Any]

    @classmethod
    def beside(cls, root: Path, name: str, version: str, settings: dict[str, Any]) -> Checkpoint:
        """The checkpoint of the training that will write ``<root>/<name>/<version>``."""
        return cls(root / name / f".{version}-training", json.loads(json.dumps(settings)))

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Replace what was saved before."""
        header = {"settings": json.dumps(self.settings), "numbers": json.dumps(numbers)}
        content = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, header)
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f"{FILE}.draft"
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.folder / FILE)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was saved last; None if nothing was.

        Raises:
            TrainingError: it is damaged, or of other settings.
        """
        path = self.folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            settings, numbers = json.loads(header["settings"]), json.loads(header["numbers"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"Checkpoint {path} is damaged ({error}). Train again from the start, without --resume."
            ) from error
        for setting in sorted({*settings, *self.settings}):
            kept, asked = settings.get(setting), self.settings.get(setting)
            if kept != asked:
                raise TrainingError(
                    f"Checkpoint {path} is of another training: its {setting} is {_short(kept)}, this one's is "
                    f"{_short(asked)}. Give the settings and files of then, or train from the start, without --resume."
                )
        return tensors, numbers

    def remove(self) -> None:
        """Forget it; nothing happens if there is none."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
