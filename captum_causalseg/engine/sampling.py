"""Sampling schemes: a design and the estimator that goes with it."""

from dataclasses import dataclass, field
from typing import Literal

from captum_causalseg.engine.design import Design, PaperDesign, StratifiedDesign, UniformDesign
from captum_causalseg.engine.estimator import Estimator, StratifiedEstimator

__all__ = ["SCHEMES", "Sampling", "SamplingScheme", "scheme_of"]


@dataclass(frozen=True)
class SamplingScheme:
    """Which donors a row gets, and what is made of their scores. What ``sampling=`` takes beside the names of those that there are.

    Args:
        design: a class; an object of it is made for every row.
        estimator: one for all rows. The default knows strata, and takes draws without any for a simple random sample.
        name: for ``settings["sampling"]``; by default those of the two classes.

    Example:
        >>> from captum_causalseg.engine.design import UniformDesign
        >>> from captum_causalseg.engine.sampling import SamplingScheme
        >>> SamplingScheme(UniformDesign).name
        'UniformDesign, StratifiedEstimator'
    """

    design: type[Design]
    estimator: Estimator = field(default_factory=StratifiedEstimator)
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.design.__name__}, {type(self.estimator).__name__}")


Sampling = Literal["uniform", "stratified", "paper"] | SamplingScheme
"""A scheme, or the name of one of :data:`SCHEMES`."""

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        SamplingScheme(UniformDesign, name="uniform"),
        SamplingScheme(StratifiedDesign, name="stratified"),
        SamplingScheme(PaperDesign, name="paper"),
    )
}
"""The schemes that have a name."""


def scheme_of(sampling: Sampling) -> SamplingScheme:
    """The scheme that is meant."""
    return SCHEMES[sampling] if isinstance(sampling, str) else sampling
