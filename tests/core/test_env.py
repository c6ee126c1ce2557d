import os
import resource

import pytest
import torch

from app.core import env
from app.errors import ConfigError

SETTINGS = {"mp": {"num_threads": 1, "opencv_num_threads": 0}, "cudnn_benchmark": True, "resource_limit": 512}


def snapshot() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.get_num_threads(),
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        os.environ.get("OPENCV_FOR_THREADS_NUM"),
        resource.getrlimit(resource.RLIMIT_NOFILE),
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_everything_is_put_back(deterministic: bool) -> None:
    before = snapshot()
    with env.applied(SETTINGS, deterministic=deterministic) as notes:
        assert torch.get_num_threads() == 1
        assert os.environ["OPENCV_FOR_THREADS_NUM"] == "0"
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
        assert bool(notes) is deterministic
    assert snapshot() == before


def test_open_files_are_raised_to_the_limit_asked_for() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with env.applied(SETTINGS, deterministic=False):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_limit_that_cannot_be_had_is_a_plain_warning(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no hard limit here")
    with env.applied(SETTINGS | {"resource_limit": hard + 1}, deterministic=False):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    assert caplog.messages == [f"env.resource_limit={hard + 1} is above the hard limit {hard}; using {hard}"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuba", "env.device=cuba is no device; use auto, cpu, cuda"),
        ("xpu", "env.device=xpu is not supported"),
        pytest.param(
            "cuda:63",
            "env.device=cuda:63",
        ),
    ],
)
def test_a_device_that_is_not_there_is_refused(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        env.choose_device(device)
