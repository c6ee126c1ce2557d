"""`python -m app`."""

import gc


def main() -> None:
    """Runs the command line without garbage collection until a job starts: until then nothing worth it is dropped."""
    gc.disable()
    from app.cli import entry

    entry()


if __name__ == "__main__":
    main()
