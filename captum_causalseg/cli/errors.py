"""What is said of input that cannot be used: one line that begins with the option."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["InputError", "naming", "naming_arguments"]

# Arguments of the library, in messages, by the option that gives them.
_OPTION_OF = {
    "baselines": "--donors",
    "layer_baselines": "--donors",
    "held_out": "--donors",
    "images": "--donors",
    "match": "--match",
    "blend": "--blend",
    "k": "--compare-donors",
    "ring": "--compare-donors",
    "block_size": "--units",
    "feature_mask": "--units",
    "n_draws": "--draws",
    "allocation": "--allocation",
    "precision": "--precision",
    "target": "--class",
    "output": "--class",
    "inputs": "--image",
    "roi": "--roi",
    "reference": "--label",
    "metric": "--metric",
    "surrogate": "--model",
    "path": "--bundle",
    "weights": "--weights",
    "config": "--bundle",
    "device": "--device",
}
_ARGUMENTS = re.compile(r"^([a-z_]+)(?:, [a-z_]+)*: ")


class InputError(ValueError):
    """What the user gave cannot be used; the message begins with the option. Other errors are the program's own.

    Example:
        >>> from captum_causalseg.cli import InputError
        >>> str(InputError("--image: there is no file scan.nii.gz")).split(":")[0]
        '--image'
    """


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Within, what goes wrong is about ``option``: say so, in place of an argument's name that the user never saw."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, ImportError, OSError) as error:
        raise InputError(f"{option}: {_ARGUMENTS.sub('', str(error))}") from error


@contextmanager
def naming_arguments(**options: str) -> Iterator[None]:
    """Within, errors about an argument that an option gives become errors about the option; others stay what they are.

    Args:
        **options: options of further arguments, by the argument's name.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        found = _ARGUMENTS.match(str(error))
        option = None if found is None else (_OPTION_OF | options).get(found[1])
        if found is None or option is None:
            raise
        said = str(error)[found.end() :].replace("give baselines", "give --donors")
        raise InputError(f"{option}: {said}") from error
