"""What one step is: accumulation, clipping, autocast, the seed of a rank; and test-time augmentation."""

from pathlib import Path

import pytest
import torch
from runs import RunApp, digest, scalars

from app.checkpoint import contents
from app.engine.loop import mirrored

TINY = (
    "data.limit_train=64", "data.limit_val=32", "data.batch_size=16", "model=mlp", "schedule=constant",
    "train.max_epochs=1", "hooks.checkpoint.by_epoch=false", "hooks.checkpoint.max_keep_ckpts=-1",
    "hooks.checkpoint.save_best=null", "schedule.warmup=0", "hooks.logger.interval=1", "randomness.seed=1",
)  # fmt: skip


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = contents.load(folder / "checkpoints" / f"iter_{step}.pth")["model"]
    return state


def test_accumulated_steps_are_those_of_the_larger_batch(run_app: RunApp) -> None:
    large = run_app("large", *TINY, "data.batch_size=32", "optim=sgd")
    small = run_app("small", *TINY, "train.accumulate=2", "optim=sgd")
    assert {path.name for path in small.glob("checkpoints/iter_*.pth")} == {"iter_1.pth", "iter_2.pth"}
    for name, tensor in weights(small, 2).items():
        torch.testing.assert_close(tensor, weights(large, 2)[name], msg=name)


def test_each_sample_of_a_step_weighs_the_same_when_the_last_micro_batch_is_shorter(run_app: RunApp) -> None:
    """24 images as 16 and 8: the gradient and the logged loss are means over samples, not over micro-batches."""
    one_step = (*TINY, "data.limit_train=24", "optim=sgd", "optim.lr=0.5")
    together = run_app("together", *one_step, "data.batch_size=24")
    apart = run_app("apart", *one_step, "data.batch_size=16", "train.accumulate=2")
    for name, tensor in weights(apart, 1).items():
        torch.testing.assert_close(tensor, weights(together, 1)[name], rtol=1e-5, atol=1e-6, msg=name)
    losses = [row["train/loss"] for folder in (apart, together) for row in scalars(folder) if "train/loss" in row]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_clipping_bounds_the_step_and_logs_the_norm(run_app: RunApp) -> None:
    plain_sgd = ("optim=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.lr=1")
    folder = run_app("run", *TINY, *plain_sgd, "train.clip_norm=0.01")
    before, after = weights(folder, 1), weights(folder, 2)
    change = torch.sqrt(sum(((after[name] - before[name]) ** 2).sum() for name in before))  # type: ignore[arg-type]
    assert change.item() == pytest.approx(0.01, rel=1e-3)
    assert all(row["train/grad_norm"] > 0.1 for row in scalars(folder) if "train/loss" in row), "before clipping"


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_autocast_on_a_cpu(run_app: RunApp, amp: str) -> None:
    folder = run_app("run", *TINY, f"train.amp={amp}", "logging.window_size=1")
    full = run_app("full", *TINY, "logging.window_size=1")
    losses, exact = ([row["train/loss"] for row in scalars(place) if "train/loss" in row] for place in (folder, full))
    assert losses != exact, "computed in another precision"
    assert losses == pytest.approx(exact, rel=0.05)
    state = contents.load(folder / "checkpoints" / "iter_4.pth")
    assert (state["scaler"] is not None) == (amp == "fp16")
    assert all(tensor.dtype == torch.float32 for tensor in state["model"].values())


def test_deterministic_beats_benchmarking_and_changes_no_result(run_app: RunApp) -> None:
    plain = run_app("plain", *TINY)
    strict = run_app("strict", *TINY, "randomness.deterministic=true", "env.cudnn_benchmark=true")
    line = "randomness.deterministic=true beats env.cudnn_benchmark=true"
    assert line in (strict / "app.log").read_text()
    assert line not in (plain / "app.log").read_text()
    assert digest(weights(plain, 4)) == digest(weights(strict, 4))


def test_channels_last_changes_the_layout_not_the_result(run_app: RunApp) -> None:
    recipe = (*TINY, "model=small_cnn", "model.width=4")
    plain, last = run_app("plain", *recipe), run_app("last", *recipe, "env.channels_last=true")
    assert "channels-last" in (last / "app.log").read_text()
    for name, tensor in weights(last, 4).items():
        torch.testing.assert_close(tensor, weights(plain, 4)[name], rtol=1e-3, atol=1e-4, msg=name)


def test_mirrored_predictions_are_the_mean_of_both_views() -> None:
    images = torch.randn(5, 1, 4, 4)
    head = torch.randn(16, 3)
    predict = mirrored(lambda x: x.flatten(1) @ head)
    both = [(view.flatten(1) @ head).softmax(-1) for view in (images, images.flip(-1))]
    torch.testing.assert_close(predict(images).softmax(-1), (both[0] + both[1]) / 2)
    torch.testing.assert_close(predict(images), predict(images.flip(-1)))
    several = mirrored(lambda x: x.flatten(1) @ head, multi_label=True)
    both = [(view.flatten(1) @ head).sigmoid() for view in (images, images.flip(-1))]
    torch.testing.assert_close(several(images).sigmoid(), (both[0] + both[1]) / 2)
