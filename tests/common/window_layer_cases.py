"""Sliding windows around a small network, and effects of its layers by hooks by hand on every window of the image."""

import itertools

import torch
from layer_cases import Net

from captum_causalseg import WindowedModel, regions

SPATIAL = {2: (14, 12), 3: (9, 8, 10)}
SIZE = {2: 8, 3: 6}


def windowed(d, n_folds=1, mirror_axes=(), batch_size=3):
    folds = []
    for seed in range(n_folds):
        torch.manual_seed(seed)
        folds.append(Net(d).eval())
        with torch.no_grad():
            for parameter in folds[-1].parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    starts = list(itertools.product(*[sorted({*range(0, n - SIZE[d], 3), n - SIZE[d]}) for n in SPATIAL[d]]))
    weight = torch.rand((SIZE[d],) * d) + 0.1
    return WindowedModel(
        folds if n_folds > 1 else folds[0], SIZE[d], starts, weight, mirror_axes=mirror_axes, batch_size=batch_size
    )


def case(d, n=1, **options):
    model = windowed(d, **options)
    generator = torch.Generator().manual_seed(d)
    images, donors = (torch.rand((count, 1, *SPATIAL[d]), generator=generator) for count in (n, 3))
    labels = torch.randint(0, 3, (n, *SPATIAL[d]), generator=generator)
    return model, images, donors, labels


def modules(model, name):
    return [one.get_submodule(name) for one in model.networks]


def visited(model, name, image, edit, at_input):
    """Logits of a run of all windows in which what a layer returns, or takes, becomes what ``edit`` makes of it."""

    def one(fold, module):
        if at_input:
            return module.register_forward_pre_hook(lambda m, args: (edit(fold, args[0]),))
        return module.register_forward_hook(lambda m, args, out: edit(fold, out))

    handles = [one(fold, module) for fold, module in enumerate(modules(model, name))]
    with torch.no_grad():
        logits = model(image)
    for handle in handles:
        handle.remove()
    return logits


def recordings(model, name, donor, at_input=False):
    """By fold, a layer's activations in the run of all windows of an image, in the order of the calls."""
    recorded = {}

    def listen(fold, value):
        recorded.setdefault(fold, []).append(value.detach().clone())
        return value

    visited(model, name, donor, listen, at_input)
    return recorded


def literal(model, name, image, recorded, inside, at_input=False):
    """Logits of a run of all windows in which a unit is in every one of them what it is in the donor's run of all windows.

    ``recorded`` is that run's, of :func:`recordings`; ``inside`` says of a flip where the unit is in the activation as it lies.
    """
    flips, calls = model.flips, dict.fromkeys(recorded, 0)

    def put(fold, value):
        here = inside(flips[calls[fold] % len(flips)]).expand(value.shape)
        new = torch.where(here, recorded[fold][calls[fold]], value)
        calls[fold] += 1
        return new

    logits = visited(model, name, image, put, at_input)
    assert all(count == len(recorded[fold]) for fold, count in calls.items())
    return logits


def in_mask(mask, unit):
    return lambda flip: (mask == unit).flip(flip)


def dice(logits, labels, roi):
    found, truth = logits.argmax(1)[0][roi] == 1, labels[roi] == 1
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def mask_of(kind, channels, d):
    blocks = regions.grid((SIZE[d],) * d, 3)
    if kind == "channel":
        return torch.arange(channels).view(1, -1, *(1,) * d)
    if kind == "block":
        return blocks[None, None]
    if kind == "channel_block":
        return blocks[None, None] + torch.arange(channels).view(1, -1, *(1,) * d) * (int(blocks.max()) + 1)
    return torch.zeros((1, 1, *(1,) * d), dtype=torch.int64)


def expected_effects(model, name, images, donors, labels, *, rois, mask, units):
    found = torch.zeros(len(images), len(units), len(rois), dtype=torch.float64)
    recorded = [recordings(model, name, donor[None]) for donor in donors]
    for n, (image, truth) in enumerate(zip(images, labels)):
        with torch.no_grad():
            observed = model(image[None])
        for u, unit in enumerate(units):
            for donor in recorded:
                logits = literal(model, name, image[None], donor, in_mask(mask, unit))
                for r, roi in enumerate(rois):
                    found[n, u, r] += (dice(observed, truth, roi) - dice(logits, truth, roi)) / len(donors)
    return found
