"""The Siamese content loss: zero at the truth, gradients where they belong, extractors left alone."""

from __future__ import annotations

import pytest
import torch
from laws import inputs
from torch import nn
from torch.testing import assert_close

from scotoma.losses import Objective, SiameseContentLoss


def scene(dims: int = 2, classes: int = 2):
    logits, target, image = inputs(dims, classes)
    exact = torch.stack([target == c for c in range(classes)], 1) * 2000.0
    return logits, target, image, exact


@pytest.mark.parametrize("variant", ["squared", "norm"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_zero_at_the_truth_with_finite_gradient(variant, classes, dims):
    _, target, image, exact = scene(dims, classes)
    exact.requires_grad_()
    loss = SiameseContentLoss(variant=variant, widths=(3, 4), complement=0.5)(exact, target, image)
    assert loss.abs() < 1e-12
    loss.backward()
    assert exact.grad.isfinite().all()


@pytest.mark.parametrize("variant", ["squared", "norm"])
def test_the_formula(variant):
    """One image, one class, an extractor that can be followed by hand."""

    class Two(nn.Module):
        def forward(self, x):
            return [x, x[..., ::2, ::2] * 3]

    logits, target, image, _ = scene()
    loss = SiameseContentLoss(Two(), variant=variant, tap_weights=[1.0, 0.5], offset=0.2)
    total = []
    for z, y, x in zip(logits, target, image, strict=True):
        x = 0.2 + 0.8 * (x - x.min()) / (x.max() - x.min())
        difference = x[0] * (z.softmax(0)[1] - y)
        d = torch.stack([difference.square().mean(), (3 * difference[::2, ::2]).square().mean()])
        d = d if variant == "squared" else (d + 1e-12).sqrt() - 1e-6
        total.append(d[0] + 0.5 * d[1])
    assert_close(loss(logits, target, image), torch.stack(total).mean())


def test_no_gradient_where_the_image_is_dark():
    logits, target, image, _ = scene()
    image[:, :, :3] = 0.0
    logits.requires_grad_()
    SiameseContentLoss(widths=(3, 4), offset=0.0)(logits, target, image).backward()
    assert logits.grad[:, :, :3].abs().max() == 0
    assert logits.grad[:, :, 3:].abs().max() > 0
    logits.grad = None
    SiameseContentLoss(widths=(3, 4), offset=0.1)(logits, target, image).backward()
    assert logits.grad[:, :, :3].abs().max() > 0


def test_the_scale_of_the_intensities_does_not_matter():
    logits, target, image, _ = scene()
    loss = SiameseContentLoss(widths=(3, 4))
    assert_close(loss(logits, target, image * 1000 - 300), loss(logits, target, image))


def test_false_positives_on_black_need_the_complement():
    _, target, image, _ = scene()
    image[:, :, 6:] = 0.0
    target[:, 6:] = 0
    wrong = torch.stack([target == 0, target == 1], 1) * 20.0
    wrong[:, :, 6:] = wrong[:, :, 6:].flip(1)
    plain = SiameseContentLoss(widths=(3, 4), offset=0.0, rescale=False)
    assert plain(wrong, target, image) < 1e-12
    other = SiameseContentLoss(widths=(3, 4), rescale=False, complement=1.0)
    assert other(wrong, target, 1 - image) > 1e-4


def test_the_extractor_is_frozen_and_no_part_of_the_state():
    extractor = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5)).double()

    class Taps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = extractor

        def forward(self, x):
            return [self.inner(x)]

    loss = SiameseContentLoss(Taps())
    loss.train()
    logits, target, image, _ = scene()
    logits.requires_grad_()
    first = loss(logits, target, image)
    first.backward()
    assert all(p.grad is None and not p.requires_grad for p in extractor.parameters())
    assert_close(loss(logits, target, image), first)  # no dropout
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_classes_that_are_neither_there_nor_predicted_do_not_dilute():
    logits, target, image, _ = scene()
    more = torch.cat([logits, torch.full_like(logits[:, :2], -60.0)], 1)
    loss = SiameseContentLoss(widths=(3, 4))
    assert_close(loss(more, target, image), loss(logits, target, image))


def test_nothing_there_and_nothing_predicted_costs_nothing():
    logits, target, image, _ = scene()
    logits[:, 0] += 50
    logits.requires_grad_()
    loss = SiameseContentLoss(widths=(3, 4))(logits, target * 0, image)
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() == 0


def test_volumes_go_slice_by_slice_through_a_flat_extractor():
    class Flat(nn.Module):
        dims = 2

        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            self.seen.append(tuple(x.shape))
            return [x]

    logits, target, image, _ = scene(3)
    extractor = Flat()
    loss = SiameseContentLoss(extractor, slices=3)
    logits.requires_grad_()
    loss(logits, target, image).backward()
    assert extractor.seen == [(12, 1, 8, 8)] * 2
    assert logits.grad.abs().max() > 0
    every = SiameseContentLoss(Flat(), slices=8)
    volume = SiameseContentLoss(nn.ModuleList([nn.Identity()])[0].__class__(), slices=8)
    volume._extractors[0, 0].forward = lambda x: [x]  # type: ignore[method-assign]
    full = torch.ones_like(target)  # every slice holds truth, so slices and volume see the same
    assert_close(every(logits, full, image), volume(logits, full, image))


def test_tiny_images_use_the_taps_that_fit():
    logits, target, image, _ = scene()
    loss = SiameseContentLoss(widths=(2, 2, 2, 2))
    assert loss(logits[..., :3, :3], target[..., :3, :3], image[..., :3, :3]).isfinite()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_weight_is_calibrated_on_the_gradients(dims):
    logits, target, image, _ = scene(dims)
    logits.requires_grad_()
    objective = Objective(2, content=0.25, content_widths=(3, 4), content_calibration=1)
    objective(logits, target, image)
    weight = objective.terms["content_weight"]
    main = torch.autograd.grad(Objective(2)(logits, target), logits)[0]
    content = torch.autograd.grad(SiameseContentLoss(widths=(3, 4))(logits, target, image), logits)[0]
    assert_close((weight * content).norm(), 0.25 * main.norm(), rtol=1e-5, atol=0)
    objective(3 * logits, target, image)
    assert objective.terms["content_weight"] == weight  # fixed from now on
    other = Objective(2, content=0.25, content_widths=(3, 4), content_calibration=1)
    other.load_state_dict(objective.state_dict())
    other(3 * logits, target, image)
    assert other.terms["content_weight"] == weight


def test_the_term_comes_in_with_its_ramp():
    logits, target, image, _ = scene()
    objective = Objective(
        2, content=2.0, content_widths=(3, 4), content_calibration=0, content_ramp=(0.2, 0.4)
    )
    objective.progress = 0.1
    objective(logits, target, image)
    assert "content" not in objective.terms
    objective.progress = 0.3
    total = objective(logits, target, image)
    terms = objective.terms
    assert_close(terms["content_weight"].item(), 1.0)
    assert_close(total, terms["ce"] + terms["dice"] + terms["content"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"extractor": "resnet"},
        {"extractor": "self"},
        {"variant": "cubed"},
        {"offset": 1.0},
        {"complement": -1},
        {"slices": 0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|needs|weight"):
        SiameseContentLoss(**wrong)


def test_an_image_that_does_not_belong_is_refused():
    logits, target, image, _ = scene()
    with pytest.raises(ValueError, match="belong together"):
        SiameseContentLoss()(logits, target, image[..., :-1])
    with pytest.raises(ValueError, match="needs the image"):
        Objective(2, content=0.25)(logits, target)


def test_an_extractor_of_another_form_is_refused():
    image, target = torch.rand(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
    target[:, 2:5, 2:5] = 1
    logits = torch.randn(2, 2, 8, 8)
    with pytest.raises(ValueError, match="list of feature maps"):
        SiameseContentLoss(torch.nn.Conv2d(1, 4, 3))(logits, target, image)
    with pytest.raises(ValueError, match="1 tap_weights for 2"):
        SiameseContentLoss(widths=(2, 3), tap_weights=[1.0])(logits, target, image)
    # A tiny image has fewer taps than the extractor has blocks.
    tiny = SiameseContentLoss(widths=(2, 3), tap_weights=[1.0, 1.0])
    assert tiny(logits[..., 2:3, 2:3], target[..., 2:3, 2:3], image[..., 2:3, 2:3]).isfinite()
    for weights in ([], [-1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="tap_weights must be"):
            SiameseContentLoss(tap_weights=weights)
