"""The smallest part of the image that is enough for the score, and the smallest without which it is lost."""

from typing import Any, Literal

from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import NONE, SEED, checked, instance, integer, number, one_of
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.effort import EFFORT
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.attr.region_course import RegionSearch, effort_of, found_regions
from captum_causalseg.engine.set_worth import Of, ShareAsked
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.layout import UnitKind
from captum_causalseg.target import SegmentationTarget

__all__ = ["necessary_region", "sufficient_region"]

_CHECKS = EFFORT | {
    "target": instance(SegmentationTarget, nn.Module, expected="a SegmentationTarget or another module"),
    "share": number(above=0, most=1),
    "share_of": one_of("span", "score"),
    "alternatives": integer(0),
    "beam": integer(1),
    "n_draws": integer(2),
    "max_forwards": NONE | integer(1),
    "seed": SEED,
    "channels": CHANNELS,
    "units": UNITS,
}


@checked(_CHECKS)
def sufficient_region(
    target: SegmentationTarget | nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Baselines = None,
    *,
    share: float = 0.95,
    share_of: Of = "span",
    output: TargetType = None,
    alternatives: int = 0,
    beam: int = 1,
    n_draws: int = 32,
    max_forwards: int | None = None,
    additional_forward_args: Any = None,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    channels: Channels = None,
    units: UnitKind = "block",
    support: Literal["auto", "always"] | None = "auto",
    exclude: Exclude = "roi",
    perturbations_per_eval: int = 16,
    seed: int = 0,
    show_progress: bool = False,
) -> Any:
    """The smallest set of units found that is enough: kept while all other units are replaced by donors, it keeps most of the score.

    With ``M(x)`` the observed score, ``M(S)`` the mean score with the units ``S`` kept and ``M(none)`` that with all units replaced, the share that ``S`` keeps is

        ``[M(S) - M(none)] / [M(x) - M(none)]``

    of the **span**. It is 0 of no unit and 1 of all, also of scores that do not fall to 0 without the image, and of those that grow where the image is worse
    (distances). Where replacing everything *raises* a score that is to be high, the region is what keeps it down. ``share_of="score"`` asks for ``M(S) / M(x)``
    instead, which no unit may be needed for. What is excluded (by default, units that touch the region of interest) is always kept, and is no part of
    the region; units that cannot reach it are neither needed nor kept.

    **Search.** Units are ranked by their joint effects (:class:`~captum_causalseg.JointTreatmentEffect`, 8 permutations) and taken in this order until the share is
    reached; those that turn out not to be needed are left out again, until none can be. ``beam`` adds sets that are grown unit by unit. Where there are at most 300
    smaller sets, all of them are tried (``region.smallest``). A set has to reach the share by one standard error here, so that it seldom fails on other
    donors; one that falls short in each of the first quarter of the draws, and in their mean by three standard errors, is given up. The set that is found is looked at
    with as many draws again, in which its choice had no part; if it does not hold in them, they are searched with as well, with up to four times the draws. No search short of all sets finds the smallest one for certain.

    **Judging.** The search has one half of the donor images (of a source without images, every other donor), and what is reported is measured with the other
    half, ``n_draws`` draws of a donor for each replaced unit. So that a region does *not* reach the share is a result (``region.reached``), not an
    error. Intervals are t-intervals over the draws, of shares Fieller's; where the score is the same in all draws, they allow for as many others as a binomial
    bound does, each as far away as the score with everything replaced. Where each unit has a single donor (a constant), all is exact.

    Args:
        target: what is scored, a :class:`~captum_causalseg.SegmentationTarget` or another module that returns scores.
        inputs, baselines, additional_forward_args, feature_mask, block_size, channels, units, support, exclude, perturbations_per_eval, show_progress: as in
            :meth:`AverageTreatmentEffect.attribute`. At least four donor images.
        share: to be kept, more than 0 and at most 1.
        share_of: of the ``"span"`` or of the ``"score"``.
        output: which output, as Captum's ``target``; of a class and a RoI, the pair.
        alternatives: how many further regions to look for, disjoint from those before; it ends where no further one reaches the share.
        beam: how many sets of each size are grown; 1 for none. Each is extended by the ``8 * beam`` units that it lacks with the largest joint effects.
        n_draws: of donors, for each set in the search (more where the set found does not hold), and again to judge; at least 2.
        max_forwards: interventions per image at most, ranking, search and judging together; by default 100 per unit, and what the least takes. A search that
            ends there returns what it has (``region.complete`` is false).
        seed: of the halves and of all draws.

    Returns:
        A :class:`~captum_causalseg.Region`; of a batch of several images, a tuple with one for each.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

    Example:
        >>> import torch
        >>> from captum_causalseg import sufficient_region
        >>> class Both(torch.nn.Module):
        ...     def forward(self, image):  # two of eight pixels are looked at, and both are needed
        ...         return image.flatten(1)[:, [2, 5]].amin(1)
        >>> image, donors = torch.ones(1, 1, 1, 8), torch.rand(20, 1, 1, 8) / 10
        >>> region = sufficient_region(Both(), image, donors, block_size=1)
        >>> region.units, region.reached, region.share_reached
        ((2, 5), True, 1.0)
    """
    options = Options(
        name="Sufficient region",
        forward_func=target,
        inputs=inputs,
        baselines=baselines,
        target=output,
        additional_forward_args=additional_forward_args,
        units=InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units),
        effort=effort_of(n_draws, seed=seed, support=support),
        execution=Execution(perturbations_per_eval=perturbations_per_eval),
        show_progress=show_progress,
    )
    search = RegionSearch(n_draws=n_draws, alternatives=alternatives, beam=beam, max_forwards=max_forwards)
    return found_regions(ShareAsked("sufficient", float(share), share_of), search, options)


@checked(_CHECKS)
def necessary_region(
    target: SegmentationTarget | nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Baselines = None,
    *,
    share: float = 0.95,
    share_of: Of = "span",
    output: TargetType = None,
    alternatives: int = 0,
    beam: int = 1,
    n_draws: int = 32,
    max_forwards: int | None = None,
    additional_forward_args: Any = None,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    channels: Channels = None,
    units: UnitKind = "block",
    support: Literal["auto", "always"] | None = "auto",
    exclude: Exclude = "roi",
    perturbations_per_eval: int = 16,
    seed: int = 0,
    show_progress: bool = False,
) -> Any:
    """The smallest set of units found without which the score is lost: replaced by donors while all other units are kept, it takes most of it away.

    The share that the units ``S`` take away is ``[M(x) - M(do S)] / [M(x) - M(none)]`` of the **span**, with ``M(none)`` the mean score with all units replaced: 0
    of no unit and 1 of all. With ``share_of="score"`` it is ``[M(x) - M(do S)] / M(x)``, which may be out of reach of all units together: a region of them
    all that does not reach the share says so.

    Where either of two units is enough, each of them is a :func:`sufficient_region`, and the necessary one is both; where both are needed, the sufficient one is both, and
    each of them is necessary.

    Args:
        target, inputs, baselines, share_of, output, alternatives, beam, n_draws, max_forwards: as in :func:`sufficient_region`.
        additional_forward_args, feature_mask, block_size, channels, units, support, exclude, perturbations_per_eval, seed, show_progress: likewise.
        share: to be taken away, more than 0 and at most 1.

    Returns:
        A :class:`~captum_causalseg.Region`; of a batch of several images, a tuple with one for each. Search and judging are those of :func:`sufficient_region`.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

    Example:
        >>> import torch
        >>> from captum_causalseg import necessary_region
        >>> class Either(torch.nn.Module):
        ...     def forward(self, image):  # two of eight pixels are looked at, and either is enough
        ...         return image.flatten(1)[:, [2, 5]].amax(1)
        >>> image, donors = torch.ones(1, 1, 1, 8), torch.rand(20, 1, 1, 8) / 10
        >>> region = necessary_region(Either(), image, donors, block_size=1)
        >>> region.units, region.reached, region.share_reached
        ((2, 5), True, 1.0)
    """
    options = Options(
        name="Necessary region",
        forward_func=target,
        inputs=inputs,
        baselines=baselines,
        target=output,
        additional_forward_args=additional_forward_args,
        units=InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units),
        effort=effort_of(n_draws, seed=seed, support=support),
        execution=Execution(perturbations_per_eval=perturbations_per_eval),
        show_progress=show_progress,
    )
    search = RegionSearch(n_draws=n_draws, alternatives=alternatives, beam=beam, max_forwards=max_forwards)
    return found_regions(ShareAsked("necessary", float(share), share_of), search, options)
