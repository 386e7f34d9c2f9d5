"""``causalseg compare``: this method beside others of Captum."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_causalseg.cli.arguments import add_context
from captum_causalseg.cli.case_command import CaseCommand
from captum_causalseg.cli.errors import InputError

if TYPE_CHECKING:
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.cli.job import Job

__all__ = ["Compare"]


class _Cases(argparse.Action):
    """Many cases are described in files, so that nothing is required of the line that describes one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, values)
        # No public name leads to them.
        for action in parser._actions:
            action.required = False
        for group in parser._mutually_exclusive_groups:
            group.required = False


def _defaults(command: "Compare") -> dict[str, Any]:
    """What every option is where it is not given; those of many cases left out."""
    parser = argparse.ArgumentParser(prog=command.name)
    command.add_arguments(parser)
    found = vars(parser.parse_args(["--cases", "-"]))
    return {name: value for name, value in found.items() if name not in ("cases", "config", "out")}


class Compare(CaseCommand):
    """Four methods on one segmentation, scored for their faithfulness to the model."""

    name = "compare"
    help = "this method beside others of Captum, scored for faithfulness"
    intent = (
        "Explain the same segmentation with treatment effects (with --context, joint ones besides), their first-order estimate, integrated gradients and feature "
        "ablation, and score how faithful each is to the model. Writes report.html, comparison.csv and comparison.png."
    )
    example = (
        "causalseg compare --model net.ts --image picture.png --label mask.png",
        "--roi box:72,88+32 --donors training/ --out result",
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        super().add_arguments(parser)
        add_context(parser)
        many = parser.add_argument_group("many cases")
        many.add_argument(
            "--cases",
            type=Path,
            action=_Cases,
            metavar="FILE.csv",
            help="compare on every row of a table, as causalseg cohort explains one: with --config and --out, and no other option. The same line goes on "
            "where it was interrupted. Writes scores.csv, means.csv, differences.csv (paired, from treatment effects) and ranks.csv, and keeps the maps",
        )
        many.add_argument("--config", type=Path, metavar="FILE.yaml", help="with --cases, the options of all of them")

    def run(self, options: argparse.Namespace) -> tuple[str, int]:
        """See :meth:`Command.run`."""
        if options.cases is None:
            if options.config is not None:
                raise InputError("--config: it goes with --cases")
            return super().run(options)
        usual = _defaults(self)
        given = [name for name, value in vars(options).items() if name in usual and value != usual[name]]
        if given:
            option = given[0].removesuffix("_").replace("_", "-")
            raise InputError(f"--{option}: with --cases, it is said in --config or in the table")
        from captum_causalseg.cli.study import run_comparison

        return run_comparison(options)

    def check_case(self, case: "CommandCase", options: argparse.Namespace) -> None:
        """See :meth:`CaseCommand.check_case`."""
        if case.units.modalities.asked not in (None, "each"):
            raise InputError(
                "--channels: methods are compared on parts of the whole image, or of each channel by itself; give each, or leave it out"
            )

    def explain(self, job: "Job", folder: Path) -> str:
        """See :meth:`CaseCommand.explain`."""
        from captum.attr import FeatureAblation, IntegratedGradients

        from captum_causalseg import regions
        from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
        from captum_causalseg.attr.channels import of_channels
        from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
        from captum_causalseg.cli.errors import naming_arguments
        from captum_causalseg.cli.job import about_the_picture, explainer_in
        from captum_causalseg.cli.page import Drawing
        from captum_causalseg.cli.report import comparison_page
        from captum_causalseg.cli.results import records, sign_words
        from captum_causalseg.evaluation.comparison import compare
        from captum_causalseg.visualization import plot_comparison
        from captum_causalseg.writing.names import write_csv

        case, options, target = job.case, job.options, job.case.target
        mask = case.units.arguments.get("feature_mask")
        if mask is None:
            mask = regions.grid(case.image.shape[2:], case.units.arguments["block_size"])[None, None]
        modalities = case.units.modalities
        if modalities.asked == "each":
            mask = of_channels([mask], [case.image], "each")[0][0]
        effort = {"n_draws": options.draws, "precision": options.precision, "seed": options.seed, "show_progress": True}
        effort |= {} if options.allocation is None else {"allocation": options.allocation}
        joint = (
            {}
            if options.context is None
            else {f"joint effects, {options.context}": explainer_in(options.context, target, effort)}
        )
        with naming_arguments():
            methods = {
                "treatment effects": (AverageTreatmentEffect(target), effort),
                **joint,
                "gradient treatment effects": GradientTreatmentEffect(target),
                "integrated gradients": (IntegratedGradients(target.surrogate()), {"internal_batch_size": 4}),
                "feature ablation": (FeatureAblation(target), {"feature_mask": mask.to(case.image.device)}),
            }
            comparison = compare(
                methods,
                target,
                case.image,
                baselines=case.donors,
                output=case.output,
                seed=options.seed,
                show_progress=True,
                feature_mask=mask,
            )
        seconds = job.seconds()
        job.found["comparison"] = records(comparison.table)
        write_csv(comparison.table, folder / "comparison.csv")
        pictures = []
        for channel, modality in modalities.shown:
            title = ", ".join(part for part in (case.name, modality) if part)
            drawn: dict[str, Any] = {"title": title, "columns": 5, "words": sign_words(options.metric), "channel": channel}
            drawn |= about_the_picture(case)
            pictures.append(Drawing(plot_comparison, comparison, **drawn, narrow={"columns": 1}))
            pictures[-1].save(folder / modalities.file_name("comparison", channel, ".png"))
        (folder / "report.html").write_text(comparison_page(job, comparison, pictures, seconds=seconds), encoding="utf-8")
        said: str = comparison.wide().T.to_string(float_format=lambda value: f"{value:.4g}", na_rep="-")
        why = comparison.unknown()
        return "\n".join([said, *(["", "without a value:"] if why else []), *(f"  {one}" for one in why)])
