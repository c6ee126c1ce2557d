"""What several processes ask of a model, without starting them; with them: test_distributed.py."""

import pytest
import torch
from torch import nn

from app.core.parallel import synchronised
from app.core.ranks import World
from app.errors import ConfigError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_batch_norm_over_all_ranks_needs_gpus() -> None:
    with pytest.raises(ConfigError, match=r"env\.dist\.sync_bn=true needs GPUs .* the device is cpu"):
        synchronised(network(), World(torch.device("cpu"), rank=0, size=2), sync_bn=True)
    on_gpus = synchronised(network(), World(torch.device("cuda", 0), rank=0, size=2), sync_bn=True)
    assert isinstance(on_gpus[1], nn.SyncBatchNorm)  # type: ignore[index]


def test_one_process_has_nothing_to_synchronise() -> None:
    alone = World(torch.device("cpu"))
    assert isinstance(synchronised(network(), alone, sync_bn=True)[1], nn.BatchNorm2d)  # type: ignore[index]
