"""A door to studies/quality/toybox_quality.py, which measures the toybox."""

import sys

from studies.quality.toybox_quality import main

if __name__ == "__main__":
    sys.exit(main())
