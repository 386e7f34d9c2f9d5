"""How a result was computed, as reports say it: the command, the date, the versions, the settings."""

import argparse
import datetime
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import captum
import numpy as np
import torch

from captum_causalseg._version import __version__
from captum_causalseg.cli.files import command_line

__all__ = ["how_computed"]


def how_computed(
    options: argparse.Namespace, seconds: float, facts: Mapping[str, object], settings: Mapping[str, Any]
) -> dict[str, object]:
    """Names and values, the command first.

    Args:
        options: of the command.
        seconds: that it took.
        facts: to be said besides.
        settings: of the statistics, or of a study; what is empty is left out.
    """
    versions = {"captum_causalseg": __version__, "torch": torch.__version__, "captum": captum.__version__}
    # Not asked of the module, which takes seconds to import.
    versions |= {"monai": version("monai"), "numpy": np.__version__, "python": platform.python_version()}
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    rest = {name: value for name, value in settings.items() if name != "versions"}
    seed = {"seed": options.seed} if "seed" in options else {}
    in_words = _in_words(seed | rest | {"versions": versions})
    return {"Command": command_line(options), **facts, "Seconds": f"{seconds:.1f}", "Date": now, **in_words}


def _in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a person reads them; what is empty is left out."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name}: {said(one)}" for name, one in value.items())
        return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    shown = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    return {re.sub(r"^n_", "number_of_", name).replace("_", " ").capitalize(): said(shown[name]) for name in shown}
