"""Why a map shows nothing, in words."""

from typing import TYPE_CHECKING

from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import integer
from captum_causalseg.statistics.status import Status

if TYPE_CHECKING:
    from captum_causalseg.statistics.treatment_effect_statistics import TreatmentEffectStatistics

__all__ = ["why_empty"]


def why_empty(statistics: "TreatmentEffectStatistics", target: TargetType, example: int) -> str | None:
    """See :meth:`TreatmentEffectStatistics.why_empty`."""
    integer(0, statistics.effect.shape[0] - 1)("example", example)

    def chosen(values: Tensor) -> Tensor:
        return statistics.select(values, target)[example]

    tested, status = chosen(statistics.hypotheses), chosen(statistics.status)
    n = int(tested.sum())
    reaching = " that can reach the region of interest" if bool((status == Status.OUTSIDE_SUPPORT).any()) else ""
    if n == 0:
        if bool((statistics.status[example] == Status.FIRST_ORDER).any()):
            return _without_gradient(status, chosen(statistics.effect))
        if reaching:
            return "no unit beside the region of interest can reach it through the model: the effects are exactly 0"
        return "every unit touches the region of interest or was excluded: no effect is known"
    # Of a single draw there is no variance.
    still = tested & (chosen(statistics.effect) == 0) & ~(chosen(statistics.sample_variance) > 0)
    quiet = still | (status == Status.SCREENED)
    count = int(quiet.sum())
    if 2 * count < n:
        return None
    # Of all examples, which takes a while: where it is clear already, it is not asked for.
    alone = statistics.of_output(target)
    if bool((alone.adjusted_p_values()[example] <= 0.05).any()):
        return None
    said = f"no effect differs from 0: of {n} {'unit' if n == 1 else 'units'}{reaching}, {count} "
    if bool((quiet == still).all()):
        said += "did not change the score in any draw"
    else:
        threshold = statistics.settings.get("screening_threshold")
        said += "changed the score by less than " + ("the screening threshold" if threshold is None else f"{threshold:g}")
        said += " in the draws that they had"
    metric, smooth = statistics.settings.get("metric"), statistics.settings.get("smooth_metric")
    score = float(alone.observed_score[example])
    if smooth is not None:
        value = f"exactly {score:.0f}" if score in (0, 1) else f"{score:.4g}"
        said += (
            f'. metric="{metric}" is {value} and changes only where a pixel changes its label; metric="{smooth}" on the same '
        )
        said += "target shows what happens before that"
        said += ", if the reference holds the class in the region" if score == 0 else ""
        return said + (", with AverageTreatmentEffect" if statistics.settings.get("sampling") == "paper" else "")
    if bool((quiet != still).any()):
        return said + ". n_screening_draws=0 goes on measuring such units"
    if metric is not None and score == 0:
        said += f'. metric="{metric}" is exactly 0 whatever is replaced: does the reference hold the class in the region of interest?'
    return said


def _without_gradient(status: Tensor, effect: Tensor) -> str | None:
    """Of one output ``(U,)`` of an example that has first-order effects: why they show nothing."""
    known = status == Status.FIRST_ORDER
    if not bool(known.any()):
        return "first-order effects are known of the output that was asked for alone: ask for this one"
    if bool((effect[known] != 0).any()):
        return None
    return "all first-order effects are exactly 0: the score has no gradient there, or the units are as their mean donors"
