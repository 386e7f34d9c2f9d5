"""The effect of prompts: which click carries a contour, and which one harms it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import (
    FRACTION,
    FUNCTION,
    NONE,
    TEXT,
    checked,
    for_each_axis,
    instance,
    integer,
    one_of,
    sequence,
    tensor_of,
)
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, Channels
from captum_causalseg.attr.effort import EFFORT, Effort
from captum_causalseg.attr.estimate import answer, estimate
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.options import InputUnits, Options, PromptArguments, PromptUnits
from captum_causalseg.attr.prompt_interactions import prompt_interactions
from captum_causalseg.donors import MovedPrompts
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["PromptTreatmentEffect"]

_WHERE = NONE | TEXT | integer(0)
_CHANNEL = integer(0) | sequence(integer(0), length=2, expected="a pair of an input and its channel")
_MOVED = NONE | instance(MovedPrompts)
_DRAWS = 50


class PromptTreatmentEffect(PerturbationAttribution):
    r"""Which click, box, mask or text made an interactive model segment the RoI the way it did?

    Every prompt ``p`` is left out of the call, or moved to places ``b`` around its own, and the score ``M`` of the RoI is measured again:

    .. math:: \text{effect}(p) = M(x, P) - M(x, P \setminus p), \qquad \text{or} \qquad M(x, P) - \mathbb{E}_b\, M(x, P[p := b])

    **Sign and unit.** In the score's own units (Dice in [0, 1]). Positive: the prompt supports the segmentation; negative: it harms it, and the
    segmentation would be better without it (or elsewhere).

    Left out is exact: one forward per prompt, a standard error of 0. Moved is exact as well where there are at most ``2 * n_draws`` places; of more,
    ``n_draws`` are drawn, and the statistics hold intervals and p-values.

    **Coordinates** are additional arguments of the forward: clicks ``(N, points, d)`` or ``(N, objects, points, d)`` with labels of the same
    shape without the last axis, boxes ``(N, boxes, 2 d)`` (the first corner, then the last), masks ``(N, masks, *spatial)``. A prompt that is left out
    is not in the tensor any more, and where none remains the argument is ``None``: what a model sees to which the prompt has never been given. (SAM's padding, label -10, is
    not quite that: its token is 0, but is attended to.) Only of several objects, where one would have fewer clicks than the others, is the click given ``padding_label``.

    **Maps**: what is drawn of prompts in channels of an image, on a background of 0. Each connected part of a channel is a prompt; left out, it is 0.

    Args:
        forward_func: any forward function that Captum accepts, such as a :class:`~captum_causalseg.SegmentationTarget` of a promptable model.
        baselines: a default for ``attribute``'s argument of this name.
        points, labels, boxes, masks, texts: where prompts stand, each the name of an argument of the model's forward, or its place in
            ``additional_forward_args``. By default what is called as in SAM, SAM 2 and VISTA3D (``input_points``, ``point_coords``, ``input_labels``,
            ``input_boxes``, ...; not texts).
        maps: channels of the first input in which prompts are drawn, or pairs ``(input, channel)``.
        no_text: what stands in the place of a text that is left out, such as the tokens of an empty one, without the examples' axis. By default ``None`` does.
        padding_label: of clicks that are none (SAM: -10, VISTA3D: -1); they are no units.
        indexing: the order of coordinates, as of :func:`numpy.meshgrid`: ``"xy"``: along the last axis of the image first, as SAM has them; ``"ij"``:
            along the first.

    Example:
        >>> import torch
        >>> from captum_causalseg import PromptTreatmentEffect, SegmentationTarget
        >>> def model(image, points, labels):  # a disk around each click, of label 1 added, of label 0 taken away
        ...     rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        ...     logits = -torch.ones(len(image), 1, 32, 32)
        ...     for k in range(0 if points is None else points.shape[1]):
        ...         x, y = points[:, k].T
        ...         near = ((columns - x.view(-1, 1, 1)) ** 2 + (rows - y.view(-1, 1, 1)) ** 2 < 36)[:, None]
        ...         logits = logits + 3 * near * (2 * labels[:, k].view(-1, 1, 1, 1) - 1)
        ...     return logits
        >>> image, points, labels = torch.rand(1, 1, 32, 32), torch.tensor([[[10.0, 10.0], [20.0, 12.0], [14.0, 11.0]]]), torch.tensor([[1, 1, 0]])
        >>> truth = model(image, points[:, :2], labels[:, :2])[:, 0] > 0
        >>> target = SegmentationTarget(model, reference=truth.long(), activation="sigmoid")
        >>> effects = PromptTreatmentEffect(target).attribute(image, additional_forward_args=(points, labels))
        >>> (effects > 0).tolist()  # the third click takes away what the first one has found
        [[True, True, False]]
    """

    @checked(
        forward_func=FUNCTION,
        baselines=_MOVED,
        points=_WHERE,
        labels=_WHERE,
        boxes=_WHERE,
        masks=_WHERE,
        texts=_WHERE,
        maps=NONE | sequence(_CHANNEL, 1, expected="channels"),
        no_text=NONE | tensor_of("real", "(...)", (1, 9)),
        padding_label=NONE | integer(),
        indexing=one_of("xy", "ij"),
    )
    def __init__(
        self,
        forward_func: Callable[..., Any],
        baselines: MovedPrompts | None = None,
        *,
        points: str | int | None = None,
        labels: str | int | None = None,
        boxes: str | int | None = None,
        masks: str | int | None = None,
        texts: str | int | None = None,
        maps: Sequence[int | tuple[int, int]] | None = None,
        no_text: Tensor | None = None,
        padding_label: int | None = None,
        indexing: Literal["xy", "ij"] = "xy",
    ) -> None:
        super().__init__(forward_func)
        self.baselines = baselines
        channels = None if maps is None else tuple((int(m[0]), int(m[1])) if isinstance(m, Sequence) else int(m) for m in maps)
        self._prompts = PromptArguments(
            points=points,
            labels=labels,
            boxes=boxes,
            masks=masks,
            texts=texts,
            maps=channels,
            no_text=no_text,
            padding_label=padding_label,
            indexing=indexing,
        )

    @log_usage(part_of_slo=True)
    @checked(EFFORT, baselines=_MOVED)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: MovedPrompts | None = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        n_draws: int = _DRAWS,
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
        precision: float | None = None,
        decide: float | None = None,
        alpha: float = 0.05,
    ) -> Any:
        """Estimate every prompt's effect.

        Args:
            inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
            baselines: ``None``: every prompt is left out. :class:`~captum_causalseg.donors.MovedPrompts`: it is moved to places around its own.
            target: which output to attribute, in all of Captum's forms; the statistics hold every output all the same.
            additional_forward_args: further arguments of the forward, prompts among them.
            n_draws: of places per prompt, where there are more than twice as many; fewer are all used. With ``precision`` or ``decide``, a budget.
            perturbations_per_eval, seed, show_progress, return_statistics, precision, decide, alpha: as in
                :meth:`AverageTreatmentEffect.attribute`. Clicks that leave calls of different shapes are run in batches of their own.

        Returns:
            ``(N, U)``: the effect of each prompt, the clicks first, then boxes, masks, texts and what is drawn in maps, in the order in which they
            stand in their tensors; 0 for those that an example does not have. With ``return_statistics`` a pair of them and the statistics, whose units are the
            prompts; :meth:`table` says where each of them lies.

        Raises:
            TypeError, ValueError: an argument is not as described, or no prompts are in the call.

        Example:
            >>> import torch
            >>> from captum_causalseg import PromptTreatmentEffect
            >>> from captum_causalseg.donors import MovedPrompts
            >>> click = torch.zeros(1, 1, 16, 16)
            >>> click[..., 5:7, 5:7] = 1.0  # drawn into the second channel
            >>> images = torch.cat([torch.rand(1, 1, 16, 16), click], 1)
            >>> middle = lambda images: images[:, 1, 5:7, 5:7].mean((1, 2))  # how much of the click lies where it is
            >>> method = PromptTreatmentEffect(middle, maps=[1])
            >>> float(method.attribute(images)), float(method.attribute(images, MovedPrompts(radius=1)))
            (1.0, 0.5)
        """
        moved = self.baselines if baselines is None else baselines
        options = Options(
            name=self.get_name(),
            forward_func=self.forward_func,
            inputs=inputs,
            baselines=moved,
            target=target,
            additional_forward_args=additional_forward_args,
            units=PromptUnits(prompts=self._prompts, moved=moved),
            effort=Effort(
                n_draws=n_draws,
                n_screening_draws=0,
                seed=seed,
                precision=precision,
                decide=decide,
                alpha=alpha,
            ),
            execution=Execution(perturbations_per_eval=perturbations_per_eval),
            show_progress=show_progress,
            return_statistics=True,
        )
        problem, statistics = estimate(options)
        attribution, _ = answer(options, problem, statistics)
        first = inputs[0] if isinstance(inputs, tuple) else inputs
        effects = attribution[:, 0].to(device=first.device, dtype=first.dtype)
        return (effects, statistics) if return_statistics else effects

    @checked(
        EFFORT,
        pairs=NONE
        | sequence(sequence(integer(0), length=2, expected="a pair of a prompt and a unit"), 1, expected="pairs of them"),
        prompt_baselines=_MOVED,
        block_size=NONE | for_each_axis(integer(1)),
        channels=CHANNELS,
        n_draws=integer(2),
        alpha=FRACTION,
    )
    def interactions(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        prompt_baselines: MovedPrompts | None = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | None = None,
        channels: Channels = None,
        exclude: Exclude = "roi",
        n_draws: int = _DRAWS,
        alpha: float = 0.05,
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
    ) -> pd.DataFrame:
        """Does a prompt matter because of what is in the image, such as the edge beside it? What the two do together that they do not do one by one.

        For a prompt ``p`` and a unit ``q`` of the image with donors ``c``, every draw gives all of

            ``interaction = M(x without p) + M(x with q := c) - M(x) - M(x without p, with q := c)``

        which is, as in :func:`~captum_causalseg.interaction_effects`, the effect of replacing both less the sum of the effects of replacing either. Where the effects are positive,
        an interaction below 0 says that they **need each other** (the click is of use because of what is there: ``synergistic``), one above 0 that either is
        enough (``redundant``).

        Args:
            inputs, target, additional_forward_args, perturbations_per_eval, seed, show_progress: as in :meth:`attribute`.
            baselines: donors of units of the image, as of :class:`~captum_causalseg.AverageTreatmentEffect`.
            pairs: ``(prompt, unit)``: numbers of prompts as in :meth:`table`, and ids of units. By default each prompt with each unit of the image, which are many.
            prompt_baselines: what becomes of prompts, as ``baselines`` of :meth:`attribute`.
            feature_mask, block_size, exclude: units of the image, as of :class:`~captum_causalseg.AverageTreatmentEffect`.
            channels: likewise; by default all in which no prompts are drawn.
            n_draws: of every pair, at least 2; ``m`` prompts and units in ``k`` pairs take ``m + k`` forwards per draw.
            alpha: the false discovery rate at which a pair is called redundant or synergistic (Benjamini and Hochberg, over the pairs of an example).

        Returns:
            A table as of :func:`~captum_causalseg.interaction_effects`: ``first`` is the unit's id, ``second`` the prompt, such as ``"prompt 0"``.

        Raises:
            TypeError, ValueError: an argument is not as described, or there is no such prompt or unit.

        Example:
            >>> import torch
            >>> from captum_causalseg import PromptTreatmentEffect
            >>> def model(images):  # the click finds what is bright below it
            ...     return (images[:, 0] * images[:, 1]).sum((1, 2))
            >>> images = torch.zeros(1, 2, 8, 8)
            >>> images[0, :, 2, 2] = 1.0  # a bright pixel, and a click on it
            >>> method = PromptTreatmentEffect(model, maps=[1])
            >>> table = method.interactions(images, 0.0, pairs=[(0, 0), (0, 3)], block_size=4, exclude=None, n_draws=2)
            >>> table[["first", "second", "interaction", "kind"]].values.tolist()
            [[0, 'prompt 0', -1.0, 'synergistic'], [3, 'prompt 0', 0.0, 'none']]
        """
        moved = self.baselines if prompt_baselines is None else prompt_baselines
        regions = InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels)
        options = Options(
            name=self.get_name(),
            forward_func=self.forward_func,
            inputs=inputs,
            baselines=baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            units=PromptUnits(prompts=self._prompts, moved=moved, regions=regions),
            effort=Effort(n_draws=n_draws, n_screening_draws=0, seed=seed),
            execution=Execution(perturbations_per_eval=perturbations_per_eval),
            show_progress=show_progress,
            return_statistics=True,
        )
        return prompt_interactions(options, pairs, alpha)

    @staticmethod
    @checked(statistics=instance(TreatmentEffectStatistics))
    def table(statistics: TreatmentEffectStatistics, target: TargetType = None) -> pd.DataFrame:
        """Which prompts there are, and what each does.

        Args:
            statistics: of :meth:`attribute`.
            target: of several outputs, the one that is meant.

        Returns:
            One row per example and prompt: ``example``, ``unit``, ``kind`` (click, box, mask, text or drawn), ``label`` (of a click; missing otherwise), ``at`` (its
            coordinates as in the call, of a box both corners; of what is drawn the middle, rows first; missing otherwise), ``effect``, ``standard_error``, ``lower``, ``upper`` (95 % interval), ``p_value``,
            ``n_draws`` and ``observed_score``.

        Example:
            >>> import torch
            >>> from captum_causalseg import PromptTreatmentEffect
            >>> images = torch.zeros(1, 2, 8, 8)
            >>> images[0, 1, 2, 3], images[0, 1, 6, 6] = 1.0, 1.0
            >>> method = PromptTreatmentEffect(lambda images: images[:, 1].sum((1, 2)), maps=[1])
            >>> table = method.table(method.attribute(images, return_statistics=True)[1])
            >>> table[["kind", "at", "effect"]].values.tolist()
            [['drawn', [2.0, 3.0], 1.0], ['drawn', [6.0, 6.0], 1.0]]
        """
        prompts = statistics.settings.get("prompts")
        if prompts is None:
            raise ValueError("statistics: expected those of PromptTreatmentEffect, whose units are prompts")
        table = statistics.of_output(target).to_dataframe()
        table = table[table["status"] != Status.EXCLUDED.name].reset_index(drop=True)
        about = [prompts[u]["examples"][n] for n, u in zip(table["example"], table["unit"])]
        found = table[["example", "unit"]].assign(
            kind=[prompts[u]["kind"] for u in table["unit"]],
            label=pd.Series([one.get("label") for one in about], dtype=object),
            at=pd.Series([one.get("at") for one in about], dtype=object),
        )
        numbers = ["effect", "standard_error", "lower", "upper", "p_value", "n_draws", "observed_score"]
        return found.join(table[numbers])
