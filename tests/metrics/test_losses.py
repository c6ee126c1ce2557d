"""The losses against torch's own and against their formulas."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from app.metrics.losses import build_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]], dtype=torch.float64)
INDICES = torch.tensor([0, 2])
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def conf(kind: str, label_smoothing: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "label_smoothing": label_smoothing}


def test_plain_cross_entropy_is_torchs_own_function() -> None:
    assert build_loss(conf("cross_entropy"), 3) is functional.cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [INDICES, SOFT], ids=["indices", "soft"])
def test_cross_entropy(targets: torch.Tensor, smoothing: float) -> None:
    dense = functional.one_hot(targets, 3).double() if targets.ndim == 1 else targets
    expected = -((dense * (1 - smoothing) + smoothing / 3) * LOGITS.log_softmax(1)).sum(1)
    torch.testing.assert_close(build_loss(conf("cross_entropy", smoothing), 3)(LOGITS, targets), expected.mean())
    torch.testing.assert_close(build_loss(conf("cross_entropy", smoothing), 3, "none")(LOGITS, targets), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [INDICES, SOFT, LABELS], ids=["indices", "soft", "multi-label"])
def test_binary_cross_entropy(targets: torch.Tensor, smoothing: float) -> None:
    dense = functional.one_hot(targets, 3).double() if targets.ndim == 1 else targets
    smooth = dense * (1 - smoothing) + smoothing * dense.sum(1, keepdim=True) / 3
    chance = LOGITS.sigmoid()
    expected = -(smooth * chance.log() + (1 - smooth) * (1 - chance).log()).mean(1)
    torch.testing.assert_close(build_loss(conf("bce", smoothing), 3)(LOGITS, targets), expected.mean())
    torch.testing.assert_close(build_loss(conf("bce", smoothing), 3, "none")(LOGITS, targets), expected)


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
@pytest.mark.parametrize("targets", [INDICES, SOFT.float()], ids=["indices", "soft"])
def test_losses_of_half_precision_logits_under_autocast(kind: str, targets: torch.Tensor) -> None:
    logits = LOGITS.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = build_loss(conf(kind, 0.1), 3)(logits, targets)
    loss.backward()
    expected = build_loss(conf(kind, 0.1), 3)(logits.detach().float(), targets)
    torch.testing.assert_close(loss.float(), expected, rtol=2e-2, atol=2e-2)
    assert torch.isfinite(logits.grad).all()
