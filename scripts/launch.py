"""Several processes of one script: `python scripts/launch.py PROCESSES SCRIPT [ARG ...]`.

A file, not `python -m`: that would import from the folder it is started in.
"""

import sys

from eqdiff.training.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
