"""What of an effect travels through a mediator, what goes around it, and what share that is."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import FRACTION, TEXT, array_of, checked, integer, shown
from captum_causalseg.statistics.intervals import quantile
from captum_causalseg.statistics.ratios import fieller
from captum_causalseg.statistics.status import Status
from captum_causalseg.statistics.treatment_effect_statistics import TreatmentEffectStatistics

__all__ = ["LayerMediation", "MediationStatistics", "Quantity", "Split"]

Quantity = Literal["total", "indirect", "direct", "interaction"]

# Columns of a quantity of its own, beside the effect.
_OWN = ("standard_error", "lower", "upper", "p_value")


@dataclass(frozen=True, eq=False)
class Split:
    """Total and indirect effects of units, and how well they are known together: what shares are made of.

    Arrays of one shape.

    Attributes:
        total, indirect: the effects.
        total_variance, indirect_variance: of their estimates.
        covariance: of the two, which are from the same donors.
        freedom: degrees of freedom of the variances.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics.mediation import Split
        >>> total, indirect, exact = np.array([0.2, -0.2]), np.array([0.1, -0.2]), np.zeros(2)
        >>> split = Split(total, indirect, exact, indirect_variance=exact, covariance=exact, freedom=np.full(2, np.inf))
        >>> [round(float(end), 6) for end in split.together().share(0.95)]  # units of both signs do not undo each other
        [0.75, 0.75, 0.75]
    """

    total: np.ndarray
    indirect: np.ndarray
    total_variance: np.ndarray
    indirect_variance: np.ndarray
    covariance: np.ndarray
    freedom: np.ndarray

    def some(self, which: Any) -> "Split":
        """Those at an index, or where a mask says so.

        Example:
            >>> import numpy as np
            >>> from captum_causalseg.statistics.mediation import Split
            >>> Split(*np.ones((6, 3))).some([True, False, True]).total.shape
            (2,)
        """
        return Split(**{name: values[which] for name, values in vars(self).items()})

    def together(self) -> "Split":
        """Of units ``(U,)`` that draw their donors independently the sums, each with the sign of its total effect.

        Example:
            >>> import numpy as np
            >>> from captum_causalseg.statistics.mediation import Split
            >>> float(Split(*np.ones((6, 3))).together().total)
            3.0
        """
        sign, b = np.sign(self.total), self.total_variance
        with np.errstate(invalid="ignore", divide="ignore"):
            # As Welch and Satterthwaite have it: what is known exactly takes no part.
            freedom = b.sum() ** 2 / np.where(b > 0, b**2 / self.freedom, 0.0).sum()
        sums = [np.abs(self.total).sum(), (sign * self.indirect).sum()]
        sums += [values.sum() for values in (b, self.indirect_variance, self.covariance)]
        return Split(*(np.asarray(one) for one in (*sums, freedom)))

    def share(self, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Indirect over total effects, and the ends of Fieller's intervals; NaN where the total effect is not told from 0.

        Example:
            >>> import numpy as np
            >>> from captum_causalseg.statistics.mediation import Split
            >>> unclear, clear = Split(*np.ones((6, 1))).share(0.95), Split(*(np.full(1, x) for x in (4, 2, 1, 1, 0.5, 99))).share(0.95)
            >>> [round(float(end[0]), 2) for end in (*unclear, *clear)]
            [nan, nan, nan, 0.5, 0.01, 0.99]
        """
        a, b = self.indirect_variance, self.total_variance
        with np.errstate(invalid="ignore", divide="ignore"):
            share = self.indirect / self.total
            rest = np.maximum(a - 2 * share * self.covariance + share**2 * b, 0.0)
            covariance = self.covariance - share * b
            lower, upper = fieller(share, self.total, variances=(rest, b), covariance=covariance, t=self._t(level))
            known = np.isfinite(lower)
            return np.where(known, share, np.nan), np.where(known, lower, np.nan), np.where(known, upper, np.nan)

    def share_error(self, level: float) -> np.ndarray:
        """Standard errors that give intervals as wide as those of :meth:`share`; NaN where there are none.

        Example:
            >>> import numpy as np
            >>> from captum_causalseg.statistics.mediation import Split
            >>> round(float(Split(*(np.full(1, x) for x in (4, 2, 1, 1, 0.5, 99))).share_error(0.95)[0]), 3)
            0.249
        """
        _, lower, upper = self.share(level)
        t = self._t(level)
        return np.where(t > 0, (upper - lower) / np.where(t > 0, 2 * t, 1.0), np.where(np.isfinite(lower), 0.0, np.nan))

    def _t(self, level: float) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            # Exact effects have no degrees of freedom, and need none.
            exact = (self.indirect_variance == 0) & (self.total_variance == 0)
            return np.where(exact, 0.0, quantile(self.freedom, level))


@dataclass(frozen=True, eq=False)
class LayerMediation:
    """Every unit's effect, split at one mediator; all parts are from the same donors.

    Attributes:
        name: of the mediator.
        total: ``M(x) - M(do)``, the unit's average treatment effect.
        indirect: ``M(x) - M(x; a := a(do))``: what travels through the mediator alone.
        direct: ``M(x) - M(do; a := a(x))``: what goes around it.
        interaction: total less indirect less direct (to the rounding of the scores): what takes both ways at once.
        rest: total less indirect.

    Example:
        >>> import torch
        >>> from captum_causalseg import MediatedTreatmentEffect
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
        >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
        >>> layer = stats.of_layer("1")
        >>> layer.name, layer.direct.effect.tolist()
        ('1', [[[0.0], [0.0]]])
    """

    name: str
    total: TreatmentEffectStatistics
    indirect: TreatmentEffectStatistics
    direct: TreatmentEffectStatistics
    interaction: TreatmentEffectStatistics
    rest: TreatmentEffectStatistics

    def of_quantity(self, quantity: Quantity) -> TreatmentEffectStatistics:
        """One of the four by its name.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
            >>> stats["0"].of_quantity("indirect") is stats["0"].indirect
            True
        """
        found: TreatmentEffectStatistics = getattr(self, quantity)
        return found

    @checked(level=FRACTION)
    def share_mediated(self, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
        """The share of the total effect that travels through the mediator, and the ends of its interval, each ``(N, U, *output_shape)``.

        Indirect over total effect, with Fieller's interval (1954), which knows that both come from the same draws. A share lies outside of 0 to 1 where
        what travels through the mediator and what goes around it have opposite signs. NaN where the total effect is not clearly nonzero: where its own
        interval of this level holds 0. Where no draw shows that the two differ, nothing is known of how they go together, and the interval is the widest that
        their errors allow: a level that all passes has a share of 1 with an interval, as draws prove no more.

        Args:
            level: coverage, in (0, 1).

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
            >>> share, lower, upper = stats["0"].share_mediated()  # with one donor, effects are exact
            >>> bool(share.nan_to_num(1.0).allclose(torch.ones_like(share)))
            True
        """
        share, lower, upper = (torch.from_numpy(values) for values in self.split().share(level))
        return share, lower, upper

    @checked(units=array_of("boolean", "(U,)", (1, 1)), example=integer(0), level=FRACTION)
    def share_of_units(self, units: np.ndarray, example: int = 0, level: float = 0.95) -> tuple[float, float, float]:
        """The share of the effects of several units that travels through the mediator, with the ends of its interval.

        The sum of the indirect effects over that of the total ones, each with the sign of the unit's total effect: units of both signs do not undo each
        other. Units draw their donors independently.

        Args:
            units: boolean ``(U,)``.
            example: which example.
            level: coverage, in (0, 1).

        Returns:
            NaN where the sum is not clearly nonzero, or no unit is meant.

        Raises:
            ValueError: there are several outputs (see :meth:`of_output`).

        Example:
            >>> import numpy as np
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), target=1, return_statistics=True)
            >>> stats["1"].of_output(1).share_of_units(np.array([True, True])) == (1.0, 1.0, 1.0)  # exact: there is one donor
            True
        """
        if self.total.output_shape:
            raise ValueError("share_of_units: expected one output; choose it with of_output")
        if not units.any():
            return math.nan, math.nan, math.nan
        share, lower, upper = (float(end) for end in self.split().some(example).some(units).together().share(level))
        return share, lower, upper

    def of_output(self, target: TargetType = None) -> "LayerMediation":
        """The same for one output alone, as ``target`` picks it in ``attribute``.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), target=1, return_statistics=True)
            >>> stats["1"].of_output(1).direct.effect.tolist()
            [[0.0, 0.0]]
        """
        parts = ("total", "indirect", "direct", "interaction", "rest")
        return replace(self, **{name: getattr(self, name).of_output(target) for name in parts})

    def split(self) -> Split:
        """Total and indirect effects ``(N, U, *output_shape)`` with their variances and covariance.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
            >>> stats["0"].split().covariance.tolist()  # with one donor, effects are exact
            [[[0.0], [0.0]]]
        """
        indirect, total = self.indirect.effect.numpy(), self.total.effect.numpy()
        a, b, c = (one.standard_error.numpy() ** 2 for one in (self.indirect, self.total, self.rest))
        with np.errstate(invalid="ignore"):
            # Of a rest that is 0 in every draw the error is infinite: then the least that it can be.
            covariance = np.clip((a + b - c) / 2, -np.sqrt(a * b), np.sqrt(a * b))
        freedom = np.fmin(self.total.degrees_of_freedom.numpy(), self.indirect.degrees_of_freedom.numpy())
        return Split(total, indirect, b, indirect_variance=a, covariance=covariance, freedom=freedom)

    @checked(level=FRACTION)
    def to_dataframe(self, level: float = 0.95) -> pd.DataFrame:
        """One row per example, unit and output: ``layer``, where the unit lies as in the table of plain effects, and the quantities.

        Each of ``total``, ``indirect``, ``direct`` and ``interaction`` has the effect in a column of its name, and ``_standard_error``, ``_lower``,
        ``_upper`` and ``_p_value``; ``share`` is :meth:`share_mediated` with ``_lower``, ``_upper`` and ``_p_value``, which is that of nothing
        travelling through the mediator.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
            >>> stats["0"].to_dataframe()["direct"].tolist()
            [0.0, 0.0]
        """
        frame = self.total.to_dataframe(level).rename(columns={"effect": "total", **{name: f"total_{name}" for name in _OWN}})
        frame.insert(0, "layer", self.name)
        for quantity in ("indirect", "direct", "interaction"):
            own = getattr(self, quantity).to_dataframe(level)
            frame[quantity] = own["effect"]
            frame[[f"{quantity}_{name}" for name in _OWN]] = own[list(_OWN)]
        there = (self.total.status != Status.ABSENT).numpy().ravel()
        for name, values in zip(("", "_lower", "_upper"), self.share_mediated(level)):
            frame[f"share{name}"] = values.numpy().ravel()[there]
        # A share is 0 where the indirect effect is: Fieller's interval is the set of all shares that a t-test does not refuse.
        frame["share_p_value"] = frame["indirect_p_value"].where(frame["share"].notna())
        return frame


class MediationStatistics(Mapping[str, LayerMediation]):
    """Every unit's effect, split at each of several mediators: a mapping from their names to :class:`LayerMediation`.

    Attributes:
        total: the total effects, which are the same whatever they are split at.
        layers: names of the mediators.

    Example:
        >>> import torch
        >>> from captum_causalseg import MediatedTreatmentEffect
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
        >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
        >>> list(stats), stats.total.effect.shape
        (['0', '1'], torch.Size([1, 2, 1]))
    """

    def __init__(self, layers: Mapping[str, LayerMediation]) -> None:
        self._layers = dict(layers)
        self.layers = tuple(self._layers)
        self.total = next(iter(self._layers.values())).total

    @property
    def settings(self) -> dict[str, Any]:
        """How it was computed."""
        return self.total.settings

    @property
    def n_forwards(self) -> int:
        """Images that went through the model, for whatever purpose."""
        return self.total.n_forwards

    def __getitem__(self, name: str) -> LayerMediation:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"MediationStatistics({', '.join(self.layers)}; {self.total!r})"

    @checked(name=TEXT | integer())
    def of_layer(self, name: str | int) -> LayerMediation:
        """The effects split at one mediator, by its name or its number.

        Raises:
            ValueError: there is none of that name.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
            >>> stats.of_layer("1") is stats.of_layer(1)
            True
        """
        if isinstance(name, str) and name in self._layers:
            return self._layers[name]
        if not isinstance(name, str) and -len(self.layers) <= name < len(self.layers):
            return self._layers[self.layers[name]]
        raise ValueError(f"name: expected one of {', '.join(map(repr, self.layers))}, got {shown(name)}")

    @checked(level=FRACTION)
    def to_dataframe(self, level: float = 0.95) -> pd.DataFrame:
        """The tables of all mediators, one below the other.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), return_statistics=True)
            >>> stats.to_dataframe()["layer"].tolist()
            ['0', '0', '1', '1']
        """
        return pd.concat([layer.to_dataframe(level) for layer in self._layers.values()], ignore_index=True)

    def of_output(self, target: TargetType = None) -> "MediationStatistics":
        """The same for one output alone, as ``target`` picks it in ``attribute``.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
            >>> mediated = MediatedTreatmentEffect(model, ["0", "1"])
            >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), target=1, return_statistics=True)
            >>> stats.of_output(1).total.effect.shape
            torch.Size([1, 2])
        """
        return MediationStatistics({name: layer.of_output(target) for name, layer in self._layers.items()})
