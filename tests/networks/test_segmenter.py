"""Segmenters: shapes, the strided stem, the prior, gradients."""

from __future__ import annotations

import pytest
import torch

from scotoma.networks import build_segmenter


@pytest.mark.parametrize("architecture", ["unet", "resunet"])
@pytest.mark.parametrize(("dims", "stem"), [(2, (1, 1)), (2, (2, 2)), (3, (1, 2, 2)), (3, (2, 2, 2))])
def test_logits_lie_on_the_input_grid(architecture, dims, stem):
    net = build_segmenter(
        architecture,
        channels=2,
        classes=3,
        dims=dims,
        features=(4, 8, 16, 16),
        strides=[stem, *[[2] * dims] * 3],
        deep_supervision=True,
    )
    size = [2 * d for d in net.divisor]
    levels = net.train()(torch.randn(2, 2, *size))
    assert [tuple(level.shape) for level in levels] == [(2, 3, *size), (2, 3, *[n // 2 for n in size])]
    assert net.eval()(torch.randn(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize(("architecture", "dims"), [("segresnet", 3), ("segresnet", 2), ("swinunetr", 3)])
def test_monai_networks(architecture, dims):
    net = build_segmenter(architecture, channels=1, classes=2, dims=dims, features=(12, 24, 48)).eval()
    size = [2 * d for d in net.divisor]
    with torch.no_grad():
        assert net(torch.randn(1, 1, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize("architecture", ["unet", "resunet", "segresnet"])
def test_prior_is_what_the_network_starts_at(architecture):
    torch.manual_seed(0)
    strides = None if architecture == "segresnet" else [(2, 2), (2, 2), (2, 2)]
    net = build_segmenter(architecture, classes=3, dims=2, features=(8, 16, 32), strides=strides).eval()
    net.set_prior([0.97, 0.02, 0.01])
    with torch.no_grad():
        share = net(torch.randn(2, 1, 32, 32)).softmax(1).mean((0, 2, 3))
    torch.testing.assert_close(share, torch.tensor([0.97, 0.02, 0.01]), atol=0.02, rtol=0.3)
    with pytest.raises(ValueError, match="sum to 1"):
        net.set_prior([1.0, 0.5, 0.1])


def test_stem_places_every_output_where_it_belongs():
    """Depth to space: output (c, t, s) goes to voxel s * stem + t of class c."""
    net = build_segmenter("unet", classes=2, dims=2, features=(4, 8), strides=[(2, 3), (2, 2)])
    size = (4, 5)
    marks = torch.arange(2 * 6 * 20, dtype=torch.float32).reshape(1, 12, *size)
    out = net._to_voxels(marks)
    assert out.shape == (1, 2, 8, 15)
    for c in range(2):
        for i in range(8):
            for j in range(15):
                channel = c * 6 + (i % 2) * 3 + j % 3
                assert out[0, c, i, j] == marks[0, channel, i // 2, j // 3]


def test_a_size_that_does_not_divide_is_refused():
    net = build_segmenter("unet", dims=2, features=(4, 8, 16))
    with pytest.raises(ValueError, match="divisible by"):
        net(torch.zeros(1, 1, 30, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dims": 4}, "2 or 3"),
        ({"architecture": "vnet"}, "no architecture"),
        (
            {"architecture": "segresnet", "features": (8, 16), "strides": [[2] * 3, [2] * 3]},
            "no strided stem",
        ),
        ({"features": (8, 16), "strides": [[1] * 3]}, "2 stages"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        build_segmenter(**settings)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("depth", [2, 4])
def test_every_trainable_parameter_gets_a_gradient(deep_supervision, depth):
    """DDP refuses parameters without one."""
    torch.manual_seed(0)
    net = build_segmenter(
        "unet",
        dims=2,
        features=(4, 8, 16, 16)[:depth],
        strides=[(2, 2)] * depth,
        deep_supervision=deep_supervision,
    ).train()
    out = net(torch.randn(2, 1, 32, 32))
    sum(level.square().mean() for level in (out if isinstance(out, list) else [out])).backward()
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
