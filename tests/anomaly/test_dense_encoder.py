"""Dense encoding is patch-by-patch encoding, only at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scotoma.anomaly import SiamesePatchAutoencoder, dense, dense_encoder


def trained(channels: int, **kwargs) -> SiamesePatchAutoencoder:
    """An auto-encoder whose batch statistics and affine weights are not the initial ones."""
    torch.manual_seed(0)
    autoencoder = SiamesePatchAutoencoder(channels, **kwargs)
    for module in autoencoder.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.2, 2)
    return autoencoder.eval()


def patch_by_patch(autoencoder: SiamesePatchAutoencoder, images: torch.Tensor) -> torch.Tensor:
    p, d = autoencoder.patch, autoencoder.dimensions
    windows = images
    for axis in range(d):
        windows = windows.unfold(2 + axis, p, 1)
    sides = windows.shape[2 : 2 + d]
    patches = windows.movedim(1, 1 + d).reshape(-1, images.shape[1], *(p,) * d)
    latents = autoencoder.encoder(patches).flatten(1)
    return latents.reshape(len(images), *sides, -1).movedim(-1, 1)


@settings(max_examples=12, deadline=None)
@given(
    patch=st.sampled_from([9, 15, 21]),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    channels=st.integers(1, 3),
    batch=st.integers(1, 2),
)
def test_equal_in_2d(patch: int, extra: tuple[int, int], channels: int, batch: int):
    autoencoder = trained(channels, patch=patch)
    images = torch.rand(batch, channels, patch + extra[0], patch + extra[1])
    with torch.no_grad():
        expected = patch_by_patch(autoencoder, images)
    got = dense_encoder(autoencoder)(images)
    assert got.shape == (batch, 16, extra[0] + 1, extra[1] + 1)
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("patch", "sides"), [(9, (12, 9, 11)), (15, (16, 17, 15))])
def test_equal_in_3d(patch: int, sides: tuple[int, ...]):
    autoencoder = trained(2, patch=patch, dimensions=3)
    images = torch.rand(1, 2, *sides)
    with torch.no_grad():
        expected = patch_by_patch(autoencoder, images)
    assert (dense_encoder(autoencoder)(images) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dimensions", [2, 3])
def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch, dimensions: int):
    encode = dense_encoder(trained(1, patch=9, dimensions=dimensions))
    images = torch.rand(2, 1, *(40, 33, 21)[:dimensions])
    whole = encode(images)
    monkeypatch.setattr(dense, "WORK_BYTES", 4 * encode.width * 500)
    torch.testing.assert_close(encode(images), whole)


def test_training_mode_and_later_training_do_not_matter():
    autoencoder = trained(1, patch=9)
    images = torch.rand(1, 1, 20, 20)
    encode = dense_encoder(autoencoder)
    before = encode(images)
    encode.train()
    with torch.no_grad():
        autoencoder.encoder[0].weight.zero_()
    torch.testing.assert_close(encode(images), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 1, 20, 20), "shaped"), ((1, 2, 20, 20, 20), "shaped"), ((1, 2, 14, 40), "no patch of side 15")],
)
def test_what_cannot_be_encoded_is_refused(shape: tuple[int, ...], words: str):
    with pytest.raises(ValueError, match=words):
        dense_encoder(SiamesePatchAutoencoder(2))(torch.rand(shape))
