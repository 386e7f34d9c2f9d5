"""The command line: ``causalseg explain | components | compare | refute | cohort | demo``, and commands of other packages.

Nothing here imports torch before the arguments are read: ``--help`` answers at once.
"""

from captum_causalseg.cli.command import Command
from captum_causalseg.cli.entry import main
from captum_causalseg.cli.errors import InputError

__all__ = ["Command", "InputError", "main"]
