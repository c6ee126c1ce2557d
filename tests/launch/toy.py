"""A Hydra app with the real configuration and jobs that only sleep, fail or die, as `data.batch_size` says."""

import atexit
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from app.config.command_line import CONF
from app.config.schema import register
from app.errors import DataError
from app.launch import plugins

KILLED, RAISING, LEAVING, ENDLESS, REQUEUED = 100_000, 200_000, 300_000, 400_000, 500_000
"""What a job does whose batch size is this or a little more, instead of sleeping that many milliseconds."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    kind = config.data.batch_size // 100_000 * 100_000
    begun = time.time()
    (folder / "started").touch()
    atexit.register((folder / "left").touch)
    rank = f"rank={os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}"
    print(f"gpus={os.environ.get('CUDA_VISIBLE_DEVICES')} resume={config.resume} {rank}", flush=True)
    if kind == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == RAISING:
        raise ValueError("no luck")
    if kind == LEAVING:
        raise DataError("bad picture")
    if kind == ENDLESS:
        signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").write_text("saved") and sys.exit(143))
        (folder / "ready").write_text("ready")
        time.sleep(600)
    if kind == REQUEUED:
        (folder / "ready").write_text("ready")
        time.sleep(600 if "SLURM_RESTART_COUNT" not in os.environ else 0)
    time.sleep(config.data.batch_size % 100_000 / 1000)
    value = 1.0 / (1.0 + (config.randomness.seed or 0))
    (folder / "times.json").write_text(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), begun, time.time()]))
    (folder / "DONE.json").write_text(json.dumps({"metric": "val/top1", "best": value, "step": 1, "length": 30}))
    if "TOY_TORN_RESULT" in os.environ:
        tear_result(folder)
    if "TOY_FILLS" in os.environ:
        fill(Path(os.environ["TOY_FILLS"]))
    return value


def tear_result(folder: Path) -> None:
    """Leave half a result, as a job does that is killed while it writes one."""

    def tear() -> None:
        (folder / ".result.json").write_text('{"value": 0.')

    atexit.register(tear)


def fill(path: Path) -> None:
    """Take all that is left of a file system."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


if __name__ == "__main__":
    atexit.register(lambda: print(f"launcher imported torch: {'torch' in sys.modules}"))
    register()
    plugins.register()
    main()
