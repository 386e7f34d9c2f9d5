"""Ground truth: models and images whose causes are known, to check attributions against.

:func:`planted_case` builds a network whose output in the RoI depends on known far blocks, with known sign and size, so that the true
average treatment effect of every block follows from a formula. :func:`load_shortcut_case` brings a trained network that has learned
a shortcut: it outlines a lesion only if a letter is burned into the corner of the picture.
"""

from captum_causalseg.evaluation.planted.shortcut import (
    ShortcutCase,
    ShortcutExamples,
    build_shortcut_network,
    draw_shortcut_examples,
    load_shortcut_case,
    load_shortcut_network,
    load_shortcut_slices,
    marker_findings,
    shortcut_record,
)
from captum_causalseg.evaluation.planted.synthetic import PlantedCase, PlantedCause, PlantedNetwork, planted_case

__all__ = [
    "PlantedCase",
    "PlantedCause",
    "PlantedNetwork",
    "ShortcutCase",
    "ShortcutExamples",
    "build_shortcut_network",
    "draw_shortcut_examples",
    "load_shortcut_case",
    "load_shortcut_network",
    "load_shortcut_slices",
    "marker_findings",
    "planted_case",
    "shortcut_record",
]
