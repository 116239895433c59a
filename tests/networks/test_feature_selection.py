"""Uncertainty-aware feature selection: its range, its uncertainty, its place in the segmenters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from scotoma.networks import UncertaintyFeatureSelection, build_segmenter
from scotoma.networks.feature_selection import insert_feature_selection


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])
def test_output_over_input_lies_between_one_and_two(dims, dtype, scale):
    torch.manual_seed(0)
    block = UncertaintyFeatureSelection(8, dims).to(dtype)
    with torch.no_grad():
        block.classify[-1].weight.mul_(scale * 20)
    features = torch.randn(2, 8, *[6] * dims).to(dtype)
    out = block(features)
    assert out.dtype == dtype
    ratio = (out.double() / features.double())[features != 0]
    slack = 4 * torch.finfo(dtype).eps
    assert ratio.min() >= 1 - slack
    assert ratio.max() <= 2 + slack


@pytest.mark.parametrize("groups", [2, 3])
def test_uncertainty_is_the_entropy(groups):
    torch.manual_seed(0)
    block = UncertaintyFeatureSelection(4, 2, groups=groups).double()
    features = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    q = block.classify(features).softmax(1)
    entropy = -(q * q.log()).sum(1, keepdim=True) / math.log(groups)
    assert_close(block.uncertainty(features), entropy)
    assert_close(block(features), features * (2 - entropy))


def test_certain_voxels_count_double_and_undecided_ones_once():
    block = UncertaintyFeatureSelection(4, 2)
    features = torch.rand(1, 4, 5, 5) + 0.1
    with torch.no_grad():
        block.classify[-1].weight.zero_()
        block.classify[-1].bias.zero_()
    assert_close(block(features), features)
    for bias in (20.0, 1e4):
        with torch.no_grad():
            block.classify[-1].bias.copy_(torch.tensor([bias, -bias]))
        for dtype in (torch.float32, torch.float16):
            out = block.to(dtype)(features.to(dtype))
            assert out.isfinite().all()
            assert_close(out, 2 * features.to(dtype))
        block.float()


def test_published_widths_and_refusals():
    assert UncertaintyFeatureSelection(64, 2).classify[0].out_channels == 16
    assert UncertaintyFeatureSelection(64, 3).classify[0].out_channels == 16
    assert UncertaintyFeatureSelection(128, 3).classify[0].out_channels == 32
    with pytest.raises(ValueError, match="at least 2"):
        UncertaintyFeatureSelection(8, groups=1)
    with pytest.raises(ValueError, match="dims"):
        UncertaintyFeatureSelection(8, dims=1)
    with pytest.raises(ValueError, match="built for 8 channels; got 4"):
        UncertaintyFeatureSelection(8)(torch.zeros(1, 4, 8, 8))


def build(architecture: str, dims: int):
    if architecture == "segresnet":
        return build_segmenter("segresnet", dims=dims, features=(8, 16, 32, 64))
    return build_segmenter(architecture, dims=dims, features=(4, 8, 12, 16), deep_supervision=True)


@pytest.mark.parametrize("architecture", ["unet", "resunet", "segresnet"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_stage_of_every_segmenter_takes_it(architecture, dims):
    network = build(architecture, dims)
    image = torch.randn(1, 1, *[32] * dims)
    before = network.eval()(image).shape
    names = insert_feature_selection(network, ["encoder", "decoder"])
    assert len(names) == 7
    blocks = [m for m in network.modules() if isinstance(m, UncertaintyFeatureSelection)]
    assert len(blocks) == 7
    network.train()
    out = network(image)
    sum(level.square().mean() for level in (out if isinstance(out, list) else [out])).backward()
    idle = [i for i, b in enumerate(blocks) if b.classify[0].weight.grad is None]
    assert not idle
    assert network.eval()(image).shape == before
    norms = [type(m).__name__ for b in blocks for m in b.modules() if "Norm" in type(m).__name__]
    assert norms == [f"InstanceNorm{dims}d"] * 7  # as the networks themselves


def test_single_stages_and_refusals():
    network = build("unet", 2)
    assert insert_feature_selection(network, ["decoder.2", "encoder.0"]) == ["encoder.0", "decoder.2"]
    for wrong, reason in [
        (["neck"], "'encoder' or 'decoder'"),
        (["decoder.3"], "stages 0..2"),
        (["decoder.x"], "there is no stage"),
        (["decoder.1", "decoder"], "named twice"),
        (["decoder.2"], "already has"),
    ]:
        with pytest.raises(ValueError, match=reason):
            insert_feature_selection(network, wrong)
    with pytest.raises(ValueError, match="no list of encoder and decoder stages"):
        insert_feature_selection(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.GroupNorm(4, 8), nn.InstanceNorm2d(8)])
def test_the_norm_is_the_networks_own(norm):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            stage = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), norm)
            self.down_layers = nn.ModuleList([stage])
            self.up_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 1), norm)])

    network = Bare()
    insert_feature_selection(network, ["encoder"])
    block = network.down_layers[0][1]
    assert type(block.classify[1]) is type(norm)
    assert block(torch.randn(2, 8, 6, 6)).shape == (2, 8, 6, 6)


def test_a_network_with_it_can_be_exported():
    network = build("unet", 2).eval()
    insert_feature_selection(network)
    image = torch.randn(1, 1, 32, 32)
    exported = torch.export.export(network, (image,)).module()
    assert_close(exported(image), network(image))
    traced = torch.jit.trace(network, image, check_trace=False)
    assert_close(traced(image), network(image))
