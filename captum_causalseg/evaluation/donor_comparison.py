"""The same effects with several kinds of donors: what is the tissue's, and what is the edge of the patch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import ANY, FRACTION, FUNCTION, TEXT, checked, instance, integer, mapping, renamed, shown
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.problem import prepare_call
from captum_causalseg.donors import Blur, Constant, DonorSource, NeighborBank, PatchBank
from captum_causalseg.donors.fitted import Match
from captum_causalseg.evaluation.refute.context import rank_correlation
from captum_causalseg.evaluation.refute.differences import sign_changes
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target.outputs import first_image

__all__ = ["DonorComparison", "compare_donors", "kinds_of_donors"]

_NAMED = 8


def kinds_of_donors(bank: PatchBank, *, match: Match = "mean", blend: int = 2, ring: int = 4) -> dict[str, DonorSource]:
    """The kinds of donors that are worth a comparison, made of the images of one bank.

    Args:
        bank: donor images.
        match: how matched and blended donors are matched.
        blend: over how many pixels.
        ring: width of the surroundings of neighbors.

    Returns:
        ``"raw"``, ``"matched"``, ``"blended"`` (and matched), ``"neighbors"`` (of a bank of any placement, from anywhere), ``"blur"`` and
        ``"zeros"``.

    Example:
        >>> import torch
        >>> from captum_causalseg import PatchBank
        >>> from captum_causalseg.evaluation.donor_comparison import kinds_of_donors
        >>> list(kinds_of_donors(PatchBank(torch.rand(20, 1, 16, 16))))
        ['raw', 'matched', 'blended', 'neighbors', 'blur', 'zeros']
    """
    return {
        "raw": bank.fitted(),
        "matched": bank.fitted(match=match),
        "blended": bank.fitted(match=match, blend=blend),
        "neighbors": NeighborBank(bank, ring=ring),
        "blur": Blur(),
        "zeros": Constant(0.0),
    }


@dataclass(frozen=True)
class DonorComparison:
    """What :func:`compare_donors` found. ``print`` shows the table and the sentence.

    Args:
        statistics: per kind of donors, the effects on the output that was asked for.
        alpha: error rate of what is called significant.
        image: the first of the inputs that is an image, ``(N, C, *spatial)``.
        roi: ``(N or 1, *spatial)``, the region of interest of that output; ``None`` without one.

    Example:
        >>> from captum_causalseg import Constant, compare_donors
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)
        >>> given = {"raw": case.donors, "zeros": Constant(0.0)}
        >>> found = compare_donors(case.target(), case.images, given, block_size=8, n_draws=20)
        >>> found.table[["first", "second", "example"]].values.tolist()
        [['raw', 'zeros', 0]]
        >>> found.n_forwards == sum(one.n_forwards for one in found.statistics.values())
        True
        >>> found.natural, found.sign_differs("raw", "zeros").shape  # zeros are one donor, no distribution
        (['raw'], torch.Size([1, 16]))
        >>> found.trusted[0].nonzero().flatten().tolist() == sorted(case.cause_units)
        True
        >>> found.conclusion.split(",")[0]
        '3 of 11 units have a significant effect with raw donors'
    """

    statistics: dict[str, TreatmentEffectStatistics]
    alpha: float
    image: Tensor
    roi: Tensor | None

    @property
    def n_forwards(self) -> int:
        """Images that went through the model, for all kinds."""
        return sum(one.n_forwards for one in self.statistics.values())

    @property
    def natural(self) -> list[str]:
        """The kinds that are distributions of donors, not a single replacement."""
        return [name for name, one in self.statistics.items() if bool((one.population[one.hypotheses] > 1).any())]

    @property
    def table(self) -> pd.DataFrame:
        """A row per pair of kinds and example.

        Columns: ``first``, ``second``, ``example``; ``n_units`` that were intervened on with both; ``rank_correlation`` (Spearman's) of
        their effects; ``slope``, the second kind's effects as a multiple of the first's, by least squares; ``n_sign_differs``, units
        whose sign differs significantly; ``units``, their ids.
        """
        names = list(self.statistics)
        rows = []
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                one, other = self.statistics[first], self.statistics[second]
                differs = self.sign_differs(first, second)
                for n in range(len(one.effect)):
                    both = (one.hypotheses & other.hypotheses)[n].numpy()
                    a, b = one.effect[n].numpy()[both], other.effect[n].numpy()[both]
                    ids = one.unit_ids[differs[n]].tolist()
                    slope = float(a @ b / (a @ a)) if (a != 0).any() else float("nan")
                    rows.append((first, second, n, int(both.sum()), rank_correlation(a, b), slope, len(ids), ids))
        columns = ["first", "second", "example", "n_units", "rank_correlation", "slope", "n_sign_differs", "units"]
        return pd.DataFrame(rows, columns=columns)

    def sign_differs(self, first: str, second: str) -> Tensor:
        """Units whose effect is above 0 with one kind and below 0 with the other, each significantly; boolean ``(N, U)``.

        "Both differ from 0" is refuted by the larger one of the two p-values (an intersection-union test: it needs no independence,
        and the kinds may share their draws); corrected by Benjamini and Hochberg over the units of an example.
        """
        return torch.from_numpy(sign_changes(self._of(first), self._of(second), self.alpha))

    @property
    def trusted(self) -> Tensor:
        """Units whose effect is significant, and of one sign, with every kind of natural donors; boolean ``(N, U)``."""
        names = self.natural or list(self.statistics)
        signs = [
            torch.sign(one.effect).nan_to_num(0.0) * one.significant(self.alpha)
            for one in (self.statistics[name] for name in names)
        ]
        total: Tensor = torch.stack(signs).sum(0).abs()
        return total == len(names)

    @property
    def conclusion(self) -> str:
        """What can be trusted, in a sentence."""
        names = self.natural or list(self.statistics)
        first, others = names[0], names[1:]
        found = self._of(first)
        significant = found.significant(self.alpha)
        n = int(significant.sum())
        said = f"{n} of {int(found.hypotheses.sum())} units have a significant effect with {first} donors"
        if not others:
            return said + ", and there are no other natural donors to compare them with"
        kept = int((self.trusted & significant).sum())
        said += f"; {kept} of these have the same sign, significantly, with {_listed(others)} as well"
        turned = torch.stack([self.sign_differs(first, other) for other in others]).any(0)
        if not bool(turned.any()):
            return said + "; no unit changes its sign significantly"
        example, unit = turned.nonzero().T
        ids = found.unit_ids[unit].tolist()
        several = len(found.effect) > 1
        which = [f"{i} of example {int(e)}" if several else str(i) for i, e in zip(ids, example)]
        more = ", ..." if len(which) > _NAMED else ""
        return (
            f"{said}; {len(ids)} change{'s its' if len(ids) == 1 else ' their'} sign significantly (unit{'s' * (len(ids) > 1)} "
            f"{', '.join(which[:_NAMED])}{more}): what is said of {'it' if len(ids) == 1 else 'them'} depends on the donors"
        )

    def __str__(self) -> str:
        table = self.table.drop(columns="units")
        if (table["example"] == 0).all():
            table = table.drop(columns="example")
        return f"{table.to_string(index=False, float_format=lambda value: f'{value:.2f}')}\n\n{self.conclusion}."

    @checked(example=integer(0), title=TEXT)
    def plot(self, *, example: int = 0, title: str = "") -> Figure:
        """All maps side by side on one scale: :func:`captum_causalseg.visualization.plot_donors`.

        Example:
            >>> from captum_causalseg import Constant, compare_donors
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)
            >>> given = {"raw": case.donors, "zeros": Constant(0.0)}
            >>> found = compare_donors(case.target(), case.images, given, block_size=8, n_draws=20)
            >>> [axes.get_title() for axes in found.plot().axes[:2]]
            ['raw', 'zeros']
        """
        from captum_causalseg.visualization import plot_donors  # which draws what this room makes

        return plot_donors(self, example=example, title=title)

    def _of(self, name: str) -> TreatmentEffectStatistics:
        if name not in self.statistics:
            raise ValueError(f"name: expected one of {list(self.statistics)}, got {shown(name)}")
        return self.statistics[name]


@checked(
    target=FUNCTION,
    donors=instance(PatchBank) | mapping(TEXT, ANY, expected="a mapping of names to donors", least=1),
    alpha=FRACTION,
)
def compare_donors(
    target: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    donors: PatchBank | Mapping[str, Any],
    output: TargetType = None,
    *,
    alpha: float = 0.05,
    **arguments: Any,
) -> DonorComparison:
    """The same effects with several kinds of donors, and what holds with all of them.

    A raw patch brings a step of brightness and an edge with it, and networks answer to these. No standard error shows that: every kind of donors
    asks its own question, and each answer is right. What holds whatever the donors are is about the image.

    Args:
        target: what is explained, as :class:`~captum_causalseg.AverageTreatmentEffect` takes it.
        inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
        donors: by name, whatever ``attribute`` takes as ``baselines``. The first is what the others are compared with in the sentence.
            A :class:`~captum_causalseg.PatchBank` alone means the kinds of :func:`~captum_causalseg.evaluation.donor_comparison.kinds_of_donors`.
        output: which output's effects, in all of Captum's forms.
        alpha: error rate of what is called significant.
        **arguments: of ``attribute``, the same for all; units meet the same draws from banks of the same images.

    Returns:
        A :class:`DonorComparison`.

    Raises:
        TypeError, ValueError: an argument is not as described, or ``attribute`` refuses it.

    Example:
        >>> import torch
        >>> from captum_causalseg import PatchBank, SegmentationTarget, compare_donors, regions
        >>> model, image = torch.nn.Conv2d(1, 2, 9, padding=4), torch.rand(1, 1, 32, 32)
        >>> roi = regions.box((32, 32), start=12, size=8)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=roi, metric="soft_dice")
        >>> bank = PatchBank(torch.rand(20, 1, 32, 32))
        >>> kinds = {"raw": bank, "matched": bank.fitted(match="mean")}
        >>> found = compare_donors(target, image, kinds, output=1, block_size=4, n_draws=8)
        >>> found.table["n_units"].tolist(), found.trusted.shape
        ([12], torch.Size([1, 64]))
    """
    kinds = kinds_of_donors(donors) if isinstance(donors, PatchBank) else dict(donors)
    for name, better in (
        ("return_statistics", "the statistics are in what is returned; leave it out"),
        ("baselines", "give donors"),
    ):
        if name in arguments:
            raise TypeError(f"{name}: {better}")
    explainer = AverageTreatmentEffect(target)
    found = {}
    for name, source in kinds.items():
        given: dict[str, Any] = {"baselines": source, "target": output, **arguments}
        # As the user knows the arguments.
        with renamed(target="output", forward_func="target", baselines=f"donors[{name!r}]"):
            found[name] = explainer.attribute(inputs, return_statistics=True, **given)[1]
    image = first_image(inputs if isinstance(inputs, tuple) else (inputs,)).detach().cpu()
    call = prepare_call(target, inputs, arguments.get("additional_forward_args"))
    outputs = call.outputs(next(iter(found.values())).output_shape, output)
    return DonorComparison(
        statistics={name: one.of_output(output) for name, one in found.items()},
        alpha=float(alpha),
        image=image,
        roi=None if call.rois is None else outputs.region(call.rois.cpu()),
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
