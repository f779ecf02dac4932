"""The page as a Space of the Hugging Face hub starts it: `python app/space.py`. See README.md here.

A Space reaches its page from outside the container, so it listens at every address. The file is not
called app.py: beside serve.py that name would hide the package.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Becomes app/serve.py, which finds the repository by PYTHONPATH as under scripts/app.sh."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    words = [sys.executable, str(ROOT / "app" / "serve.py"), "--host", "0.0.0.0", *sys.argv[1:]]
    os.execve(sys.executable, words, {**os.environ, "PYTHONPATH": path})


if __name__ == "__main__":
    main()
