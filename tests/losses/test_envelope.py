"""Top-k / Bottom-all-but-sigma: limits, guards, gradients, selection without sorting."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import inputs
from torch.testing import assert_close

from scotoma.losses import Objective, TopKBottomSigmaLoss
from scotoma.losses.common import prepare
from scotoma.losses.selection import Selection, keep_smallest, order_pair


def per_voxel(logits, target):
    return F.cross_entropy(logits, target.long(), reduction="none").flatten(1)


@given(
    st.integers(2, 120_000), st.floats(0.001, 1), st.sampled_from(["normal", "skewed", "ties", "infinite"])
)
@settings(max_examples=40, deadline=None)
def test_order_statistics_are_exact(n, share, kind):
    generator = torch.Generator().manual_seed(n)
    values = torch.rand(n, generator=generator)
    if kind == "skewed":
        values = values**20
    elif kind == "ties":
        values = (values * 4).floor()
    elif kind == "infinite":
        values[values > 0.7] = math.inf
    rank = min(n - 1, max(1, int(share * n)))
    ordered = values.sort().values
    assert [v.item() for v in order_pair(values, rank)] == ordered[rank - 1 : rank + 1].tolist()


def test_structured_values_do_not_fool_the_sample():
    rows = torch.arange(512.0).repeat(512)  # every column constant
    for rank in (1, 131072, 249036, 262143):
        ordered = rows.sort().values
        assert [v.item() for v in order_pair(rows, rank)] == ordered[rank - 1 : rank + 1].tolist()


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.99])
@pytest.mark.parametrize("k", [1.0, 0.5, 3, 1])
def test_the_hard_form(sigma, k):
    logits, target, _ = inputs(batch=4)
    losses = per_voxel(logits, target)
    n = losses.shape[1]
    kept = n - min(math.floor(sigma * n), n - 1)
    images = losses.sort(1).values[:, :kept].mean(1)
    count = math.ceil(k * 4) if isinstance(k, float) else k
    wanted = images.sort(descending=True).values[:count].mean()
    loss = TopKBottomSigmaLoss(sigma=sigma, k=k, smooth=False, max_class_drop=1.0)
    assert_close(loss(logits, target), wanted)


@pytest.mark.parametrize("smooth", [True, False])
def test_nothing_selected_is_the_base_loss_exactly(smooth):
    logits, target, _ = inputs()
    loss = TopKBottomSigmaLoss(sigma=0.0, k=4, smooth=smooth)(logits, target)
    assert_close(loss, F.cross_entropy(logits, target), rtol=1e-14, atol=0)
    single = logits.float()
    loss = TopKBottomSigmaLoss(sigma=0.0, k=1.0, smooth=smooth)(single, target)
    assert_close(loss, F.cross_entropy(single, target), rtol=3e-7, atol=0)
    target[0, 2:] = 255
    means = torch.stack(
        [F.cross_entropy(z[None], y[None], ignore_index=255) for z, y in zip(logits, target, strict=True)]
    )
    loss = TopKBottomSigmaLoss(sigma=0.0, k=1.0, smooth=smooth, ignore_index=255)(logits, target)
    assert_close(loss, means.mean())


def test_smooth_form_and_its_gradient():
    logits, target, _ = inputs()
    losses = per_voxel(logits, target).detach().requires_grad_()
    n = losses.shape[1]
    kept = n - math.floor(0.1 * n)
    ordered = losses.detach().sort(1).values
    tau = (ordered[:, kept - 1] + ordered[:, kept]) / 2
    w = torch.sigmoid((tau[:, None] - losses.detach()) / (0.1 * (tau[:, None] + 1e-6)))
    images = (w * losses).sum(1) / w.sum(1)
    top = images.detach().sort(descending=True).values
    kappa = (top[1] + top[2]) / 2
    v = torch.sigmoid((images.detach() - kappa) / (0.25 * (images.detach().std(correction=0) + 1e-6)))
    wanted = (v * images).sum() / v.sum()

    # The base hands out the losses themselves, so that their derivative can be looked at.
    envelope = TopKBottomSigmaLoss(lambda z, y: losses.view_as(target), sigma=0.1, k=2, max_class_drop=1.0)
    value = envelope(logits, target)
    assert_close(value, wanted)
    (slope,) = torch.autograd.grad(value, losses)
    assert_close(slope, v[:, None] / v.sum() * w / w.sum(1, keepdim=True))
    assert slope.min() >= 0


def test_small_temperature_is_the_hard_form():
    logits, target, _ = inputs()
    hard = TopKBottomSigmaLoss(sigma=0.1, k=2, smooth=False)(logits, target)
    cold = TopKBottomSigmaLoss(sigma=0.1, k=2, pixel_temperature=1e-7, image_temperature=1e-7)(logits, target)
    assert_close(cold, hard, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("smooth", [True, False])
def test_equal_losses_are_kept_alike(smooth):
    logits = torch.zeros(2, 2, 6, 6, requires_grad=True)
    loss = TopKBottomSigmaLoss(sigma=0.2, k=1, smooth=smooth)(logits, torch.zeros(2, 6, 6))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert logits.grad.std(dim=(0, 2, 3)).max() < 1e-8


def test_tied_losses_of_a_small_class_go_by_half_at_most():
    target = torch.zeros(1, 1000, dtype=torch.long)
    target[0, :60] = 1
    logits = torch.zeros(1, 2, 1000)
    logits[:, 0] = 3  # the same everywhere, so that all lesion voxels are tied at the cut
    loss = per_voxel(logits, target).view(target.shape)
    selection = Selection(0.05, 1.0, smooth=False)
    weights = selection.voxel_weights(loss, prepare(logits, target, None))
    assert weights[0, :60].mean() == pytest.approx(0.5)
    assert weights[0, 60:].eq(1).all()


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("per_class", [True, False])
def test_a_small_class_never_loses_more_than_half(smooth, per_class):
    """The lesion is smaller than sigma and has the largest losses, as early in training."""
    target = torch.zeros(1, 40, 40, dtype=torch.long)
    target[0, 5:9, 5:10] = 1  # 20 of 1600 voxels
    logits = torch.randn(1, 2, 40, 40, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 4
    logits.requires_grad_()
    loss = TopKBottomSigmaLoss(sigma=0.05, k=1.0, smooth=smooth, per_class=per_class)
    loss(logits, target).backward()
    pull = -logits.grad[0, 1, 5:9, 5:10]
    assert (pull > 0.5 * pull.max()).sum() >= 10
    unguarded = TopKBottomSigmaLoss(sigma=0.05, k=1.0, smooth=False, max_class_drop=1.0)
    logits.grad = None
    unguarded(logits, target).backward()
    assert logits.grad[0, 1, 5:9, 5:10].abs().max() == 0  # what the guard is for


def test_per_class_trims_every_class_by_sigma():
    logits, target, _ = inputs(size=16)
    selection = Selection(sigma=0.25, k=1.0, smooth=False, per_class=True)

    batch = prepare(logits, target, None)
    weights = selection.voxel_weights(per_voxel(logits, target).view_as(target), batch)
    for i in range(4):
        for c in range(3):
            mine = target[i] == c
            assert (weights[i][mine] == 0).sum() == math.floor(0.25 * int(mine.sum()))


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("tied", [True, False], ids=["many losses of 0", "no ties"])
def test_a_class_is_trimmed_as_if_it_stood_alone(smooth, tied):
    from scotoma.losses.selection import keep_smallest

    logits, target, _ = inputs(size=16)
    target[:, 3:5] = 255
    batch = prepare(logits, target, 255)
    loss = per_voxel(logits, batch.target.clamp(min=0)).view_as(target) * (target != 255)
    if tied:
        loss = (loss - loss.median()).clamp(min=0)
    selection = Selection(sigma=0.6, k=1.0, smooth=smooth, per_class=True, max_class_drop=1.0)
    weights = selection.voxel_weights(loss, batch)
    for i in range(4):
        assert weights[i][target[i] == 255].abs().max() == 0
        for c in range(3):
            mine = target[i] == c
            n = int(mine.sum())
            alone, _ = keep_smallest(loss[i][mine], n - math.floor(0.6 * n), smooth, 0.1)
            assert_close(weights[i][mine], alone)


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("sigma", [0.05, 0.4])
def test_only_losses_above_the_bound_are_dropped(sigma, per_class):

    logits, target, _ = inputs(size=16)
    loss = per_voxel(logits, target).view_as(target)
    bound = float(loss.quantile(0.8))
    both = {"k": 1.0, "smooth": False, "per_class": per_class, "max_class_drop": 1.0}
    batch = prepare(logits, target, None)
    free = Selection(sigma, **both).voxel_weights(loss, batch)
    bounded = Selection(sigma, **both, drop_above=bound).voxel_weights(loss, batch)
    assert_close(bounded, torch.where(loss > bound, free, 1.0))


@pytest.mark.parametrize("smooth", [True, False])
def test_right_labels_lose_nothing_below_the_bound(smooth):
    _, target, _ = inputs()
    sure = 20 * F.one_hot(target.long(), 3).movedim(-1, 1).float()
    sure.requires_grad_()
    envelope = TopKBottomSigmaLoss(sigma=0.3, k=1.0, smooth=smooth, drop_above=-math.log(0.1))
    plain = per_voxel(sure, target).mean()
    assert_close(envelope(sure, target), plain, rtol=1e-4, atol=1e-12)


def test_values_tied_at_the_bound_are_kept():
    values = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    weights, tau = keep_smallest(values, 2, False, 0.1, drop_above=1.0)
    assert weights.tolist() == [1, 1, 1, 1, 0]
    assert tau == 1


@pytest.mark.parametrize("dims", [2, 3])
def test_regions_in_dispute_are_not_dropped(dims):
    depth, layers = (2,) * (dims - 2), 2 ** (dims - 2)
    label, guess = torch.zeros(2, 1, *depth, 12, 12, dtype=torch.long)

    def draw(target, rows, columns):
        target[..., rows, columns] = 1

    draw(label, slice(0, 4), slice(0, 3))  # missed by the network
    draw(guess, slice(0, 4), slice(8, 11))  # missed by the label, or a false alarm
    draw(label, slice(6, 9), slice(0, 4)), draw(guess, slice(6, 9), slice(1, 5))  # a little aside
    draw(label, slice(11, 12), slice(8, 10)), draw(label, slice(9, 10), slice(11, 12))  # wrong pixels
    logits = 10 * F.one_hot(guess, 2).movedim(-1, 1).float()
    batch = prepare(logits, label, None)
    disputed = label != guess
    settings = {"k": 1.0, "smooth": False, "max_class_drop": 1.0, "drop_above": 3.0}
    sigma, loss = 0.6, per_voxel(logits, label).view(label.shape)
    without = Selection(sigma, **settings).voxel_weights(loss, batch)
    assert torch.equal(without == 0, disputed)
    spared = Selection(sigma, **settings, spare_regions=5 * layers).voxel_weights(loss, batch)
    assert spared[..., :4, :].eq(1).all()
    assert torch.equal(spared[..., 4:, :] == 0, disputed[..., 4:, :])
    larger = Selection(sigma, **settings, spare_regions=13 * layers).voxel_weights(loss, batch)
    assert torch.equal(larger, without)
    # With the network's lesion of another class than the label's, where both have one they differ too.
    of_three = torch.stack([logits[:, 0], torch.full_like(logits[:, 0], -10), logits[:, 1]], 1)
    loss_of_three = per_voxel(of_three, label).view(label.shape)
    merged = Selection(sigma, **settings, spare_regions=15 * layers)
    weights = merged.voxel_weights(loss_of_three, prepare(of_three, label, None))
    assert weights[..., 6:9, :5].eq(1).all()
    assert weights[..., :4, :].eq(0).sum() == 24 * layers

    ignored = label.masked_fill(guess == 1, 255)
    loss = torch.where(ignored == 255, 0.0, loss)
    spared = Selection(sigma, **settings, spare_regions=5 * layers)
    weights = spared.voxel_weights(loss, prepare(logits, ignored, 255))
    assert weights[ignored == 255].eq(0).all()
    assert weights[..., :4, :3].eq(1).all()


def test_one_image_does_not_absorb_the_whole_drop():
    logits, target, _ = inputs()
    logits[0] *= 20
    loss = TopKBottomSigmaLoss(sigma=0.2, k=1.0, smooth=False, max_class_drop=1.0)
    logits.requires_grad_()
    loss(logits, target).backward()
    dropped = (logits.grad == 0).all(1).flatten(1).sum(1)
    assert dropped.tolist() == [math.floor(0.2 * 64)] * 4


def test_dice_is_taken_under_the_same_weights():
    logits, target, _ = inputs(classes=2)
    loss = TopKBottomSigmaLoss(sigma=0.1, k=1.0, smooth=False, dice=2.0, max_class_drop=1.0)
    losses = per_voxel(logits, target)
    w = torch.stack([keep_smallest(row, 64 - 6, False, 0.1)[0] for row in losses])
    p, t = logits.softmax(1)[:, 1].flatten(1), target.flatten(1)
    dice = (2 * (w * p * t).sum(1) + 1e-5) / ((w * p).sum(1) + (w * t).sum(1) + 1e-5)
    wanted = ((w * losses).sum(1) / w.sum(1) + 2 * (1 - dice)).mean()
    assert_close(loss(logits, target), wanted)


def test_a_base_with_channels_is_averaged_before_ranking():
    logits, target, _ = inputs()

    def squared(z, y):
        return (z.softmax(1) - F.one_hot(y, 3).movedim(-1, 1)) ** 2

    loss = TopKBottomSigmaLoss(squared, sigma=0.1, k=1.0, smooth=False, max_class_drop=1.0)
    wanted = squared(logits, target).mean(1).flatten(1).sort(1).values[:, :58].mean()
    assert_close(loss(logits, target), wanted)
    with pytest.raises(ValueError, match="one value per voxel"):
        TopKBottomSigmaLoss(lambda z, y: z.mean())(logits, target)


def test_a_noisy_label_is_left_out_late_but_not_early():
    target = torch.zeros(1, 20, 20, dtype=torch.long)
    target[0, 5:15, 5:15] = 1
    truth = target.clone()
    target[0, 0, 0] = 1  # the wrong one
    logits = (torch.stack([truth == 0, truth == 1], 1) * 6.0).requires_grad_()
    loss = TopKBottomSigmaLoss(sigma=0.01, k=1.0, smooth=False, sigma_ramp=(0.5, 0.7))
    for progress, pulled in [(0.2, True), (1.0, False)]:
        loss.progress = progress
        (gradient,) = torch.autograd.grad(loss(logits, target), logits)
        assert (gradient[0, 1, 0, 0] != 0) == pulled


# --- images -------------------------------------------------------------------------------------------


def run_queue(selection, losses):
    kept = []
    for loss in losses:
        value = torch.tensor([loss], requires_grad=True)
        kept.append(selection.image_weights(value, torch.ones(1)).item())
    return kept


def test_single_images_are_ranked_against_past_ones():
    selection = Selection(sigma=0.0, k=0.5, smooth=False, queue=16)
    losses = torch.rand(80, generator=torch.Generator().manual_seed(0)).tolist()
    kept = run_queue(selection, losses)
    late = list(zip(losses, kept, strict=True))[16:]
    assert all(weight > 0 for loss, weight in late if loss > 0.8)
    assert all(weight == 0 for loss, weight in late if loss < 0.2)
    # On average an image weighs one, so the size of the gradient stays what it is without selection.
    assert sum(weight for _, weight in late) / len(late) == pytest.approx(1, abs=0.15)


def test_the_queue_survives_saving():
    first, second = (Selection(k=0.5, queue=4) for _ in range(2))
    run_queue(first, [0.3, 0.9, 0.5])
    second.load_state_dict(first.state_dict())
    assert run_queue(first, [0.6, 0.1]) == run_queue(second, [0.6, 0.1])


def test_looking_at_the_loss_leaves_the_queue_alone():
    selection = Selection(k=0.5, queue=4)
    with torch.no_grad():
        selection.image_weights(torch.rand(2), torch.ones(2))
    selection.eval().image_weights(torch.rand(2, requires_grad=True), torch.ones(2))
    assert selection.past.isnan().all()


def test_k_ramps_down_from_all():
    selection = Selection(k=2, k_ramp=(0.0, 1.0))
    for progress, kept in [(0.0, 8), (0.5, 5), (1.0, 2)]:
        selection.progress = progress
        assert selection.kept_images(8) == kept
    assert [Selection(k=0.75).kept_images(n) for n in (1, 2, 4, 5)] == [1, 2, 3, 4]
    assert Selection(k=0.5).kept_images(1, pool=9) == 5
    assert all(Selection(k=3).kept_images(n) == 3 for n in range(3, 60))


@pytest.mark.parametrize(
    "wrong",
    [{"sigma": 1.0}, {"sigma": -0.1}, {"k": 0}, {"k": 1.5}, {"k": True}, {"max_class_drop": 0}, {"queue": -1},
     {"drop_above": -1}, {"spare_regions": -1},
     {"dice": -1}, {"dice": math.nan}, {"base": "lopsided", "dice": 1.0}, {"k_ramp": 0.5},
     {"pixel_temperature": 0}, {"base": "hinge"}, {"sigma_ramp": (0.5, 0.5)}, {"k_ramp": (0.5,)}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must|share|number|at least|Dice pulls"):
        TopKBottomSigmaLoss(**wrong)


def test_objective_composes_the_same_selection():
    logits, target, _ = inputs()
    settings = {"sigma": 0.1, "k": 0.5}
    envelope = TopKBottomSigmaLoss(**settings, dice=1.0)(logits, target)
    assert_close(Objective(3, **settings)(logits, target), envelope)
