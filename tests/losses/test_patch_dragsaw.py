"""Patch-dragsaw: separates what differs, never the exchanged sign, boxes counted right."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from scotoma.losses import FeatureCollector, Objective, PatchDragsawLoss, patch_dragsaw_loss
from scotoma.losses.patch_dragsaw import box_fractions, cell_grid, dragsaw


def two_clusters():
    """Eight cells, four of each kind, and free features."""
    phi = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)[None]
    features = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0))
    difference = 0.5 * torch.cdist(phi, phi, p=1)
    return nn.Parameter(features), difference, torch.ones(1, 8, 8, dtype=torch.bool)


def cosines(features):
    unit = F.normalize(features[0].detach(), dim=-1)
    cos = unit @ unit.T
    same = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()
    return cos[same].mean().item(), cos[~same].mean().item()


def test_two_clusters_separate_and_the_exchanged_sign_collapses():
    for exchanged in (False, True):
        features, difference, usable = two_clusters()
        optimizer = torch.optim.Adam([features], 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            weights = 1 - difference if exchanged else difference
            dragsaw(features, features, weights, usable, 0.5).mean().backward()
            optimizer.step()
        same, different = cosines(features)
        if exchanged:
            assert same - different < 0.05, "the exchanged form should not tell the clusters apart"
        else:
            assert same > 0.99
            assert different < -0.9


def test_the_stated_gradient():
    generator = torch.Generator().manual_seed(1)
    n, t = 7, 0.5
    phi = torch.rand(1, n, 4, generator=generator, dtype=torch.float64)
    phi = phi / phi.sum(-1, keepdim=True)
    difference = 0.5 * torch.cdist(phi, phi, p=1)
    features = torch.randn(1, n, 5, generator=generator, dtype=torch.float64).requires_grad_()
    loss = dragsaw(features, features, difference, torch.ones(1, n, n, dtype=torch.bool), t)
    unit = F.normalize(features, dim=-1)
    s = ((unit @ unit.transpose(1, 2)) - 1) / t
    slope = -(1 - difference) + n * difference * (difference * s).softmax(-1)
    by_hand = torch.autograd.grad(s, features, (slope / n**2).detach())[0]
    assert_close(torch.autograd.grad(loss.sum(), features)[0], by_hand)


@given(st.integers(0, 1000), st.sampled_from([2, 3]))
@settings(max_examples=15, deadline=None)
def test_boxes_agree_with_brute_force(seed, dims):
    generator = torch.Generator().manual_seed(seed)
    shape = [9, 12, 7][:dims]
    target = torch.randint(0, 4, (2, *shape), generator=generator)
    valid = torch.rand(target.shape, generator=generator) < 0.8
    sizes = [5, 7, 3][:dims]
    centres = [torch.arange(0, size, 3) for size in shape]
    shares, known = box_fractions(target * valid, valid, centres, sizes, 4)
    for b in range(2):
        for n, point in enumerate(itertools.product(*[c.tolist() for c in centres])):
            counts, total, labelled = torch.zeros(4), 0, False
            for offset in itertools.product(*[range(-(s // 2), s // 2 + 1) for s in sizes]):
                where = [p + o for p, o in zip(point, offset, strict=True)]
                if any(w < 0 or w >= s for w, s in zip(where, shape, strict=True)):
                    counts[0] += 1  # outside counts as background
                    total += 1
                elif valid[(b, *where)]:
                    counts[target[(b, *where)]] += 1
                    total += 1
                    labelled = True
            assert known[b, n] == labelled
            if labelled:
                assert_close(shares[b, n], counts / total, atol=1e-6, rtol=0)
    assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))


def test_affinity_stays_between_zero_and_one_with_several_classes():
    target = torch.randint(0, 4, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    target[:, :16, :16] = 3
    shares, _ = box_fractions(target, None, [torch.arange(0, 32, 4)] * 2, [5, 5], 4)
    d = 0.5 * torch.cdist(shares, shares, p=1)
    assert d.min() >= 0
    assert d.max() <= 1 + 1e-6
    sure = torch.zeros(1, 32, 32, dtype=torch.long)
    sure[0, :, 16:] = 1
    sure[0, 16:] = 2
    shares, _ = box_fractions(sure, None, [torch.tensor([4, 28])] * 2, [5, 5], 4)
    official = torch.cdist(shares[..., 1:], shares[..., 1:], p=1)
    assert official.max() == 2  # why the official form lets A fall below 0


@pytest.mark.parametrize("shape", [(8, 8), (5, 30), (6, 6, 6), (2, 20, 20), (1, 1)])
def test_grids_are_even_centred_and_small_enough(shape):
    axes = cell_grid(shape, 64)
    count = 1
    for axis, size in zip(axes, shape, strict=True):
        count *= len(axis)
        assert axis.min() >= 0
        assert axis.max() < size
        assert abs(int(axis.min()) - (size - 1 - int(axis.max()))) <= 1
        assert len(set(axis.diff().tolist())) <= 1
    assert count <= 64


def blob(batch: int = 2):
    target = torch.zeros(batch, 32, 32, dtype=torch.long)
    target[:, 8:20, 6:22] = 1
    return target


def test_uniform_images_are_left_out():
    features = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    empty = torch.zeros(2, 32, 32, dtype=torch.long)
    loss = patch_dragsaw_loss([features], empty)
    loss.backward()
    assert loss == 0
    assert features.grad.abs().max() == 0
    mixed = blob()
    mixed[1] = 0
    assert_close(patch_dragsaw_loss([features], mixed), patch_dragsaw_loss([features[:1]], mixed[:1]))


def test_cells_without_labels_do_not_take_part():
    features = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = blob(1)
    target[:, :, 16:] = 255
    loss = patch_dragsaw_loss([features], target, ignore_index=255, boxes=[5])
    loss.backward()
    assert features.grad[..., 5:].abs().max() == 0
    assert features.grad[..., :4].abs().max() > 0


def test_levels_of_any_size_and_the_cross_level_term():
    features = [torch.randn(2, 8, 16, 16), torch.randn(2, 12, 8, 8), torch.randn(2, 4, 3, 5)]
    loss = PatchDragsawLoss(cross_level=True, channels=[8, 12, 4], projection=16)
    plain = patch_dragsaw_loss(features, blob())
    value = loss(features, blob())
    assert value > plain
    value.backward()
    assert all(p.weight.grad.abs().max() > 0 for p in loss.projections)
    mean = torch.stack([patch_dragsaw_loss([f], blob()) for f in features]).mean()
    assert_close(plain, mean)


def test_fixed_boxes_are_averaged():
    features = [torch.randn(2, 8, 16, 16)]
    each = [patch_dragsaw_loss(features, blob(), boxes=[side]) for side in (5, 7, 9)]
    assert_close(patch_dragsaw_loss(features, blob(), boxes=[5, 7, 9]), torch.stack(each).mean())


def test_receptive_fields_have_the_official_sizes(monkeypatch):
    from scotoma.losses import patch_dragsaw

    seen = []
    real = patch_dragsaw.box_fractions
    monkeypatch.setattr(patch_dragsaw, "box_fractions", lambda *a: seen.append(list(a[3])) or real(*a))
    target = torch.zeros(1, 32, 32, 32, dtype=torch.long)
    patch_dragsaw_loss([torch.randn(1, 4, 8, 8, 8), torch.randn(1, 4, 4, 4, 4)], target)
    assert seen == [[23] * 3, [47] * 3]


def test_large_features_in_half_precision_stay_finite():
    features = (40 * torch.randn(2, 8, 8, 8)).half().requires_grad_()
    loss = patch_dragsaw_loss([features], blob(), temperature=0.01)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()


def test_autocast_does_not_count_in_half_precision():
    features = [torch.randn(2, 8, 8, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = patch_dragsaw_loss(features, blob())
    assert_close(mixed, patch_dragsaw_loss(features, blob()))


def test_features_are_collected_from_a_network_as_it_is():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1))
    collector = FeatureCollector(network, ["2", "0"])
    network(torch.randn(1, 1, 8, 8))
    features = collector.take()
    assert [f.shape[1] for f in features] == [6, 4]
    assert features[0].requires_grad
    with pytest.raises(RuntimeError, match="has not run"):
        collector.take()
    collector.close()
    network(torch.randn(1, 1, 8, 8))
    with pytest.raises(RuntimeError, match="has not run"):
        collector.take()
    with pytest.raises(ValueError, match=r"no part named 'encoder\.1'"):
        FeatureCollector(network, ["encoder.1"])


def test_objective_adds_the_term_with_its_weight():
    logits, features = torch.randn(2, 2, 32, 32), [torch.randn(2, 8, 8, 8)]
    objective = Objective(2, dragsaw=0.01)
    total = objective(logits, blob(), features=features)
    assert_close(objective.terms["dragsaw"], patch_dragsaw_loss(features, blob()))
    assert_close(total, objective.terms["ce"] + objective.terms["dice"] + 0.01 * objective.terms["dragsaw"])
    assert_close(objective(logits, blob(), features={"level": features[0]}), total)
    with pytest.raises(ValueError, match="needs features"):
        objective(logits, blob())


def test_settings_out_of_range_are_refused():
    for wrong in (
        {"temperature": 0},
        {"cells": 1},
        {"cross_level": True},
        {"cross_level": True, "channels": [3]},
    ):
        with pytest.raises(ValueError, match=r"must|needs"):
            PatchDragsawLoss(**wrong)
    features = [torch.randn(2, 4, 8, 8)]
    for wrong in ({"boxes": [4]}, {"boxes": []}, {"boxes": "H"}, {"boxes": 5}):
        with pytest.raises(ValueError, match="odd"):
            patch_dragsaw_loss(features, blob(), **wrong)
    for wrong in ({"temperature": 0.0}, {"cells": 1}, {"cells": 0}):  # no cell at all was looked for for ever
        with pytest.raises(ValueError, match="must"):
            patch_dragsaw_loss(features, blob(), **wrong)
    with pytest.raises(ValueError, match="list of feature maps"):
        patch_dragsaw_loss(features[0], blob())
    with pytest.raises(ValueError, match="at least one"):
        patch_dragsaw_loss([], blob())


@pytest.mark.parametrize("size", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_cell_without_features_does_not_outweigh_the_others(dtype, size):
    """The derivative of a direction is unbounded at 0: a dead cell used to get a gradient of 5e9."""
    features = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    features[:, :, 0, 0] = size
    features.requires_grad_()
    patch_dragsaw_loss([features], blob()).backward()
    assert features.grad.isfinite().all()
    assert features.grad.abs().max() < 1
    assert features.grad[:, :, 1:].abs().max() > 0


def test_unknown_labels_are_refused_where_the_classes_are_known():
    with pytest.raises(ValueError, match=r"outside the classes 0\.\.1"):
        patch_dragsaw_loss([torch.randn(2, 4, 8, 8)], 255 * blob(), num_classes=2)


def test_labels_that_are_never_classes_are_refused_without_knowing_the_classes():
    features = [torch.randn(2, 4, 8, 8)]
    with pytest.raises(ValueError, match="outside the classes"):
        patch_dragsaw_loss(features, -100 * blob())
    with pytest.raises(ValueError, match="not finite"):
        patch_dragsaw_loss(features, torch.full((2, 32, 32), float("inf")))
