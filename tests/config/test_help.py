"""`--help` for a person, and shell completion in a real bash."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from invocation import Terminal

from app.config import help as app_help
from app.config.completion import script
from app.config.schema import GROUPS
from app.errors import ConfigError


def test_overview_has_what_a_person_looks_for() -> None:
    text = app_help.overview()
    for group, nodes in GROUPS.items():
        line = re.search(rf"^  {group} .*(\n   .*)*", text, re.MULTILINE)
        assert line, group
        assert all(name in line[0] for name in nodes if name != "torchvision"), group
    for word in ("experiment", "hydra/launcher", "train.", "python -m app --multirun", "Exit codes", "--help TOPIC"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("topic", "patterns"),
    [
        ("hooks.ema", [r"momentum = 0\.0002  \(number, in \(0, 1\)\)\n +average = \(1 - momentum\)", r"\+hooks=ema"]),
        ("train.amp", [r"one of false, off, bf16, fp16", "Autocast"]),
        ("optim", [r"optim=sgd: Stochastic", r"nesterov = false", r"lr = 0\.05 "]),
        ("hooks", [r"early_stop +Stop when a metric", r"--help hooks\.NAME"]),
        ("augment", [r"crop +Shift the image .*padding=4", r"mixup"]),
        ("env.dist", [r"backend = auto  \(text, one of auto, nccl, gloo\)"]),
        ("experiment", [r"mnist_lenet5 +LeNet-5 on MNIST"]),
        ("launcher", [r"gpus_per_job = 1"]),
        ("max_epochs", [r"train\.max_epochs = null  \(whole number or null, >= 1\)"]),
        ("hooks.checkpoint.interval", [r"hooks\.checkpoint\.interval = 1", r"no checkpoint is ever written"]),
        ("metrics", [r"topk = \[1\]  \(list of whole number, >= 1\)"]),
        ("optim.lr=0.1", [r"optim\.lr"]),
    ],
)
def test_topics(terminal: Terminal, topic: str, patterns: list[str]) -> None:
    outcome = terminal.run("--help", topic)
    outcome.says(*patterns)
    assert outcome.code == 0


def test_every_topic_has_a_text() -> None:
    for topic in (*GROUPS, *app_help.sections(), *(name for name, _ in app_help.all_keys())):
        assert app_help.topic_text(topic)


def test_every_key_is_documented() -> None:
    undocumented = [name for name, key in app_help.all_keys() if not key.doc]
    assert not undocumented


def test_completion_is_for_bash_only() -> None:
    assert "complete -o nospace" in script(["install=bash"])
    assert "complete -r" in script(["uninstall=bash"])
    with pytest.raises(ConfigError, match="for bash, eval"):
        script(["install=tcsh"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python -m app hooks.checkpoint.int", "hooks.checkpoint.interval="),
        ("app --multirun model=le", "model=lenet5"),
        ("/usr/bin/python3 -m app +hooks=em", "+hooks=ema +hooks=empty_cache"),
        ("python -m app train.amp=", "train.amp=false train.amp=off train.amp=bf16 train.amp=fp16"),
        ("app sch", "schedule. schedule="),
    ],
)
def test_completion_query(terminal: Terminal, line: str, expected: str) -> None:
    terminal.monkeypatch.setenv("COMP_LINE", line)
    outcome = terminal.run("-sc", "query=bash")
    assert outcome.out.split() == expected.split()


def test_tab_in_an_interactive_bash(tmp_path: Path) -> None:
    """What the person at the keyboard gets: the words that the tab key puts on the line."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    python = f"{sys.executable} -m app"
    (tmp_path / "rc").write_text(
        f'PS1="> "\npython() {{ {sys.executable} "$@"; }}\neval "$({python} -sc install=bash)"\n'
    )
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        [bash, "--noprofile", "--rcfile", "rc", "-i"], cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave,
        env=os.environ | {"TERM": "dumb", "HISTFILE": "/dev/null"}, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        expect(master, "> ")
        for typed, completed in (
            (b"python -m app experiment=mni\t", "experiment=mnist_lenet5"),
            (b"\x15python -m app hooks.checkpoint.save_beg\t", "hooks.checkpoint.save_begin="),
        ):
            os.write(master, typed)
            expect(master, completed)
    finally:
        shell.kill()
        shell.wait()
        os.close(master)


def expect(terminal: int, text: str, seconds: float = 60.0) -> None:
    """Reads from a terminal until `text` has been seen."""
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < deadline, f"{text!r} did not appear in {seen!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")
