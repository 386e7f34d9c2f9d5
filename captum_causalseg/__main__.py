"""``python -m captum_causalseg``: the command line."""

import sys

from captum_causalseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
