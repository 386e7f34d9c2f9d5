"""The command line: ``causalseg explain | components | compare | refute | cohort | demo``.

Nothing here imports torch before the arguments are read: ``--help`` answers at once.
"""

from captum_causalseg.cli.entry import main

__all__ = ["main"]
