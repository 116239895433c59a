"""The laws that hold for every loss and for every composition of them."""

from __future__ import annotations

import pytest
import torch
from laws import CASES, IGNORE, Case, inputs, value_and_gradient
from torch.testing import assert_close

EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def those(flag: str):
    chosen = {name: case for name, case in CASES.items() if getattr(case, flag)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


@those("voxelwise")
@pytest.mark.parametrize("ignore", [IGNORE, [7, 200]], ids=["one value", "several"])
def test_ignoring_equals_cropping(case: Case, ignore):
    logits, target, image = inputs()
    values = [ignore] if isinstance(ignore, int) else ignore
    marked = target.clone()
    marked[..., 5:] = values[0]
    marked[..., 7:] = values[-1]
    loss, gradient = value_and_gradient(case, 3, logits, marked, image, ignore)
    cropped, inner = value_and_gradient(case, 3, logits[..., :5], target[..., :5], image[..., :5])
    assert_close(loss, cropped)
    assert_close(gradient[..., :5], inner)
    assert gradient[..., 5:].abs().max() == 0


@EVERY
def test_ignored_voxels_do_not_matter(case: Case):
    logits, target, image = inputs()
    target[..., 6:] = IGNORE
    loss, gradient = value_and_gradient(case, 3, logits, target, image, IGNORE)
    if case.call.__name__ not in ("as_features", "everything"):  # features reach beyond their own voxel
        changed = logits.clone()
        changed[..., 6:] += torch.randn_like(changed[..., 6:])
        assert_close(value_and_gradient(case, 3, changed, target, image, IGNORE)[0], loss)
        assert gradient[..., 6:].abs().max() == 0


@EVERY
def test_an_ignore_value_that_never_occurs_changes_nothing(case: Case):
    logits, target, image = inputs()
    with_value = value_and_gradient(case, 3, logits, target, image, IGNORE)
    assert_close(with_value, value_and_gradient(case, 3, logits, target, image, None))


@EVERY
def test_order_of_the_batch_does_not_matter(case: Case):
    logits, target, image = inputs()
    order = torch.tensor([2, 0, 3, 1])
    loss, gradient = value_and_gradient(case, 3, logits, target, image)
    permuted, turned = value_and_gradient(case, 3, logits[order], target[order], image[order])
    assert_close(permuted, loss)
    assert_close(turned, gradient[order])


@those("voxelwise")
def test_order_of_the_voxels_does_not_matter(case: Case):
    logits, target, image = inputs()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    loss, _ = value_and_gradient(case, 3, logits, target, image)
    shuffled, _ = value_and_gradient(
        case,
        3,
        logits.flatten(2)[..., order].view_as(logits),
        target.flatten(1)[..., order].view_as(target),
        image.flatten(2)[..., order].view_as(image),
    )
    assert_close(shuffled, loss)


@those("monotone")
def test_a_better_prediction_never_costs_more(case: Case):
    logits, target, image = inputs()
    _, gradient = value_and_gradient(case, 3, logits, target, image)
    assert gradient.gather(1, target[:, None]).max() <= 0
    loss, _ = value_and_gradient(case, 3, logits, target, image)
    for step in range(8):
        better = logits.clone()
        where = torch.rand(target.shape, generator=torch.Generator().manual_seed(step)) < 0.1
        better.scatter_add_(1, target[:, None], where[:, None].to(better.dtype) * 0.5)
        assert value_and_gradient(case, 3, better, target, image)[0] <= loss + 1e-12


@those("asymmetric")
def test_misses_and_false_alarms_cost_differently(case: Case):
    _, _, image = inputs(classes=2)
    target = torch.zeros(4, 8, 8, dtype=torch.long)
    target[:, :4] = 1
    false_alarm, miss = target.clone(), target.clone()
    false_alarm[:, 6, :4], miss[:, 1, :4] = 1, 0

    def confident(labels):
        return torch.stack([labels == 0, labels == 1], 1) * 4.0

    one = value_and_gradient(case, 2, confident(false_alarm).double(), target, image)[0]
    other = value_and_gradient(case, 2, confident(miss).double(), target, image)[0]
    assert (one - other).abs() > 1e-5


@EVERY
@pytest.mark.parametrize("filling", ["empty", "full", "ignored", "one image ignored", "one voxel"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 50.0], ids=["uniform", "random", "extreme"])
def test_degenerate_masks_give_finite_values_and_gradients(case: Case, filling: str, scale: float):
    logits, target, image = inputs(batch=2)
    if filling == "one image ignored":
        target[0] = IGNORE
    elif filling == "one voxel":
        target[:] = 0
        target[0, 3, 4] = 1
    else:
        target[:] = {"empty": 0, "full": 1, "ignored": IGNORE}[filling]
    loss, gradient = value_and_gradient(case, 3, logits.float() * scale, target, image.float(), IGNORE)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if filling == "ignored":
        assert loss == 0
        assert gradient.abs().max() == 0


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(case: Case, dtype: torch.dtype):
    logits, target, image = inputs()
    logits = logits.to(dtype)
    loss, gradient = value_and_gradient(case, 3, logits, target, image.float())
    exact, slope = value_and_gradient(case, 3, logits.double(), target, image.float().double())
    assert loss.dtype == torch.float32
    assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
    assert gradient.dtype == dtype
    assert_close(gradient.double(), slope, rtol=0, atol=float(slope.abs().max()) * torch.finfo(dtype).eps * 2)


@those("differentiable")
@pytest.mark.parametrize("classes", [2, 3])
def test_gradcheck(case: Case, classes: int):
    logits, target, image = inputs(classes=classes, batch=2, size=5)
    target[0, 0, 0] = IGNORE
    module = case.make(classes, IGNORE)
    assert torch.autograd.gradcheck(
        lambda z: case.call(module, z, target, image), logits.requires_grad_(), fast_mode=True
    )


@EVERY
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("classes", [2, 5])
def test_dimensions_classes_and_target_types(case: Case, dims: int, classes: int):
    logits, target, image = inputs(dims, classes, batch=2)
    reference = value_and_gradient(case, classes, logits, target, image)
    assert reference[0].isfinite()
    assert_close(value_and_gradient(case, classes, logits, target[:, None], image), reference)
    for dtype in (torch.int16, torch.uint8, torch.int32, torch.float32):
        assert_close(value_and_gradient(case, classes, logits, target.to(dtype), image), reference)
    if classes == 2:
        assert_close(value_and_gradient(case, classes, logits, target.bool(), image), reference)


@EVERY
def test_shapes_that_do_not_fit_are_refused(case: Case):
    logits, target, image = inputs()
    if case.call.__name__ != "as_features":  # feature maps may be of any resolution
        with pytest.raises(ValueError, match=r"."):
            value_and_gradient(case, 3, logits, target[..., :-1], image)
    with pytest.raises(ValueError, match=r"."):
        value_and_gradient(case, 3, logits, target[:-1], image)


@EVERY
def test_unknown_labels_are_named(case: Case):
    logits, target, image = inputs()
    for unknown in (3, -1, -100):
        target[0, 0, 0] = unknown
        for ignore in (None, IGNORE):
            with pytest.raises(ValueError, match=r"outside the classes 0\.\.2"):
                value_and_gradient(case, 3, logits, target, image, ignore)
