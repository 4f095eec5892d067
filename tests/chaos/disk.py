"""What disks do: they are full, they are old, they return other bytes than were written."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import rocksdict

TAMPERED_KEY = b"\0tampered"  # in a store that was falsified and that no worker has opened since
TAMPERED_FILE = "TAMPERED"  # beside a store whose files were damaged; goes when the worker throws them away
SEEN_KEY = b"\0seen"
POSITION_KEY = b"\0pos"
DAY_MS = 86_400_000
BALLAST = "ballast"


class Disk:
    """The folder of one worker as a small disk of its own, where this user may mount one.

    Where he may not, a full disk is played by folders in which no file can be made.
    """

    def __init__(self, folder: Path, size_mib: int = 24):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
        with contextlib.suppress(OSError):
            subprocess.run(command, check=False, capture_output=True)
        self.mounted = os.path.ismount(folder)

    def fill(self) -> None:
        """From now on nothing can be written."""
        if not self.mounted:
            self._allow(False)
            return
        with (self.folder / BALLAST).open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    def free(self) -> None:
        """There is space again."""
        if self.mounted:
            (self.folder / BALLAST).unlink(missing_ok=True)
        else:
            self._allow(True)

    def _allow(self, writing: bool) -> None:
        for folder, _, _ in os.walk(self.folder):
            Path(folder).chmod(0o700 if writing else 0o500)

    def unmount(self, keep: bool) -> None:
        """Give the memory back; with ``keep`` the files stay beside the folder for whoever looks into a failure."""
        if self.mounted:
            if keep:
                shutil.copytree(self.folder, self.folder.with_suffix(".kept"), dirs_exist_ok=True)
            subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)


def stores(data_dir: Path) -> list[Path]:
    """Folders of RocksDB under a data directory."""
    return sorted(current.parent for current in data_dir.glob("*/*/CURRENT"))


def undamaged(data_dir: Path) -> list[Path]:
    """Stores that can still be opened: none whose files were damaged and that no worker has found out about."""
    return [folder for folder in stores(data_dir) if not (folder / TAMPERED_FILE).exists()]


def run_ahead(data_dir: Path) -> int:
    """Falsify stores: a position beyond the changelog, and one row that nobody wrote; how many it were."""
    count = 0
    for folder in undamaged(data_dir):
        with _opened(folder) as database:
            position = database.get(POSITION_KEY)
            if position is not None:
                ahead = int.from_bytes(position, "little", signed=True) + 1_000_000
                database[POSITION_KEY] = ahead.to_bytes(8, "little", signed=True)
                database[b"u0"] = bytes(200)
                database[TAMPERED_KEY] = b"1"
                database.flush()
                count += 1
    return count


def age(data_dir: Path, days: int) -> int:
    """Have stores be last written some days earlier; how many it were."""
    count = 0
    for folder in undamaged(data_dir):
        with _opened(folder) as database:
            seen = database.get(SEEN_KEY)
            if seen is not None:
                earlier_ms = int.from_bytes(seen, "little", signed=True) - days * DAY_MS
                database[SEEN_KEY] = earlier_ms.to_bytes(8, "little", signed=True)
                database.flush()
                count += 1
    return count


def damage(data_dir: Path, chance: random.Random) -> Path | None:
    """Overwrite 64 bytes of one file of rows; which one, None where there is none."""
    files = sorted(file for folder in stores(data_dir) for file in folder.glob("*.sst"))
    if not files:
        return None
    file = chance.choice(files)
    (file.parent / TAMPERED_FILE).touch()
    with file.open("r+b") as raw:
        raw.seek(int(file.stat().st_size * chance.uniform(0, 0.9)))
        raw.write(chance.randbytes(64))
    return file


@contextlib.contextmanager
def _opened(folder: Path):  # type: ignore[no-untyped-def]
    database = rocksdict.Rdict(str(folder), options=rocksdict.Options(raw_mode=True))
    try:
        yield database
    finally:
        database.close()
