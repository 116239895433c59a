"""The patch auto-encoder: the published form, its family, its loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scotoma.anomaly import SiamesePatchAutoencoder, siamese_patch_loss
from scotoma.networks.patch_autoencoder import _Transposed2d, _Transposed3d


def test_published_form_takes_15_to_11_9_3_1():
    autoencoder = SiamesePatchAutoencoder(2)
    x = torch.rand(4, 2, 15, 15)
    sides, widths = [], []
    for layer in autoencoder.encoder:
        x = layer(x)
        if isinstance(layer, torch.nn.Conv2d):
            sides.append(x.shape[-1])
            widths.append(x.shape[1])
    assert sides == [11, 9, 3, 1]
    assert widths == [3, 4, 12, 16]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("patch", [9, 15, 21, 27])
def test_every_patch_size_becomes_one_point_and_comes_back(patch: int, dimensions: int):
    autoencoder = SiamesePatchAutoencoder(1, patch=patch, filters=(2, 3, 4), latent=5, dimensions=dimensions)
    x = torch.rand(2, 1, *(patch,) * dimensions)
    assert autoencoder.encoder(x).shape == (2, 5, *(1,) * dimensions)
    reconstruction, latent = autoencoder(x)
    assert reconstruction.shape == x.shape
    assert latent.shape == (2, 5)
    assert reconstruction.min() >= 0
    assert reconstruction.max() <= 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch": 10}, "9, 15, 21, 27"),
        ({"patch": 3}, "9, 15, 21, 27"),
        ({"filters": (3, 4)}, "three convolutions"),
        ({"dimensions": 4}, "2 or 3"),
        ({"latent": 0}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(settings: dict, words: str):
    with pytest.raises(ValueError, match=words):
        SiamesePatchAutoencoder(2, **settings)


def test_patches_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 2, 15, 15\)"):
        SiamesePatchAutoencoder(2)(torch.rand(1, 2, 9, 9))


@pytest.mark.parametrize(("layer", "ndim"), [(_Transposed2d, 2), (_Transposed3d, 3)])
def test_transposed_convolution_is_torchs(layer: type, ndim: int):
    ours = layer(3, 2, 5)
    x = torch.rand(2, 3, *(4,) * ndim)
    reference = F.conv_transpose2d if ndim == 2 else F.conv_transpose3d
    torch.testing.assert_close(ours(x), reference(x, ours.weight, ours.bias))


def test_settings_build_the_same_architecture():
    first = SiamesePatchAutoencoder(3, patch=9, filters=(4, 5, 6), latent=7, dimensions=3)
    again = SiamesePatchAutoencoder(**first.settings())
    again.load_state_dict(first.state_dict())


def test_loss_is_two_reconstructions_minus_the_cosine():
    generator = torch.Generator().manual_seed(0)
    x1, x2, y1, y2 = (torch.rand(8, 2, 15, 15, generator=generator) for _ in range(4))
    z1, z2 = (torch.randn(8, 16, generator=generator) for _ in range(2))
    terms = siamese_patch_loss((x1, x2), (y1, y2), (z1, z2), cosine_weight=0.005)
    # METHODS: a = .005 with the mean weighs as 2.25 with the sum over the 450 values of a patch
    by_sum = ((x1 - y1) ** 2).flatten(1).sum(1) + ((x2 - y2) ** 2).flatten(1).sum(1)
    cosine = (z1 * z2).sum(1) / z1.norm(dim=1) / z2.norm(dim=1)
    torch.testing.assert_close(terms["loss"] * 450, (by_sum - 2.25 * cosine).mean())


def test_the_same_patch_twice_has_cosine_one():
    x, z = torch.rand(4, 1, 9, 9), torch.randn(4, 6)
    terms = siamese_patch_loss((x, x), (x, x), (z, z))
    assert terms["cosine"].item() == pytest.approx(1.0)
    assert terms["loss"].item() == pytest.approx(-0.005)


def test_the_cosine_pulls_latents_together_and_no_length_term_does():
    z1 = torch.tensor([[1.0, 0.0]], requires_grad=True)
    z2 = torch.tensor([[0.0, 3.0]])
    x = torch.zeros(1, 1, 9, 9)
    siamese_patch_loss((x, x), (x, x), (z1, z2))["loss"].backward()
    assert z1.grad is not None
    assert z1.grad[0, 1] < 0, "a step against the gradient turns z1 towards z2"
    assert z1.grad[0, 0].item() == pytest.approx(0, abs=1e-9), "the length of z1 does not matter"
