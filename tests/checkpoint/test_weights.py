from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from app.checkpoint.store import Save, Store
from app.checkpoint.weights import apply_weights, load_into, read_weights
from app.errors import CheckpointError
from app.models.pretrained import load_pretrained


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), head=nn.Linear(5, classes)))


def filled(value: float, classes: int = 3) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in network(classes).state_dict().items()}


def is_filled(model: nn.Module, value: float) -> bool:
    return all(bool((tensor == value).all()) for tensor in model.state_dict().values())


def prefixed(prefix: str, value: float) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in filled(value).items()}


OURS: dict[str, Any] = {"format": 1, "kind": "full", "progress": {}}
FILES: dict[str, tuple[Any, float]] = {
    "a state dict": (filled(2), 2),
    "state_dict inside": ({"state_dict": filled(2), "epoch": 3}, 2),
    "model inside": ({"model": filled(2), "optimizer": {"state": {}}}, 2),
    "DataParallel": (prefixed("module.", 2), 2),
    "compiled and distributed": ({"model": prefixed("module._orig_mod.", 2)}, 2),
    "compiled outside": (prefixed("_orig_mod.module.", 2), 2),
    "ours": (OURS | {"model": filled(2), "hooks": {}, "config": "hooks: {}"}, 2),
    "ours with an average": (
        OURS | {"model": filled(2), "hooks": {"ema": {"average": filled(7)}},
                "config": "hooks: {ema: {evaluate_on_ema: true}}"}, 7),
    "ours with an average that was not evaluated": (
        OURS | {"model": filled(2), "hooks": {"ema": {"average": filled(7)}},
                "config": "hooks: {ema: {evaluate_on_ema: false}}"}, 2),
}  # fmt: skip


@pytest.mark.parametrize(("content", "value"), FILES.values(), ids=FILES.keys())
def test_every_kind_of_file(tmp_path: Path, content: Any, value: float) -> None:
    torch.save(content, tmp_path / "x.pth")
    model = network()
    line = load_into(model, str(tmp_path / "x.pth"), "load_from")
    assert is_filled(model, value)
    assert line == f"load_from={tmp_path / 'x.pth'}: loaded 9 of 9 entries"


def test_safetensors(tmp_path: Path) -> None:
    save_file(filled(4), tmp_path / "x.safetensors")
    model = network()
    load_into(model, str(tmp_path / "x.safetensors"), "load_from")
    assert is_filled(model, 4)
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        read_weights(str(tmp_path / "x.safetensors"))
    (tmp_path / "x.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        read_weights(str(tmp_path / "x.safetensors"))


def test_the_weights_are_copied_so_the_file_may_go(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(filled(2), path)
    model = network()
    load_into(model, str(path), "load_from")
    path.write_bytes(b"\0" * path.stat().st_size)
    assert is_filled(model, 2)


def test_what_does_not_match_is_listed() -> None:
    model = network()
    before = model.state_dict()["norm.weight"].clone()
    weights = filled(2) | {"extra.weight": torch.zeros(1)}
    del weights["norm.weight"]
    line = apply_weights(model, weights, "load_from=x")
    assert line == "load_from=x: loaded 8 of 9 entries; 1 missing: norm.weight; 1 unexpected: extra.weight"
    assert torch.equal(model.state_dict()["norm.weight"], before)


def test_another_number_of_classes_keeps_the_new_head() -> None:
    model = network(classes=3)
    line = apply_weights(model, filled(2, classes=10), "load_from=x")
    assert "2 of another shape: head.weight (10, 5) instead of (3, 5), head.bias (10,) instead of (3,)" in line
    assert "the last layer keeps its new weights" in line
    assert bool((model.state_dict()["stem.weight"] == 2).all())


def test_only_the_first_few_are_listed() -> None:
    weights = filled(2) | {f"extra.{number}": torch.zeros(1) for number in range(8)}
    assert "8 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4, … (3 more)" in apply_weights(
        network(), weights, "x"
    )


def test_nothing_that_matches_is_an_error_with_a_hint() -> None:
    with pytest.raises(
        CheckpointError, match=r"no weights match Sequential; 9 missing: stem.weight, .* 1 unexpected: a"
    ):
        apply_weights(network(), {"a": torch.zeros(1)}, "load_from=x")
    with pytest.raises(CheckpointError, match=r"model.init.prefix=backbone. takes that"):
        apply_weights(network(), prefixed("backbone.", 1), "load_from=x")


def test_prefix(tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed("backbone.", 3) | {"neck.weight": torch.zeros(1)}}, tmp_path / "x.pth")
    model = network()
    line = load_pretrained(model, str(tmp_path / "x.pth"), "backbone.")
    assert is_filled(model, 3)
    assert line.startswith("model.init.checkpoint=")
    with pytest.raises(CheckpointError, match=r"no entry of .* begins with 'head.'; it has backbone., neck."):
        load_pretrained(model, str(tmp_path / "x.pth"), "head.")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"epoch": 3}}, torch.zeros(2)])
def test_a_file_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth holds"):
        read_weights(str(tmp_path / "x.pth"))


def test_a_damaged_checkpoint_of_ours_is_not_loaded_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    state = OURS | {"model": filled(2), "hooks": {}, "config": ""}
    store.save(state, Save("epoch_1", 1, 1, 1, "full", periodic=True))
    path = tmp_path / "epoch_1.pth"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"epoch_1.pth is damaged"):
        read_weights(str(path))
