"""Calls the command line in this process, which is what a person types less the seconds of start-up."""

import gc
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from app import cli
from app.config import targets


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Everything it said."""
        return self.out + self.err

    def says(self, *patterns: str) -> None:
        """Fails unless every pattern is found, and no traceback."""
        assert "Traceback" not in self.message, self.message
        for pattern in patterns:
            assert re.search(pattern, self.message), f"{pattern!r} is not in:\n{self.message}"


class Terminal:
    """A folder to work in, and `python -m app` in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        monkeypatch.setenv(targets.ENVIRONMENT, "")

    def run(self, *arguments: str) -> Outcome:
        """Runs one command; its log handlers do not outlive it."""
        self.monkeypatch.setattr(sys, "argv", ["app", *arguments])
        root = logging.getLogger()
        handlers, level = list(root.handlers), root.level
        environment = dict(os.environ)
        self.capsys.readouterr()
        gc.freeze()  # what is here already, torch among it, need not be looked through again and again
        gc.disable()  # as app/__main__.py does
        try:
            code = cli.entry()
        finally:
            gc.unfreeze()
            gc.enable()
            for handler in [handler for handler in root.handlers if handler not in handlers]:
                root.removeHandler(handler)
                handler.close()
            root.setLevel(level)
            os.environ.clear()
            os.environ.update(environment)
        output = self.capsys.readouterr()
        assert isinstance(code, int)
        return Outcome(code, output.out, output.err)

    def write(self, files: dict[str, str | bytes]) -> None:
        """Makes files below the folder."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
