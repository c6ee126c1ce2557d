"""The command line as a person uses it; wrong ones are in test_bad_input.py."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from invocation import Terminal

from app.config import command_line
from app.core.rank import find_rank
from app.errors import ConfigError

TINY = ["data=fake", "data.size=16", "data.val_size=8", "data.image_size=8", "train.max_epochs=1", "schedule=constant"]
OWN = """
import torch
from torch import nn
from app.data.source import ImageTensor, Splits
from app.core.hook import Hook


class Net(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_classes))

    def forward(self, images):
        return self.layers(images)


class Note(Hook):
    def __init__(self, text="nothing"):
        self.text = text

    def finish(self, run, error):
        print("note:", self.text, sum(p.numel() for p in run.state.model.parameters()), run.data.train_size)


class Broken(Hook):
    def epoch_end(self, run):
        raise ZeroDivisionError("a bug of the user's")


def dots(size=20):
    images = torch.zeros(size, 1, 8, 8, dtype=torch.uint8)
    splits = ImageTensor(images, torch.arange(size) % 2)
    return Splits(splits, splits, ["a", "b"])
"""


def composed(terminal: Terminal, *arguments: str) -> dict[str, object]:
    """What `--cfg job --resolve` prints."""
    outcome = terminal.run(*arguments, "--cfg", "job", "--resolve")
    assert outcome.code == 0, outcome.message
    config = yaml.safe_load(outcome.out)
    assert isinstance(config, dict)
    return config


def test_flags_may_stand_between_settings(terminal: Terminal) -> None:
    outcome = terminal.run("optim.lr=0.5", "--cfg", "job", "model=mlp", "--package=optim", "+hooks=ema")
    assert (outcome.code, yaml.safe_load(outcome.out)["lr"]) == (0, 0.5)


def test_hooks_are_added_and_removed(terminal: Terminal) -> None:
    config = composed(terminal, "+hooks=ema", "hooks.logger=null", "hooks.ema.momentum=0.5")
    hooks = config["hooks"]
    assert isinstance(hooks, dict)
    assert hooks["ema"]["momentum"] == 0.5
    assert hooks["logger"] is None
    assert "checkpoint" in hooks


def test_an_unknown_hook_with_a_class_is_added_whole() -> None:
    words = ["hooks.mine._target_=a.B", "hooks.mine.size=3", "+hooks.mine.name=x", "hooks.logger.interval=2"]
    assert command_line.checked_settings(words) == [
        "++hooks.mine._target_=a.B", "++hooks.mine.size=3", "++hooks.mine.name=x", "hooks.logger.interval=2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("load_from=https://h/w.pth#sha256=ab", 'load_from="https://h/w.pth#sha256=ab"'),
        ("load_from=a=b/c.pth", 'load_from="a=b/c.pth"'),
        ("optim.lr=0.1,0.2", "optim.lr=0.1,0.2"),
        ("optim.lr=range(start=1,stop=3)", "optim.lr=range(start=1,stop=3)"),
        ("name='a=b'", "name='a=b'"),
        ("data.augment={crop: {padding: 2}}", "data.augment={crop: {padding: 2}}"),
    ],
)
def test_addresses_need_no_quotes(word: str, quoted: str) -> None:
    assert command_line.checked_settings([word]) == [quoted]


def test_split_reports_a_flag_without_its_value() -> None:
    with pytest.raises(ConfigError, match="--package needs a value"):
        command_line.split(["--cfg", "job", "--package"])


def test_only_rank_zero_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert find_rank().rank == 0, "RANK alone is no group of processes"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert find_rank().rank == 1
    settings = command_line.for_rank(["hydra.run.dir=x", "optim.lr=1"], 1)
    assert settings[0] == "optim.lr=1"
    assert {"hydra.output_subdir=null", "hydra.run.dir=.", "hydra/job_logging=none"} < set(settings)
    assert command_line.for_rank(["hydra.run.dir=x"], 0) == ["hydra.run.dir=x"]


def test_classes_from_outside_the_repository(terminal: Terminal) -> None:
    terminal.write({"own_parts/__init__.py": "", "own_parts/parts.py": OWN})
    outcome = terminal.run(
        "model=custom", "model._target_=own_parts.parts.Net", "+model.width=3",
        "data=custom", "data._target_=own_parts.parts.dots", "+data.size=12",
        "hooks.mine._target_=own_parts.parts.Note", "hooks.mine.text=seen",
        "train.max_epochs=1", "schedule=constant",
    )  # fmt: skip
    outcome.says(rf"note: seen {64 * 3 + 3 + 3 * 2 + 2} 12")
    assert outcome.code == 0


EXPERIMENT = """\
# @package _global_
defaults: [override /model: net, override /data: dots]
name: mine
train: {max_epochs: 1}
hooks: {mine: {_target_: own_files.parts.Note, text: from a file}}
"""


def test_classes_from_a_config_folder_of_the_users(terminal: Terminal) -> None:
    data = "defaults: [/schema/data/custom@_here_, _self_]\n_target_: own_files.parts.dots\nsize: 14\n"
    terminal.write(
        {
            "own_files/__init__.py": "",
            "own_files/parts.py": OWN,
            "own/model/net.yaml": "_target_: own_files.parts.Net\nwidth: 4\n",
            "own/data/dots.yaml": data,
            "own/experiment/mine.yaml": EXPERIMENT,
        }
    )
    outcome = terminal.run("experiment=mine", "--config-dir", "own", "model.width=5", "schedule=constant")
    outcome.says(rf"note: from a file {64 * 5 + 5 + 5 * 2 + 2} 14")
    assert outcome.code == 0
    assert (terminal.folder / "outputs/mine").is_dir()


def test_packages_elsewhere_must_be_trusted(terminal: Terminal, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far_parts.py").write_text(OWN)
    terminal.monkeypatch.syspath_prepend(elsewhere)
    line = ["hooks.mine._target_=far_parts.Note", *TINY]
    outcome = terminal.run(*line)
    outcome.says(r"far_parts\.Note is not trusted", r"trusted_packages=\[far_parts\]", "APP_TRUSTED_PACKAGES=far_parts")
    assert outcome.code == 64
    assert "far_parts" not in sys.modules, "it was imported before it was trusted"
    assert terminal.run(*line, "trusted_packages=[far_parts]").code == 0
    terminal.monkeypatch.setenv("APP_TRUSTED_PACKAGES", "far_parts")
    assert terminal.run(*line).code == 0


def test_a_bug_shows_its_traceback_and_is_logged(terminal: Terminal) -> None:
    terminal.write({"own_bug.py": OWN})
    outcome = terminal.run("hooks.mine._target_=own_bug.Broken", "hydra.run.dir=run", *TINY)
    assert outcome.code == 70
    for text in (outcome.message, (terminal.folder / "run/app.log").read_text()):
        assert re.search(r"Traceback(.|\n)*ZeroDivisionError: a bug of the user's", text)
        assert "hooks.mine" in text


def test_an_error_is_one_message_on_console_and_in_the_log(terminal: Terminal) -> None:
    outcome = terminal.run("model.num_classes=3", "hydra.run.dir=run", *TINY)
    assert outcome.code == 64
    log = (terminal.folder / "run/app.log").read_text()
    assert outcome.message.count("error: ") == log.count("error: ") == 1
    assert "Traceback" not in outcome.message + log


def test_full_errors_on_request(terminal: Terminal) -> None:
    terminal.monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = terminal.run("model.num_classes=3", *TINY)
    assert outcome.code == 64
    assert "Traceback" in outcome.message


def test_a_launcher_without_multirun_is_pointed_out(terminal: Terminal) -> None:
    outcome = terminal.run("hydra/launcher=slurm", "load_from=nothing.pth")
    outcome.says("warning: hydra/launcher has no effect without --multirun")
    assert outcome.code == 66


def test_a_single_run_writes_its_snapshot(terminal: Terminal) -> None:
    assert terminal.run("hydra.run.dir=run", *TINY).code == 0
    (snapshot,) = (terminal.folder / "run/.hydra").iterdir()
    assert "data.size=16" in yaml.safe_load((snapshot / "overrides.yaml").read_text())


def test_multirun_from_a_file(terminal: Terminal) -> None:
    sweep = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {optim.lr: '1,-2'}}}\n"
    terminal.write({"own/experiment/sweep.yaml": sweep})
    outcome = terminal.run("--config-dir", "own", "experiment=sweep")
    outcome.says(r"optim\.lr must be > 0, got -2")
    assert outcome.code == 64


def test_info_and_hydra_help(terminal: Terminal) -> None:
    outcome = terminal.run("--info", "defaults")
    assert outcome.code == 0
    assert "model/small_cnn" in outcome.out
    outcome = terminal.run("--hydra-help")
    assert outcome.code == 0
    assert "--multirun" in outcome.out


def test_showing_a_config_makes_no_folder(terminal: Terminal) -> None:
    outcome = terminal.run("--cfg", "all", "--resolve")
    assert outcome.code == 0
    assert not list(terminal.folder.iterdir())


LIGHT = """
import contextlib, io, os, sys
from app.cli import main
from app.errors import ConfigError
os.environ["COMP_LINE"] = "app hooks.ch"
for arguments in (["--help"], ["--help", "hooks.ema"], ["--cfg", "job"], ["-sc", "query=bash"], ["--info", "defaults"]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0
    assert out.getvalue()
for typo in (["optim.lrr=1"], ["+hooks=emma"], ["optim.lr=-1"], ["-m", "optim.lr=-1,2", "output_root=" + sys.argv[1]]):
    try:
        main(typo)
        raise AssertionError(typo)
    except ConfigError:
        pass
heavy = {"torch", "numpy", "torchvision"} & set(sys.modules)
assert not heavy, heavy
"""


def test_torch_is_not_imported_to_compose_help_or_refuse(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path)], check=True, cwd=tmp_path)


def test_real_process_exit_code_and_streams(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "optim.lrr=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert done.stdout == ""
    assert re.fullmatch(r"error: unknown key 'optim\.lrr'; .*\n", done.stderr)


def test_a_metric_of_torchmetrics_leaves_no_noise_behind(tmp_path: Path) -> None:
    metric = "+metrics.extra.kappa={_target_: torchmetrics.CohenKappa, task: multiclass}"
    command = [sys.executable, "-m", "app", *TINY, metric]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "val/kappa" in done.stdout
    assert done.stderr == "", "Triton, which torchmetrics loads, counts what is left at the end"


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m app --help 2>err | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
    assert (tmp_path / "err").read_text() == ""


def test_ctrl_c_before_training_leaves_quietly(tmp_path: Path) -> None:
    (tmp_path / "slow_parts.py").write_text("import time\nopen('importing', 'w').close()\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "hooks.mine._target_=slow_parts.Hook"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not (tmp_path / "importing").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
