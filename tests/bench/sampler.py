"""The worker with a sampling profiler in it.

    python -m tests.bench.sampler FILE worker [OPTIONS]

SIGRTMIN (Faust takes SIGUSR1 for itself) begins, a second one ends and writes FILE: for each Python thread, how often
which line was on top of its stack. A thread takes the samples, so it gets its turn where the interpreter lock is given
up; the switch interval is shortened to make that nearly anywhere, and long calls into C that hold the lock are counted
once, at their end.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

SIGNAL = signal.SIGRTMIN
INTERVAL_S = 0.002
SWITCH_S = 0.0005
ROOT = Path(__file__).parents[2]
OURS = (str(ROOT / "stream"), str(ROOT / "models"))


class Sampler(threading.Thread):
    """Counts lines on top of the stacks of all threads but its own."""

    def __init__(self, file: Path):
        super().__init__(daemon=True, name="sampler")
        self._file = file
        self._counts: dict[str, Counter[tuple[str, str]]] = {}
        self._wanted, self._ended = threading.Event(), threading.Event()

    def toggle(self) -> None:
        if self._wanted.is_set():
            self._ended.set()
        self._wanted.set()

    def run(self) -> None:
        self._wanted.wait()
        sys.setswitchinterval(SWITCH_S)
        while not self._ended.is_set():
            self._take()
            time.sleep(INTERVAL_S)
        self._write()

    def _take(self) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            name = names.get(ident)
            if name is not None and name != self.name:
                self._counts.setdefault(name, Counter())[_line(frame), _line(_nearest_of_ours(frame))] += 1

    def _write(self) -> None:
        threads = {
            name: [[top, ours, count] for (top, ours), count in counts.most_common()]
            for name, counts in self._counts.items()
        }
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(threads))
        draft.rename(self._file)


def _nearest_of_ours(frame: FrameType) -> FrameType:
    at: FrameType | None = frame
    while at is not None:
        if at.f_code.co_filename.startswith(OURS):
            return at
        at = at.f_back
    return frame


def _line(frame: FrameType) -> str:
    path = frame.f_code.co_filename
    short = path.rsplit("site-packages/", 1)[-1].removeprefix(f"{ROOT}/")
    return f"{short}:{frame.f_lineno} {frame.f_code.co_name}"


def main() -> None:
    """Run the command line of the arguments with the sampler beside it."""
    sampler = Sampler(Path(sys.argv[1]))
    sampler.start()
    signal.signal(SIGNAL, lambda *_: sampler.toggle())
    sys.argv = ["foreclick", *sys.argv[2:]]
    from stream.cli import main as command

    command()


if __name__ == "__main__":
    main()
