"""`python -m app.report FOLDER`: the door to app.launch.report."""

import sys

from app.launch.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
