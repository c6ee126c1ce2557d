"""Training without torch's compiler packages, with the same results."""

import subprocess
import sys
from pathlib import Path

import torch

from app.core.compiler import skip_compiler_import

NAMES = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam")


def train(name: str) -> list[torch.Tensor]:
    """Weights after three steps, with all that a training loop calls on an optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 4)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    calls: list[bool] = []
    optimizer.register_step_post_hook(lambda *arguments: calls.append(torch.is_grad_enabled()))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 5)).square().sum().backward()
        loss = optimizer.step(lambda: torch.ones((), requires_grad=True) * 2)
        assert loss.requires_grad  # a closure runs with gradients
        scheduler.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == [True] * 3
    return [parameter.detach() for parameter in model.parameters()]


def main(path: str) -> None:
    skip_compiler_import()
    step = torch.optim.SGD.step
    skip_compiler_import()
    assert torch.optim.SGD.step is step  # a second call changes nothing
    torch.save({name: train(name) for name in NAMES}, path)
    assert "torch._dynamo" not in sys.modules, "the compiler was imported"


def test_stock_optimizers_import_no_compiler_and_train_to_the_same_bits(tmp_path: Path) -> None:
    import torch._dynamo  # from here on torch's own wrappers are in force, whoever has called what before

    path = tmp_path / "weights.pt"
    done = subprocess.run([sys.executable, __file__, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, weights in torch.load(path).items():
        for ours, theirs in zip(weights, train(name), strict=True):
            assert ours.equal(theirs), name


if __name__ == "__main__":
    main(sys.argv[1])
