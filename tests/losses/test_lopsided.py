"""The lopsided bootstrap loss: its formula, its limits, its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from laws import inputs
from torch.testing import assert_close

from scotoma.losses import (
    LopsidedBootstrapLoss,
    Objective,
    TopKBottomSigmaLoss,
    beta_from_miss_rate,
    lopsided_bootstrap_loss,
)


def verbatim(logits, target, alpha, beta):
    """The published formula, written out."""
    log_p = logits.log_softmax(1)
    guess = logits.argmax(1, keepdim=True)
    background = -beta * log_p[:, 0] - (1 - beta) * log_p.gather(1, guess)[:, 0]
    lesion = -alpha * log_p.gather(1, target[:, None])[:, 0]
    return torch.where(target == 0, background, lesion)


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize("setting", [(3.0, 0.1), (10.0, 0.5), (1.0, 0.0), (3.0, 1.0)])
def test_the_published_formula_and_its_gradient(classes, setting):
    logits, target, _ = inputs(classes=classes)
    logits.requires_grad_()
    wanted = verbatim(logits, target, *setting)
    loss = lopsided_bootstrap_loss(logits, target, *setting, reduction="none")
    assert_close(loss, wanted)
    assert_close(torch.autograd.grad(loss.mean(), logits)[0], torch.autograd.grad(wanted.mean(), logits)[0])
    assert_close(lopsided_bootstrap_loss(logits, target, *setting), wanted.mean())


def test_alpha_beta_one_is_cross_entropy_exactly():
    logits, target, _ = inputs()
    logits = logits.float()
    assert torch.equal(
        lopsided_bootstrap_loss(logits, target, 1, 1, reduction="none"),
        F.cross_entropy(logits, target, reduction="none"),
    )
    assert_close(
        lopsided_bootstrap_loss(logits, target, 1, 1), F.cross_entropy(logits, target), rtol=3e-7, atol=0
    )


def test_beta_one_is_weighted_cross_entropy_over_all_voxels():
    logits, target, _ = inputs()
    weights = torch.tensor([1.0, 3.0, 3.0], dtype=torch.float64)
    wanted = F.cross_entropy(logits, target, weights, reduction="sum") / target.numel()
    assert_close(lopsided_bootstrap_loss(logits, target, 3.0, 1.0), wanted)


def test_binary_gradient_in_the_logit_of_lesion():
    a = torch.tensor([-3.0, -0.1, 0.1, 3.0, 6.0], dtype=torch.float64, requires_grad=True)
    logits = torch.stack([torch.zeros_like(a), a])[None]
    p = a.detach().sigmoid()
    loss = lopsided_bootstrap_loss(logits, torch.zeros(1, 5), reduction="none").sum()
    assert_close(torch.autograd.grad(loss, a, retain_graph=True)[0], p - 0.9 * (p > 0.5))
    loss = lopsided_bootstrap_loss(logits, torch.ones(1, 5), reduction="none").sum()
    assert_close(torch.autograd.grad(loss, a)[0], 3 * (p - 1))


def test_a_voxel_called_lesion_rests_at_one_minus_beta():
    a = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.SGD([a], 1.0)
    for _ in range(300):
        optimizer.zero_grad()
        lopsided_bootstrap_loss(torch.stack([a * 0, a]).view(1, 2, 1), torch.zeros(1, 1)).backward()
        optimizer.step()
    assert_close(a.detach().sigmoid(), torch.tensor(0.9), atol=1e-3, rtol=0)


def test_at_a_tie_the_label_stands():
    logits = torch.zeros(1, 2, 1, requires_grad=True)
    loss = lopsided_bootstrap_loss(logits, torch.zeros(1, 1))
    loss.backward()
    assert_close(logits.grad, torch.tensor([[[-0.5], [0.5]]]))


def test_only_background_is_bootstrapped_unless_reed_is_asked_for():
    logits = torch.tensor([[[4.0], [0.0]]])  # says background
    lesion = torch.ones(1, 1)
    full = F.cross_entropy(logits, lesion.long()).item()
    assert lopsided_bootstrap_loss(logits, lesion, 1, 0.1).item() == pytest.approx(full)
    assert lopsided_bootstrap_loss(logits, lesion, 1, 0.1, "soft").item() == pytest.approx(full)
    for name in ("reed-hard", "reed-soft"):
        assert lopsided_bootstrap_loss(logits, lesion, 1, 0.1, name).item() < 0.2 * full


def test_reed_soft_is_an_entropy_term():
    logits, target, _ = inputs()
    p = logits.softmax(1)
    entropy = -(p * p.log()).sum(1)
    ce = F.cross_entropy(logits, target, reduction="none")
    loss = lopsided_bootstrap_loss(logits, target, 1, 0.3, "reed-soft", reduction="none")
    assert_close(loss, 0.3 * ce + 0.7 * entropy)


def test_a_teacher_decides_instead_of_the_network():
    logits, target, _ = inputs()
    teacher = logits.roll(1, 0)
    wanted = torch.where(
        target == 0,
        0.1 * F.cross_entropy(logits, target * 0, reduction="none")
        + 0.9 * F.cross_entropy(logits, teacher.argmax(1), reduction="none"),
        3 * F.cross_entropy(logits, target, reduction="none"),
    )
    assert_close(lopsided_bootstrap_loss(logits, target, teacher_logits=teacher, reduction="none"), wanted)
    assert_close(
        lopsided_bootstrap_loss(logits, target, teacher_logits=logits.clone()),
        lopsided_bootstrap_loss(logits, target),
    )
    teacher.requires_grad_()
    logits.requires_grad_()
    lopsided_bootstrap_loss(logits, target, teacher_logits=teacher).backward()
    assert teacher.grad is None
    objective = Objective(3, "lopsided")
    assert_close(objective(logits, target, teacher_logits=teacher), wanted.mean())


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_alpha_counts_whole_beside_an_outline_that_a_teacher_leaves_alone(beta):
    target, logits = torch.tensor([[[1, 0]]]), torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])
    settings = {"beta": beta, "teacher_logits": logits.clone(), "border": 1}
    wanted = 3 * F.cross_entropy(logits, target, reduction="none")
    loss = lopsided_bootstrap_loss(logits, target, reduction="none", **settings)
    assert_close(loss, wanted)
    assert_close(lopsided_bootstrap_loss(logits, target, **settings), wanted.mean())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("border", [1, 2, 9])
def test_alpha_counts_on_both_sides_of_a_drawn_outline(dims, border):
    target = torch.zeros(1, *[7] * dims, dtype=torch.long)
    target[(0, *[1] * dims)] = 1
    logits = torch.zeros(1, 2, *[7] * dims)
    logits[:, 0] = 1  # background everywhere, so nothing is overruled
    loss = lopsided_bootstrap_loss(logits, target, 3.0, 0.1, reduction="none", border=border)
    plain = F.cross_entropy(logits, target, reduction="none")
    pool = F.max_pool2d if dims == 2 else F.max_pool3d
    beside = pool(target[:, None].float(), 2 * border + 1, 1, border)[:, 0] > 0
    assert_close(loss, torch.where(beside, 3 * plain, plain))
    whole = lopsided_bootstrap_loss(logits, target, 3.0, 0.1, border=border)
    assert_close(whole, loss.mean())


def test_an_overruled_voxel_beside_a_drawn_lesion_counts_once():
    target = torch.tensor([[[1, 0, 0, 0, 0]]])
    logits = torch.tensor([[[[0.0, 2.0, 0.0, 2.0, 2.0]], [[2.0, 0.0, 2.0, 0.0, 0.0]]]])
    settings = {"beta": 0.0, "reduction": "none", "gate": "component", "border": 2}
    loss = lopsided_bootstrap_loss(logits, target, 3.0, **settings)
    right = F.softplus(torch.tensor(-2.0))
    assert_close(loss, right * torch.tensor([[[3.0, 3.0, 1.0, 1.0, 1.0]]]))


def test_the_component_gate_leaves_borders_to_the_label():
    target = torch.zeros(1, 12, 12, dtype=torch.long)
    target[0, 2:4, 2:4] = 1
    found = torch.zeros(1, 12, 12, dtype=torch.bool)
    found[0, 2:6, 2:4] = True  # grows out of the labelled lesion
    found[0, 8:11, 8:11] = True  # a lesion of its own
    found[0, 0, 11] = True  # a speck
    logits = torch.stack([~found, found], 1) * 3.0
    plain = lopsided_bootstrap_loss(logits, target, 1, 1, reduction="none")
    gated = lopsided_bootstrap_loss(
        logits, target, 1, 0.1, reduction="none", gate="component", min_component=2
    )
    changed = gated != plain
    wanted = torch.zeros_like(found)
    wanted[0, 8:11, 8:11] = True
    assert torch.equal(changed, wanted)
    objective = Objective(2, "lopsided", alpha=1, gate="component", min_component=2)
    assert_close(objective(logits, target), gated.mean())
    assert objective.terms["bootstrapped_share"].item() == pytest.approx(9 / 144)


def test_voxel_weights_do_not_change_the_divisor():
    logits, target, _ = inputs()
    weight = torch.rand(target.shape)
    unreduced = lopsided_bootstrap_loss(logits, target, reduction="none")
    assert_close(lopsided_bootstrap_loss(logits, target, weight=weight), (unreduced * weight).mean())


def test_beta_warms_up():
    loss = LopsidedBootstrapLoss(beta=0.1, beta_ramp=(0.2, 0.6))
    for progress, beta in [(0.0, 1.0), (0.2, 1.0), (0.4, 0.55), (0.6, 0.1), (1.0, 0.1)]:
        loss.progress = progress
        assert loss.current_beta == pytest.approx(beta)
    objective = Objective(3, "lopsided", beta_ramp=(0.2, 0.6))
    logits, target, _ = inputs()
    objective.progress = 0.0
    assert_close(objective(logits, target), lopsided_bootstrap_loss(logits, target, 3, 1))
    objective.progress = 1.0
    assert_close(objective(logits, target), lopsided_bootstrap_loss(logits, target))


def test_beta_from_an_expected_miss_rate():
    assert beta_from_miss_rate(0.5) == pytest.approx(0.1)  # the published pair
    rates = [0.0, 0.1, 0.3, 0.5, 0.9]
    betas = [beta_from_miss_rate(rate) for rate in rates]
    assert betas == sorted(betas, reverse=True)
    assert all(0 <= beta <= 1 for beta in betas)
    # The expected loss of a lesion labelled at rate .7 is smallest at the promised confidence.
    alpha, rate = 3.0, 0.3
    beta = beta_from_miss_rate(rate, alpha, confidence=0.95)
    p = torch.linspace(0.501, 0.9999, 50_000, dtype=torch.float64)
    ce0, ce1 = -(1 - p).log(), -p.log()
    expected = rate * (beta * ce0 + (1 - beta) * ce1) + (1 - rate) * alpha * ce1
    assert p[expected.argmin()].item() == pytest.approx(0.95, abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0},
        {"beta": 1.1},
        {"bootstrap": "firm"},
        {"gate": "lesion"},
        {"border": -1},
        {"reduction": "sum"},
        {"bootstrap": "reed-hard", "gate": "component"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    logits, target, _ = inputs()
    with pytest.raises(ValueError, match=r"must|use"):
        lopsided_bootstrap_loss(logits, target, **settings)


def test_malformed_input_is_named():
    logits, target = torch.randn(1, 2, 4, 6), torch.zeros(1, 4, 6, dtype=torch.long)
    for loss in (
        lopsided_bootstrap_loss,
        TopKBottomSigmaLoss(),
        TopKBottomSigmaLoss(lambda z, y: F.cross_entropy(z, y, reduction="none")),
    ):
        for shape in ((1, 6, 4), (4, 6), (1, 2, 4, 6), (2, 4, 6)):
            with pytest.raises(ValueError, match=r"weight must be|2 in the weight"):
                loss(logits, target, weight=torch.ones(shape))
        flat, deep = (loss(logits, target, weight=torch.full(s, 2.0)) for s in ((1, 4, 6), (1, 1, 4, 6)))
        assert_close(flat, deep)
    for value in (0.999, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="fractions"):
            lopsided_bootstrap_loss(logits, torch.full((1, 4, 6), value))
    with pytest.raises(ValueError, match="reduction"):
        LopsidedBootstrapLoss(reduction="sum")
    for alpha in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="alpha"):
            LopsidedBootstrapLoss(alpha=alpha)
    target[0, 0, 0] = -100
    for settings in (
        {"beta": 1.0},
        {"reduction": "none"},
        {"bootstrap": "soft"},
        {"weight": torch.ones(1, 4, 6)},
    ):
        with pytest.raises(ValueError, match=r"outside the classes 0\.\.1"):
            lopsided_bootstrap_loss(logits, target, **settings)


def test_the_focal_gradient_stays_finite_below_a_power_of_one():
    logits = torch.tensor([[[[30.0]], [[0.0]]]], requires_grad=True)
    focal = {"voxel": "focal", "focal_gamma": 0.5, "class_weights": [1.0, 1.0], "dice": 0.0}
    Objective(2, **focal)(logits, torch.zeros(1, 1, 1, dtype=torch.long)).backward()
    assert logits.grad.isfinite().all()
    with pytest.raises(ValueError, match="focal_gamma"):
        Objective(2, **{**focal, "focal_gamma": -1.0})
