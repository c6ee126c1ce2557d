from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from invocation import Terminal
from safetensors.torch import save_file
from torch import nn

from app.checkpoint.directory import CheckpointDir
from app.checkpoint.manifest import Manifest
from app.checkpoint.weights import Weights, load_weights, read_weights
from app.errors import CheckpointError
from app.models.pretrained import load_pretrained


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(OrderedDict(stem=nn.Linear(4, 5), norm=nn.BatchNorm1d(5), head=nn.Linear(5, classes)))


def filled(value: float, classes: int = 3) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in network(classes).state_dict().items()}


def load_into(model: nn.Module, path: Path, **arguments: Any) -> str:
    return load_weights(model, read_weights(str(path)), **arguments)


def apply(model: nn.Module, entries: dict[str, torch.Tensor]) -> str:
    return load_weights(model, Weights(entries, {}, name="load_from=x"))


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
    "0.1 with an average": (
        OURS | {"model": filled(2), "hooks": {"ema": {"average": filled(7)}},
                "config": "hooks: {ema: {evaluate_on_ema: true}}"}, 7),
    "ours that names the average": (
        OURS | {"model": filled(2), "hooks": {"mean": {"weights": filled(7)}}, "evaluated": ["mean", "weights"]}, 7),
    "ours that names none": (
        OURS | {"model": filled(2), "hooks": {"ema": {"average": filled(7)}}, "evaluated": None}, 2),
    "0.1 with an average that was not evaluated": (
        OURS | {"model": filled(2), "hooks": {"ema": {"average": filled(7)}},
                "config": "hooks: {ema: {evaluate_on_ema: false}}"}, 2),
}  # fmt: skip


@pytest.mark.parametrize(("content", "value"), FILES.values(), ids=FILES.keys())
def test_every_kind_of_file(tmp_path: Path, content: Any, value: float) -> None:
    torch.save(content, tmp_path / "x.pth")
    model = network()
    line = load_into(model, tmp_path / "x.pth", strict=True)
    assert is_filled(model, value)
    assert line == f"load_from={tmp_path / 'x.pth'}: loaded 9 of 9 entries"


def test_safetensors(tmp_path: Path) -> None:
    save_file(filled(4), tmp_path / "x.safetensors")
    model = network()
    load_into(model, tmp_path / "x.safetensors")
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
    load_into(model, path)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert is_filled(model, 2)


def test_what_does_not_match_is_listed() -> None:
    model = network()
    before = model.state_dict()["norm.weight"].clone()
    weights = filled(2) | {"extra.weight": torch.zeros(1)}
    del weights["norm.weight"]
    line = apply(model, weights)
    assert line == "load_from=x: loaded 8 of 9 entries; 1 missing: norm.weight; 1 unexpected: extra.weight"
    assert torch.equal(model.state_dict()["norm.weight"], before)


def test_another_number_of_classes_keeps_the_new_head() -> None:
    model = network(classes=3)
    line = apply(model, filled(2, classes=10))
    assert "2 of another shape: head.weight (10, 5) instead of (3, 5), head.bias (10,) instead of (3,)" in line
    assert "the last layer keeps its new weights" in line
    assert bool((model.state_dict()["stem.weight"] == 2).all())


def test_only_the_first_few_are_listed() -> None:
    weights = filled(2) | {f"extra.{number}": torch.zeros(1) for number in range(8)}
    assert "8 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4, … (3 more)" in apply(network(), weights)


def test_nothing_that_matches_is_an_error_with_a_hint() -> None:
    with pytest.raises(
        CheckpointError, match=r"no weights match Sequential; 8 missing: stem.weight, .* 1 unexpected: a"
    ):
        apply(network(), {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"model.init.prefix=backbone. takes that"):
        apply(network(), prefixed("backbone.", 1))


def test_prefix(tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed("backbone.", 3) | {"neck.weight": torch.zeros(1)}}, tmp_path / "x.pth")
    model = network()
    line = load_pretrained(model, str(tmp_path / "x.pth"), "backbone.")
    assert is_filled(model, 3)
    assert line.startswith("model.init.checkpoint=")
    with pytest.raises(CheckpointError, match=r"no entry of .* begins with 'head.'; it has backbone., neck."):
        load_pretrained(model, str(tmp_path / "x.pth"), "head.")


@pytest.mark.parametrize(
    "wrong",
    [{"evaluated": 3}, {"evaluated": ["ema", "average"], "hooks": {"ema": torch.zeros(1)}}, {"data": {"classes": 3}},
     {"config": "a: [", "hooks": {}}, {"model_metadata": [1]}],
)  # fmt: skip
def test_a_file_that_only_looks_like_ours_is_an_error_of_the_file(tmp_path: Path, wrong: dict[str, Any]) -> None:
    torch.save(OURS | {"model": filled(2), "hooks": {}, "config": ""} | wrong, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth is not a checkpoint: its entries"):
        read_weights(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"epoch": 3}}, torch.zeros(2)])
def test_a_file_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x.pth holds"):
        read_weights(str(tmp_path / "x.pth"))


def test_a_damaged_checkpoint_of_ours_is_not_loaded_from(tmp_path: Path) -> None:
    store = CheckpointDir(tmp_path)
    state = OURS | {"model": filled(2), "hooks": {}, "config": ""}
    store.save(state, Manifest("epoch_1.pth", 1, 1, 1, "full"))
    path = tmp_path / "epoch_1.pth"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"epoch_1.pth is damaged"):
        read_weights(str(path))


INCOMPLETE: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "a parameter": lambda entries: entries.pop("stem.bias") is None or entries,
    "a buffer": lambda entries: entries.pop("norm.running_mean") is None or entries,
    "another shape": lambda entries: entries | {"head.bias": torch.zeros(7)},
}
CONTAINERS: dict[str, Callable[[Any, Path], Path]] = {
    "a state dict": lambda entries, folder: saved(entries, folder),
    "nested": lambda entries, folder: saved({"state_dict": entries}, folder),
    "DataParallel": lambda entries, folder: saved({f"module.{name}": each for name, each in entries.items()}, folder),
    "ours": lambda entries, folder: saved(OURS | {"model": entries, "hooks": {}, "config": ""}, folder),
    "safetensors": lambda entries, folder: as_safetensors(entries, folder),
}


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "x.pth")
    return folder / "x.pth"


def as_safetensors(entries: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(entries, folder / "x.safetensors")
    return folder / "x.safetensors"


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS.keys())
@pytest.mark.parametrize("remove", INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_to_evaluate_everything_must_come_from_the_file_and_to_train_it_is_a_warning(
    tmp_path: Path, remove: Any, container: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = container(remove(filled(2)), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"does not hold the weights of Sequential.*1 (missing|of another shape): "
    ):
        load_into(network(), path, strict=True)
    line = load_into(network(), path)
    assert "loaded 8 of 9 entries; 1 " in line
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [line]


def test_more_than_the_model_has_is_another_model_in_a_file_of_ours_only(tmp_path: Path) -> None:
    deeper = filled(2) | {"stem2.weight": torch.zeros(1)}
    load_into(network(), saved(deeper, tmp_path), strict=True)
    ours = OURS | {"model": deeper, "hooks": {}, "config": "", "data": {"classes": ["a", "b", "c"]}}
    with pytest.raises(CheckpointError, match=r"1 unexpected: stem2.weight"):
        load_into(network(), saved(ours, tmp_path), strict=True)


def test_files_from_before_a_batch_norm_counted_its_batches_are_complete(tmp_path: Path) -> None:
    entries = filled(2)
    del entries["norm.num_batches_tracked"]
    load_into(network(), saved(entries, tmp_path), strict=True)


def test_one_name_of_tied_weights_is_enough(tmp_path: Path) -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Linear(3, 3)))
    model.b.weight = model.a.weight
    entries = {name: value for name, value in model.state_dict().items() if name != "b.weight"}
    assert load_into(model, as_safetensors(entries, tmp_path), strict=True).endswith("loaded 4 of 4 entries")


def test_an_average_is_completed_by_the_model_s_other_entries(tmp_path: Path) -> None:
    average = filled(7)
    del average["norm.num_batches_tracked"]
    model = network()
    content = OURS | {"model": filled(2), "hooks": {"ema": {"average": average}}, "config": "",
                      "model_metadata": {"norm": {"version": 2}}}  # fmt: skip
    load_into(model, saved(content, tmp_path), strict=True)
    assert bool((model.state_dict()["norm.weight"] == 7).all())
    assert int(model.state_dict()["norm.num_batches_tracked"]) == 2


FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip
"""The smallest model of every torchvision family."""


def test_the_families_are_all_of_torchvision_s() -> None:
    def family(name: str) -> str:
        return re.sub(r"(_tiny|_small|_base|_large|_?x\d.*|\d.*|_[stblh]|_[a-z]_.*)+$", "", name.removeprefix("wide_"))

    names = torchvision.models.list_models(torchvision.models)
    assert {family(name) for name in names} <= {family(name) for name in FAMILIES}


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_s_models_are_read_back(name: str, tmp_path: Path) -> None:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # RegNet computes its widths with tensors
        shapes = torchvision.models.get_model(name, num_classes=3)
    model = shapes.to_empty(device="cpu").bfloat16()
    entries = model.state_dict()
    for value in entries.values():
        value.fill_(2)
    metadata = {module: dict(versions) for module, versions in entries._metadata.items()}
    ours = OURS | {"model": dict(entries), "model_metadata": metadata, "hooks": {}, "config": ""}
    for content in (ours, entries, {"state_dict": dict(entries)}):  # with versions, and from who dropped them
        path = saved(content, tmp_path)
        for value in entries.values():
            value.zero_()
        assert f"loaded {len(entries)} of {len(entries)} entries" in load_into(model, path, strict=True)
        assert all(bool((value == 2).all()) for value in model.state_dict().values())
        path.unlink()


def test_mnasnet_is_checked_trained_tested_and_loaded_from(terminal: Terminal, one_thread: None) -> None:
    tiny = ("data=fake", "data.limit_train=8", "data.limit_val=8", "data.batch_size=4", "data.image_size=32",
            "model=torchvision", "model.name=mnasnet0_5", "schedule.warmup=0", "train.max_epochs=1")  # fmt: skip
    checked = terminal.run(*tiny, "check=true")
    assert checked.code == 0
    checked.says(r"check=\S+: loaded (\d+) of \1 entries", "check passed")
    assert terminal.run(*tiny, "hydra.run.dir=run").code == 0
    for how in (("mode=test", "load_from="), ("load_from=",), ("model.init.checkpoint=",)):
        outcome = terminal.run(*tiny, *how[:-1], f"{how[-1]}run/checkpoints/epoch_1.pth")
        assert outcome.code == 0, outcome.message
        outcome.says(r"loaded (\d+) of \1 entries")
