"""Hooks of a user's own package: what each rank's model is at the end, and a pause."""

import hashlib
import time
from typing import Any

from app.core.hook import Hook
from app.core.state import Run


class Witness(Hook):
    """Leaves `witness.rank<N>` in the run's folder: the number of ranks, and the SHA-256 of this rank's own weights."""

    def finish(self, run: Run, error: BaseException | None) -> None:
        state: dict[str, Any] = run.state.model.state_dict()
        digest = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in state.values())).hexdigest()
        (run.folder / f"witness.rank{run.world.rank}").write_text(f"{run.world.size} {digest}")


class Slow(Hook):
    """Waits at the end of every epoch, so that a run is longer than a time limit on any machine."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def epoch_end(self, run: Run) -> None:
        time.sleep(self.seconds)
