"""The composition: what belongs together, what contradicts, what is reported."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import inputs
from torch.testing import assert_close

from scotoma.losses import NonFiniteLossError, Objective, prior_bias
from scotoma.losses import fused as fused_pass
from scotoma.losses.supervision import level_weights, subsample


@pytest.mark.parametrize("blocks", ["one block", "many blocks"])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dice": 0.0},
        {"ce": 0.0},
        {"voxel": "focal"},
        {"voxel": "lopsided"},
        {"voxel": "lopsided", "gate": "component"},
        {"voxel": "lopsided", "gate": "component", "border": 1},
        {"voxel": "lopsided", "border": 2, "alpha": 2.0},
        {"voxel": "lopsided", "teacher": "average"},
        {"voxel": "lopsided", "teacher": "average", "border": 1},
        {"voxel": "lopsided", "dice": 1.0, "dice_excludes_bootstrapped": True, "sigma": 0.1, "k": 2},
        {"batch_dice": True, "sigma": 0.1},
        {"sigma": 0.2, "k": 0.5, "smooth": False, "per_class": True},
    ],
    ids=str,
)
def test_the_fused_pass_agrees_with_ordinary_operations(classes, settings, blocks, monkeypatch):
    if blocks == "many blocks":
        monkeypatch.setattr(fused_pass, "_BLOCK", 200)  # none of whose multiples is the image
    logits, target, _ = inputs(classes=classes)
    target[:, :2] = 255
    target[3] = 255
    logits.requires_grad_()
    results = []
    for fused in (True, False):
        objective = Objective(classes, **settings)
        objective.voxel_loss = dataclasses.replace(objective.voxel_loss, fused=fused)
        teacher = logits.detach().roll(1, 0) if objective.asks_average else None
        loss = objective(logits, target, teacher_logits=teacher)
        results.append((loss, torch.autograd.grad(loss, logits)[0]))
    assert_close(results[0], results[1])


def test_dice_is_the_mean_over_images_and_present_classes():
    logits, target, _ = inputs(classes=4)
    target[1][target[1] == 2] = 0
    target[2] = 0
    p = logits.softmax(1)
    images = []
    for b in range(4):
        dice = [
            (2 * p[b, c][target[b] == c].sum() + 1e-5) / (p[b, c].sum() + (target[b] == c).sum() + 1e-5)
            for c in range(1, 4)
            if (target[b] == c).any()
        ]
        images.append(1 - torch.stack(dice).mean() if dice else torch.zeros((), dtype=p.dtype))
    objective = Objective(4)
    objective(logits, target)
    assert_close(objective.terms["dice"], torch.stack(images).mean())
    assert_close(objective.terms["ce"], F.cross_entropy(logits, target))


def test_dice_and_cross_entropy_agree_with_monai():
    from monai.losses.dice import DiceLoss

    logits, target, _ = inputs()
    for i in range(4):  # MONAI counts absent classes: give every image every class
        target[i, 0, 0], target[i, 0, 1] = 1, 2
    one_hot = F.one_hot(target, 3).movedim(-1, 1)
    for batch in (False, True):
        monai = DiceLoss(include_background=False, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5, batch=batch)
        objective = Objective(3, batch_dice=batch)
        objective(logits, target)
        assert_close(objective.terms["dice"], monai(logits, one_hot), rtol=1e-6, atol=1e-7)


def test_terms_add_up_with_their_weights():
    logits, target, _ = inputs()
    objective = Objective(3, ce=0.7, dice=2.0)
    total = objective(logits, target)
    terms = objective.terms
    assert set(terms) == {"ce", "dice", "total"}
    assert_close(total, 0.7 * terms["ce"] + 2 * terms["dice"])
    assert not any(value.requires_grad for value in terms.values())


def test_deep_supervision_is_the_weighted_sum_of_the_levels():
    logits, target, _ = inputs(dims=3)
    target[0, :3] = 255
    levels = [logits, logits[:, :, ::2, ::2, ::2], logits[:, :, ::4, ::4, ::4]]
    targets = [subsample(target, level.shape[2:], 1) for level in levels]
    alone = [Objective(3)(level, t) for level, t in zip(levels, targets, strict=True)]
    weights = torch.tensor([4, 2, 1], dtype=torch.float64) / 7
    assert_close(Objective(3)(levels, target), (weights * torch.stack(alone)).sum())
    assert_close(Objective(3, deep_supervision_weights=[0, 1, 0])(levels, target), alone[1])
    # Images are ranked once, by the sum over the levels.
    objective = Objective(3, k=1, smooth=False)
    objective(levels, target)
    assert_close(objective.terms["kept_images"].item(), 1.0)


def test_subsampling_takes_the_nearest_voxel():
    row = torch.arange(8)[None]
    assert subsample(row, (4,), 1).tolist() == [[1, 3, 5, 7]]
    assert subsample(row, (8,), 1).tolist() == row.tolist()
    target = torch.randint(0, 3, (2, 9, 15))
    wanted = F.interpolate(target[:, None].float(), (4, 7), mode="nearest-exact")[:, 0].long()
    assert torch.equal(subsample(target, (4, 7), 1), wanted)


def test_class_weights_divide_by_the_number_of_voxels():
    logits, target, _ = inputs()
    weights = [0.5, 2.0, 4.0]
    loss = Objective(3, class_weights=weights, dice=0.0)(logits, target)
    wanted = F.cross_entropy(logits, target, torch.tensor(weights).double(), reduction="sum") / target.numel()
    assert_close(loss, wanted)


def test_dice_leaves_out_what_is_overruled():
    """A missed lesion that the network has found pulls nothing in Dice."""
    target = torch.zeros(1, 12, 12, dtype=torch.long)
    target[0, 1:4, 1:4] = 1
    found = target.clone()
    found[0, 7:10, 7:10] = 1
    logits = torch.stack([found == 0, found == 1], 1) * 5.0
    settings = {"voxel": "lopsided", "dice": 1.0, "dice_excludes_bootstrapped": True}
    values = {}
    for beta in (1.0, 0.1, 0.0):
        objective = Objective(2, beta=beta, **settings)
        objective(logits, target)
        values[beta] = objective.terms["dice"].item()
    complete = Objective(2)
    complete(logits, found)
    assert values[1.0] > values[0.1] > values[0.0]
    assert values[0.0] == pytest.approx(complete.terms["dice"].item(), abs=0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_term_that_is_not_finite_is_named(value):
    logits, target, image = inputs()
    logits[0, 1, 2, 2] = value
    target[0, 2, 2] = 1
    with pytest.raises(NonFiniteLossError, match="'ce'") as error:
        Objective(3)(logits, target)
    assert error.value.term == "ce"
    with pytest.raises(NonFiniteLossError, match="'lopsided'"):
        Objective(3, "lopsided")(logits, target)
    logits, target, _ = inputs()
    image[0, 0, 0, 0] = value
    with pytest.raises(NonFiniteLossError, match="'content'"):
        Objective(3, content=0.25, content_widths=(2, 2))(logits, target, image)
    features = [torch.full((4, 2, 4, 4), value)]
    with pytest.raises(NonFiniteLossError, match="'dragsaw'"):
        Objective(3, dragsaw=0.01)(logits, target, features=features)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_trimming_does_not_hide_what_is_not_finite(sigma):
    logits, target, _ = inputs()
    logits[0, :, 2, 2] = float("nan")
    with pytest.raises(NonFiniteLossError):
        Objective(3, sigma=sigma, k=0.5)(logits, target)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"batch_dice": True, "k": 0.5}, "batch Dice joins all images"),
        ({"voxel": "lopsided", "dice": 1.0}, "pulls the missed lesions back"),
        ({"dice_excludes_bootstrapped": True}, "needs the lopsided"),
        ({"voxel": "lopsided", "class_weights": [1, 2, 3]}, "use alpha alone"),
        ({"class_weights": [1, 2]}, "2 class_weights for 3"),
        ({"ce": 0.0, "dice": 0.0}, "one of them > 0"),
        ({"dice": -1.0}, "must be >= 0"),
        ({"content": -1.0}, "must be >= 0"),
        ({"voxel": "hinge"}, "'ce', 'lopsided' or 'focal'"),
        ({"voxel": "lopsided", "teacher": "mean"}, "'self' or 'average'"),
        ({"teacher": "average"}, "only the lopsided"),
        ({"num_classes": 1}, "at least 2"),
        ({"beta_ramp": [0.5, 0.2]}, "start < end"),
        ({"beta_ramp": 0.5}, "start < end"),
        ({"expected_miss_rate": 0.3}, "is for the lopsided"),
        ({"expected_miss_rate": "measured"}, "is for the lopsided"),
        ({"voxel": "lopsided", "expected_miss_rate": "measured"}, "a beta_ramp that begins after"),
        ({"ce": float("nan")}, "one of them > 0"),
        ({"content": float("nan")}, "must be >= 0"),
        ({"class_weights": [1, -2, 1]}, "must be >= 0"),
        ({"content": 1.0, "deep_supervision_weights": [0, 1]}, "do not begin with 0"),
        ({"content": 0.25, "content_extractor": "self"}, "needs a weights file"),
        ({"dragsaw": 0.01, "dragsaw_cross_level": True}, "needs the channels"),
    ],
)
def test_contradictions_are_refused_with_the_reason(settings, reason):
    with pytest.raises(ValueError, match=reason):
        Objective(**{"num_classes": 3, **settings})


@pytest.mark.parametrize(
    "settings", [{}, {"class_weights": [1.0, 2.0, 3.0]}, {"sigma": 0.1, "k": 0.5}], ids=str
)
def test_a_weight_per_voxel_scales_the_voxel_loss(settings):
    logits, target, _ = inputs()
    logits = logits.detach().requires_grad_()
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    objective = Objective(3, **settings, dice=0.0)
    assert_close(
        objective(logits, target, weight=torch.full_like(weight, 2.0)), 2 * objective(logits, target)
    )
    weight[:, :2] = 0
    (gradient,) = torch.autograd.grad(objective(logits, target, weight=weight), logits)
    assert gradient[:, :, :2].eq(0).all()
    assert gradient[:, :, 2:].ne(0).any()
    if not settings:
        expected = (F.cross_entropy(logits, target, reduction="none") * weight).mean()
        assert_close(objective(logits, target, weight=weight), expected)
        low = [subsample(logits, (4, 4), 2), subsample(target, (4, 4), 1), subsample(weight, (4, 4), 1)]
        parts = [expected, (F.cross_entropy(low[0], low[1], reduction="none") * low[2]).mean()]
        assert_close(objective([logits, low[0]], target, weight=weight), (2 * parts[0] + parts[1]) / 3)
    with pytest.raises(ValueError, match="a weight per voxel"):
        objective(logits, target, weight=weight[:1])


def test_numpy_integers_are_ignored_like_others():
    logits, target, _ = inputs()
    marked = target.masked_fill(target == 1, 255)
    assert_close(
        Objective(3, ignore_index=np.int64(255))(logits, marked),
        Objective(3, ignore_index=255)(logits, marked),
    )


def test_wrong_inputs_are_refused():
    logits, target, _ = inputs()
    with pytest.raises(ValueError, match="gives 3 classes"):
        Objective(2)(logits, target)
    with pytest.raises(ValueError, match="deep supervision weights"):
        Objective(3, deep_supervision_weights=[1.0])([logits, logits], target)
    with pytest.raises(ValueError, match="halving"):
        level_weights("doubling", 2)
    with pytest.raises(ValueError, match="not all zero"):
        level_weights([0, 0], 2)


def test_settings_are_plain_json():
    settings = {
        "voxel": "lopsided", "alpha": 3.0, "beta_ramp": [0.4, 0.7], "sigma": 0.02, "k": 0.75, "queue": 32,
        "dragsaw": 0.01, "dragsaw_boxes": [5, 7], "content": 0.25, "ignore_index": [255, 200],
    }  # fmt: skip
    Objective(2, **json.loads(json.dumps(settings)))


def test_the_averaged_teacher_is_asked_once_beta_falls():
    logits, target, _ = inputs()
    objective = Objective(3, "lopsided", teacher="average", beta_ramp=(0.4, 0.7))
    objective.progress = 0.4
    objective(logits, target)
    objective.progress = 0.5
    with pytest.raises(ValueError, match="teacher_logits"):
        objective(logits, target)
    own = Objective(3, "lopsided", beta_ramp=(0.4, 0.7))
    own.progress = 0.5
    assert_close(objective(logits, target, teacher_logits=logits), own(logits, target))
    assert (objective(logits, target, teacher_logits=-logits) - own(logits, target)).abs() > 1e-3
    # Each resolution asks the teacher at its own voxels.
    levels = [logits, logits[..., 1::2, 1::2]]
    assert_close(objective(levels, target, teacher_logits=logits), own(levels, target))


def test_prior_bias_starts_at_the_given_shares():
    assert_close(prior_bias([90, 9, 1]).softmax(0), torch.tensor([0.90, 0.09, 0.01]))
    with pytest.raises(ValueError, match="positive share"):
        prior_bias([1.0, 0.0])


def test_losses_stand_alone():
    """Neither Lightning nor MONAI nor any other room of the package comes along."""
    code = (
        "import sys; import scotoma.losses; "
        "print([m for m in sys.modules if m.split('.')[0] in ('lightning', 'monai', 'nibabel', 'pandas')"
        " or (m.startswith('scotoma.') and not m.startswith('scotoma.losses'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
