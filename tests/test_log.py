import logging
import os

import pytest

from app.log import ConsoleHandler


def test_a_reader_that_leaves_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    handler = ConsoleHandler()
    with os.fdopen(write_end, "w") as stream:
        handler.setStream(stream)
        for line in ("first", "second"):
            handler.handle(logging.LogRecord("app", logging.INFO, __file__, 1, line, None, None))
    assert capfd.readouterr().err == ""
