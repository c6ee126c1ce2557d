"""`python -m app`."""

import gc
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line without garbage collection until a job starts: until then nothing worth it is dropped."""
    gc.disable()
    from app.cli import entry
    from app.process import leave

    leave(entry())


if __name__ == "__main__":
    main()
