"""Which attention heads of a SegFormer matter for the boundary of a lesion, and which for its inside?

    python benchmarks/heads.py --data FOLDER --threads 1 [--cases 8] [--donors 24] [--steps 1200] [--against own|reference]
        [--write docs/benchmarks/heads.md]

A small SegFormer (two blocks in each of four stages, 2, 2, 4 and 4 heads: 24 in all) is trained on the pictures of ``skin.py`` and kept in ``--cache``. Of test
pictures whose lesion it finds (Dice above 0.7), every head of every block is given what it is on other pictures, before the output projection mixes the heads
(``component_effects(level="head")``); all ``--donors`` are used, so that the effects on a picture are exact for them. The score is the Dice in one of two regions, with
the network's own outline (which heads does it take?), or ``--against reference``, with the drawn one (which heads help, and which do harm?). The regions are the *boundary*, all pixels within 4 of
that outline, and the *inside*, the lesion further from it than that. Means over pictures, with 95 % intervals between pictures (Student's t) and Benjamini and Hochberg over the heads. As a check, the
heads are replaced together: those that matter most for the boundary, and as many that matter least.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import skin
import torch
from cases import machine, parser, picture_folder, publish, say, start
from scipy import ndimage
from scipy import stats as scipy_stats
from torch import Tensor, nn
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from captum_causalseg import SegmentationTarget, component_effects
from captum_causalseg.demo import Augmentation, fit
from captum_causalseg.statistics import adjust_p_values
from captum_causalseg.visualization import plot_heads

STEPS, NEAR, LEAST_DICE, TOGETHER = 1200, 4, 0.7, 4
REGIONS = ("boundary", "inside")
OUTLINES = {"own": "its own outline", "reference": "the reference"}


class SegFormer(nn.Module):
    """``(N, 3, H, W)`` to the logits of the lesion ``(N, 1, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.segformer = SegformerForSemanticSegmentation(
            SegformerConfig(
                num_channels=3,
                num_labels=1,
                depths=[2] * 4,
                hidden_sizes=[16, 32, 64, 128],
                num_attention_heads=[2, 2, 4, 4],
                sr_ratios=[8, 4, 2, 1],
                mlp_ratios=[2] * 4,
                decoder_hidden_size=32,
                drop_path_rate=0.0,
                classifier_dropout_prob=0.0,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.segformer(x).logits, size=x.shape[2:], mode="bilinear", align_corners=False)


def trained(pictures: skin.Pictures, cache: Path, steps: int) -> nn.Module:
    """The network, from the cache where it has been trained before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SegFormer()
    file = cache / f"skin_SegFormer_0_{steps}.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    began = time.process_time()

    def tell(step: int, loss: float) -> None:
        if step % 50 == 0:
            say(f"step {step} of {steps}, loss {loss:.3f}, {time.process_time() - began:.0f} s of CPU time")

    fit(
        *(network, pictures.images, pictures.lesions.long()),
        steps=steps,
        learning_rate=1.5e-3,
        augmentation=Augmentation(flip=(-1, -2), rotation_deg=45, scale=0.15, shift=0.05),
        progress=tell,
    )
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file)
    return network


def regions_of(lesion: Tensor) -> Tensor:
    """The boundary and the inside of a lesion ``(H, W)``, boolean ``(2, H, W)``."""
    inside = ndimage.distance_transform_edt(lesion.numpy())
    outside = ndimage.distance_transform_edt(~lesion.numpy())
    near = np.where(lesion.numpy(), inside, outside) <= NEAR
    return torch.from_numpy(np.stack([near, lesion.numpy() & ~near]))


@torch.no_grad()
def against(network: nn.Module, pictures: skin.Pictures, own: bool) -> skin.Pictures:
    """The same pictures with what the network finds in the place of the drawn lesions, if that is asked for."""
    if not own:
        return pictures
    found = torch.cat([network(part)[:, 0] > 0 for part in pictures.images.split(8)])
    return skin.Pictures(pictures.names, pictures.images, found)


def effects_of(network: nn.Module, pictures: skin.Pictures, place: int, donors: Tensor) -> pd.DataFrame:
    """The table of ``component_effects`` of one picture, in both regions."""
    found = []
    masks = regions_of(pictures.lesions[place])
    image, truth = pictures.images[[place]], pictures.lesions[[place]].long()
    for name, roi in zip(REGIONS, masks):
        target = SegmentationTarget(network, roi=roi, reference=truth, activation="sigmoid")
        table = component_effects(target, image, "*attention*", donors, "head", n_draws=len(donors))
        found.append(table.assign(region=name, case=pictures.names[place]))
    return pd.concat(found, ignore_index=True)


def over_cases(table: pd.DataFrame) -> pd.DataFrame:
    """Means over cases of every head in every region, in the order of the network, in the columns of ``component_effects``."""
    grouped = table.groupby(["region", "order", "module", "head"], sort=True)["effect"]
    found = grouped.agg(effect="mean", standard_error="sem", n="size").reset_index()
    half = scipy_stats.t.ppf(0.975, found["n"] - 1) * found["standard_error"]
    p = 2 * scipy_stats.t.sf((found["effect"] / found["standard_error"]).abs(), found["n"] - 1)
    found = found.assign(lower=found["effect"] - half, upper=found["effect"] + half, p_value=p, example=0)
    found["p_adjusted"] = found.groupby("region")["p_value"].transform(
        lambda of_region: adjust_p_values(of_region.to_numpy(), "fdr_bh")
    )
    return found


def together(
    network: nn.Module, pictures: skin.Pictures, places: list[int], *, donors: Tensor, heads: list[tuple[str, int]]
) -> dict[str, float]:
    """By how much the mean Dice in each region drops where these heads are replaced together, each by the donors one after the other."""
    modules, sizes = dict(network.named_modules()), {}
    recorded: dict[str, Tensor] = {}
    for name in {name for name, _ in heads}:
        attention = modules[name.rsplit(".", 1)[0]]
        sizes[name] = next(int(getattr(attention, a)) for a in ("num_attention_heads", "num_heads") if hasattr(attention, a))
        handle = modules[name].register_forward_pre_hook(
            lambda module, args, name=name: recorded.__setitem__(name, args[0].clone())
        )
        with torch.no_grad():
            network(donors)
        handle.remove()

    def replacing(name: str):  # type: ignore[no-untyped-def]  # a hook
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            changed = args[0].clone()
            width = changed.shape[-1] // sizes[name]
            for _, head in (one for one in heads if one[0] == name):
                part = slice(head * width, (head + 1) * width)
                changed[..., part] = recorded[name][..., part]
            return (changed,)

        return before

    drops: dict[str, list[float]] = {name: [] for name in REGIONS}
    for place in places:
        masks = regions_of(pictures.lesions[place])
        target = SegmentationTarget(network, roi=masks, reference=pictures.lesions[[place]].long(), activation="sigmoid")
        with torch.no_grad():
            observed = target(pictures.images[[place]])[0]
            handles = [modules[name].register_forward_pre_hook(replacing(name)) for name in sizes]
            logits = network(pictures.images[[place]].expand(len(donors), -1, -1, -1))
            for handle in handles:
                handle.remove()
            replaced = torch.stack([target.score(one[None], pictures.images[[place]])[0] for one in logits]).mean(0)
        for name, drop in zip(REGIONS, (observed - replaced).tolist()):
            drops[name].append(drop)
    return {name: float(np.mean(values)) for name, values in drops.items()}


def lines_of(found: pd.DataFrame, observed: pd.Series, combined: dict[str, dict[str, float]]) -> list[str]:
    wide = found.set_index(["order", "module", "head", "region"])
    lines = ["| block | head | boundary | inside |", "|---|---|---|---|"]
    for (order, module, head), _ in found[found["region"] == REGIONS[0]].groupby(["order", "module", "head"]):
        cells = []
        for region in REGIONS:
            one = wide.loc[(order, module, head, region)]
            star = "*" if one["p_adjusted"] <= 0.05 else ""
            cells.append(f"{one['effect']:+.4f} [{one['lower']:+.4f}, {one['upper']:+.4f}]{star}")
        stage, block = (part for part in module.split(".") if part.isdigit())
        lines.append(f"| stage {int(stage) + 1}, block {int(block) + 1} | {head + 1} | {cells[0]} | {cells[1]} |")
    lines += ["", f"Observed Dice: {', '.join(f'{observed[name]:.3f} ({name})' for name in REGIONS)}.", ""]
    lines += ["| replaced together | heads | boundary | inside |", "|---|---|---|---|"]
    for name, drops in combined.items():
        lines.append(f"| {name} | {TOGETHER} | {drops['boundary']:+.4f} | {drops['inside']:+.4f} |")
    return lines


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--data", type=Path, required=True, metavar="FOLDER", help=f"holds {skin.ARCHIVE}")
    made.add_argument("--cases", type=int, default=8, help="test pictures")
    made.add_argument("--donors", type=int, default=24, help="training pictures whose heads replace")
    made.add_argument("--against", choices=("own", "reference"), default="own", help="outline that Dice compares with")
    made.add_argument("--steps", type=int, default=STEPS, help="of training")
    options = start(made)
    n_cases, n_donors, steps = (2, 3, 2) if options.quick else (options.cases, options.donors, options.steps)
    pictures, test = skin.load_pictures(options.data, "train"), skin.load_pictures(options.data, "test")
    network = trained(pictures, options.cache, steps)
    reached = skin.dice(network, test)
    good = range(len(test)) if options.quick else (reached > LEAST_DICE).nonzero().flatten().tolist()
    # Lesions that lie in the picture, with an inside.
    whole = [
        k
        for k in good
        if regions_of(test.lesions[k])[1].sum() > 500
        and not test.lesions[k][[0, -1]].any()
        and not test.lesions[k][:, [0, -1]].any()
    ]
    test = against(network, test, own=options.against == "own")
    places = whole[:: max(1, len(whole) // n_cases)][:n_cases]
    donors = pictures.images[:: len(pictures) // n_donors][:n_donors]
    began, tables = time.process_time(), []
    for place in places:
        tables.append(effects_of(network, test, place, donors))
        say(f"{test.names[place]}: {time.process_time() - began:.0f} s of CPU time so far")
    table = pd.concat(tables, ignore_index=True)
    found = over_cases(table)
    ranked = found[found["region"] == "boundary"].sort_values("effect", key=abs, ascending=False)
    named = list(zip(ranked["module"], ranked["head"].astype(int)))
    combined = {
        "those that matter most for the boundary": together(network, test, places, donors=donors, heads=named[:TOGETHER]),
        "those that matter least for it": together(network, test, places, donors=donors, heads=named[-TOGETHER:]),
    }
    for region in REGIONS:
        figure = plot_heads(
            found[found["region"] == region],
            title=f"{len(places)} pictures, {region}, against {OUTLINES[options.against]}",
            score_name="Dice",
        )
        figure.savefig(picture_folder(options) / f"heads_{options.against}_{region}.png", dpi=110)
    head = [
        f"## Attention heads: against {OUTLINES[options.against]}",
        "",
        machine(options),
        "",
        f"A SegFormer of 24 heads trained for {steps} steps, mean test Dice {reached.mean():.3f}; {len(places)} test pictures, {len(donors)} donors, "
        f"{int(table['forwards'].groupby([table['case'], table['region'], table['module']]).first().sum())} forwards, {time.process_time() - began:.0f} s of CPU time. "
        f"Effects on the Dice with {OUTLINES[options.against]} in each region, means with 95 % intervals between pictures; *: at a false discovery rate of 0.05 over the heads.",
        "",
    ]
    publish([*head, *lines_of(found, table.groupby("region")["observed_score"].mean(), combined)], options)


if __name__ == "__main__":
    main()
