"""The commands of this package, one file each."""

from captum_causalseg.cli.command import Command
from captum_causalseg.cli.commands.cohort import CohortCommand
from captum_causalseg.cli.commands.compare import Compare
from captum_causalseg.cli.commands.components import Components
from captum_causalseg.cli.commands.demo import Demo
from captum_causalseg.cli.commands.explain import Explain
from captum_causalseg.cli.commands.pathway import PathwayCommand
from captum_causalseg.cli.commands.refute import Refute
from captum_causalseg.cli.commands.region import RegionCommand

__all__ = ["COMMANDS"]

# In the order of `causalseg --help`.
COMMANDS: tuple[type[Command], ...] = (Explain, RegionCommand, PathwayCommand, Components, Compare, Refute, CohortCommand, Demo)
