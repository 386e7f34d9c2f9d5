"""What a command of ``causalseg`` is."""

import argparse
from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["Command"]


class Command(ABC):
    """A command of ``causalseg``: what it is called, what it is told, what it does.

    A package of your own adds a command by an entry point in the group ``captum_causalseg.commands``, named as the command, that leads
    to its class::

        # pyproject.toml
        [project.entry-points."captum_causalseg.commands"]
        slices = "my_package.slices:Slices"

    The class is imported when the command is called, not before: ``causalseg --help`` lists it with the summary of your package. Have
    what takes time to import (torch, say) imported by :meth:`run`, and ``causalseg slices --help`` answers at once, too.

    Attributes:
        name: what is typed after ``causalseg``.
        help: what it is for, in one line.
        description: what is said of it before its options; without one, ``help``. Lines of a paragraph are filled, unless it is a
            table or an example: one that has line breaks.
        epilog: what is said after its options, such as an example.
        when_interrupted: what is left after Ctrl-C, in words that follow "interrupted"; a command may set its own while it runs.

    Example:
        >>> from captum_causalseg.cli import Command, InputError
        >>> class Slices(Command):
        ...     name, help = "slices", "how many slices a volume has"
        ...
        ...     def add_arguments(self, parser):
        ...         parser.add_argument("--image", required=True, metavar="FILE")
        ...
        ...     def run(self, options):
        ...         from captum_causalseg.images import load_image
        ...
        ...         try:
        ...             image = load_image(options.image, spatial_dims=3)
        ...         except (OSError, ValueError) as error:
        ...             raise InputError(f"--image: {error}") from error
        ...         return f"{image.shape[-1]} slices", 0
        >>> import argparse
        >>> try:
        ...     Slices().run(argparse.Namespace(image="scan.nii.gz"))
        ... except InputError as error:
        ...     print(error)
        --image: path: there is no file scan.nii.gz
    """

    name: ClassVar[str]
    help: ClassVar[str]
    description: ClassVar[str] = ""
    epilog: ClassVar[str] = ""
    when_interrupted: str = ""

    @abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Say which options the command has; called before anything else is."""

    @abstractmethod
    def run(self, options: argparse.Namespace) -> tuple[str, int]:
        """Do the work.

        Args:
            options: what was given, and ``options.command``, the command's name.

        Returns:
            What to print, and the exit status: 0 where all went well.

        Raises:
            InputError: something that was given cannot be used. Its message begins with the option, is printed in one line, and the
                exit status is 2. Other errors are the program's own and keep their traceback.
        """
