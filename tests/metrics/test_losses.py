"""The losses against torch's own and against their formulas; any loss as a mean and per sample."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from invocation import Terminal
from runs import scalars
from torch.nn import functional

from app.build import build_losses
from app.errors import ConfigError
from app.metrics.losses import Loss, bce, cross_entropy

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]], dtype=torch.float64)
INDICES = torch.tensor([0, 2])
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def test_plain_cross_entropy_is_torchs_own_function() -> None:
    assert cross_entropy() is functional.cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [INDICES, SOFT], ids=["indices", "soft"])
def test_cross_entropy(targets: torch.Tensor, smoothing: float) -> None:
    dense = functional.one_hot(targets, 3).double() if targets.ndim == 1 else targets
    expected = -((dense * (1 - smoothing) + smoothing / 3) * LOGITS.log_softmax(1)).sum(1)
    torch.testing.assert_close(cross_entropy(smoothing)(LOGITS, targets), expected.mean())
    torch.testing.assert_close(cross_entropy(smoothing, "none")(LOGITS, targets), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [INDICES, SOFT, LABELS], ids=["indices", "soft", "multi-label"])
def test_binary_cross_entropy(targets: torch.Tensor, smoothing: float) -> None:
    dense = functional.one_hot(targets, 3).double() if targets.ndim == 1 else targets
    smooth = dense * (1 - smoothing) + smoothing * dense.sum(1, keepdim=True) / 3
    chance = LOGITS.sigmoid()
    expected = -(smooth * chance.log() + (1 - smooth) * (1 - chance).log()).mean(1)
    torch.testing.assert_close(bce(3, smoothing)(LOGITS, targets), expected.mean())
    torch.testing.assert_close(bce(3, smoothing, "none")(LOGITS, targets), expected)


@pytest.mark.parametrize("loss", [cross_entropy(0.1), bce(3, 0.1)], ids=["cross_entropy", "bce"])
@pytest.mark.parametrize("targets", [INDICES, SOFT.float()], ids=["indices", "soft"])
def test_losses_of_half_precision_logits_under_autocast(loss: Loss, targets: torch.Tensor) -> None:
    logits = LOGITS.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, targets)
    value.backward()
    expected = loss(logits.detach().float(), targets)
    torch.testing.assert_close(value.float(), expected, rtol=2e-2, atol=2e-2)
    assert torch.isfinite(logits.grad).all()


OWN = """
import torch
from torch.nn import functional

class Focal(torch.nn.Module):
    def __init__(self, gamma=2.0, reduction="mean"):
        super().__init__()
        self.gamma, self.reduction = gamma, reduction

    def forward(self, logits, targets):
        loss = functional.cross_entropy(logits, targets, reduction="none")
        loss = (1 - (-loss).exp()) ** self.gamma * loss
        return loss.mean() if self.reduction == "mean" else loss

def by_batch():
    return functional.cross_entropy

def by_sample():
    return lambda logits, targets: functional.cross_entropy(logits, targets, reduction="none")

def by_pixel():
    return lambda logits, targets: logits[..., None].expand(-1, -1, 3)

class Centres(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = torch.nn.Parameter(torch.zeros(2))
"""
TINY = ("data.limit_train=32", "data.limit_val=16", "model=mlp", "train.max_epochs=1", "schedule.warmup=0",
        "randomness.seed=1", "hooks.checkpoint.interval=-1", "hydra.run.dir=run", "loss=custom")  # fmt: skip


def logged_loss(terminal: Terminal, name: str, *settings: str) -> float:
    terminal.write({f"{name}.py": OWN})
    outcome = terminal.run(*TINY, f"hydra.run.dir={name}", *settings)
    assert outcome.code == 0, outcome.message
    return next(row["val/loss"] for row in scalars(terminal.folder / name) if "val/loss" in row)


def test_a_loss_of_ones_own_is_named_by_its_target(terminal: Terminal) -> None:
    focal = logged_loss(terminal, "own_focal", "loss._target_=own_focal.Focal", "+loss.gamma=1")
    plain = logged_loss(terminal, "own_plain", "loss._target_=own_plain.Focal", "+loss.gamma=0")
    assert plain == pytest.approx(logged_loss(terminal, "torchs", "loss=cross_entropy"), rel=1e-6)
    assert focal < plain
    assert logged_loss(terminal, "own_single", "loss._target_=own_single.by_sample") == pytest.approx(plain, rel=1e-6)
    assert logged_loss(terminal, "own_batch", "loss._target_=own_batch.by_batch") == pytest.approx(plain, rel=1e-6)
    assert "gives no value per sample" in (terminal.folder / "own_batch" / "app.log").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [("by_pixel", r"for two samples got the shape \(2, 10, 3\)"), ("Centres", "has parameters, and nothing trains")],
)
def test_what_is_no_loss_is_refused(terminal: Terminal, name: str, says: str) -> None:
    terminal.write({f"wrong_{name}.py": OWN})
    refused = terminal.run(*TINY, f"loss._target_=wrong_{name}.{name}")
    assert refused.code == 64
    refused.says(says)


def test_the_old_name_of_a_loss_is_understood(terminal: Terminal) -> None:
    old = terminal.run(*TINY[:-1], "loss.kind=bce", "loss.label_smoothing=0.1")
    old.says("warning: loss.kind=bce is now chosen by loss=bce")
    kept = scalars(terminal.folder / "run")
    new = logged_loss(terminal, "new", "loss=bce", "loss.label_smoothing=0.1")
    assert new == next(row["val/loss"] for row in kept if "val/loss" in row)


def test_several_labels_an_image_need_bce() -> None:
    data: Any = SimpleNamespace(classes=["a", "b"], multi_label=True)
    conf = {"_target_": "app.metrics.losses.cross_entropy", "label_smoothing": 0.0}
    with pytest.raises(ConfigError, match="loss=cross_entropy is for one class an image; choose loss=bce"):
        build_losses(conf, data, torch.device("cpu"))
    assert build_losses(conf | {"kind": "bce"}, data, torch.device("cpu")).per_sample
