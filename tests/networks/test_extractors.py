"""Frozen extractors: reproducible, the shape of VGG16, weights from files only of the right kind."""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from scotoma.errors import InputError
from scotoma.losses import SiameseContentLoss
from scotoma.networks.extractors import (
    VGG16_DEPTHS,
    VGG16_WIDTHS,
    VGGFeatures,
    build_extractor,
    load_extractor,
    random_extractor,
    save_extractor,
    to_unit_range,
    train_extractor,
    vgg16_extractor,
)


def torchvision_state() -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names and shapes, small values."""
    state, index, channels = {}, 0, 3
    for width, depth in zip(VGG16_WIDTHS, VGG16_DEPTHS, strict=True):
        for _ in range(depth):
            generator = torch.Generator().manual_seed(index)
            state[f"features.{index}.weight"] = 0.05 * torch.randn(width, channels, 3, 3, generator=generator)
            state[f"features.{index}.bias"] = torch.full((width,), index / 100)
            channels = width
            index += 2
        index += 1
    return state


def test_vgg16_has_thirteen_convolutions():
    network = VGGFeatures(3, widths=VGG16_WIDTHS, depths=VGG16_DEPTHS)
    assert len(network.convolutions()) == 13
    assert sum(p.numel() for p in network.parameters()) == 14_714_688  # the published network, without head


@pytest.mark.parametrize("dims", [2, 3])
def test_random_weights_follow_the_seed_and_keep_the_scale(dims):
    first, again, other = (random_extractor(2, dims, seed=seed) for seed in (1, 1, 2))
    image = torch.randn(1, 2, *[16] * dims)
    for a, b, c in zip(first(image), again(image), other(image), strict=True):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)
        assert 0.1 < a.square().mean() < 10  # neither dies out nor blows up with depth
    assert not any(p.requires_grad for p in first.parameters())
    assert not first.training


def test_taps_that_do_not_fit_are_left_out():
    extractor = random_extractor(1)
    assert [len(extractor(torch.zeros(1, 1, *size))) for size in [(32, 32), (4, 4), (1, 1), (1, 8)]] == [
        4,
        3,
        1,
        4,
    ]
    assert [tuple(f.shape[2:]) for f in random_extractor(1, 3)(torch.zeros(1, 1, 1, 8, 8))][-1] == (1, 1, 1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_vgg16_from_a_file(tmp_path, suffix):
    state = torchvision_state()
    path = tmp_path / f"vgg16{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    extractor = vgg16_extractor(path)
    colour = extractor(torch.rand(1, 3, 32, 32))
    assert [tuple(f.shape[1:]) for f in colour] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert extractor(torch.rand(2, 2, 32, 32))[0].shape[0] == 4  # two grey channels, one by one
    # By hand up to relu1_2, with ImageNet's mean and spread taken off first.
    x = torch.rand(1, 3, 8, 8)
    y = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    for i in (0, 2):
        y = torch.relu(torch.conv2d(y, state[f"features.{i}.weight"], state[f"features.{i}.bias"], padding=1))
    assert_close(extractor(x)[0], y)
    loss = SiameseContentLoss("vgg16", weights=path, slices=2)
    target = torch.zeros(1, 4, 16, 16, dtype=torch.long)
    target[:, 1:3, 4:9, 4:9] = 1
    logits = torch.randn(1, 2, 4, 16, 16, requires_grad=True)
    loss(logits, target, torch.rand(1, 1, 4, 16, 16)).backward()
    assert logits.grad.abs().sum() > 0


def test_files_of_the_wrong_kind_are_refused(tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"no weights at all")
    with pytest.raises(InputError, match=r"bad\.pth: no readable weights"):
        vgg16_extractor(bad)
    with pytest.raises(InputError, match="no readable weights"):
        vgg16_extractor(tmp_path / "absent.safetensors")
    torch.save({"features.0.weight": torch.zeros(3)}, bad)
    with pytest.raises(InputError, match=r"features\.0\.weight is of shape \(3,\)"):
        vgg16_extractor(bad)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not the weights of an extractor"):
        load_extractor(tmp_path / "other.safetensors")
    torch.save([1, 2], bad)
    with pytest.raises(InputError, match="no state dict"):
        vgg16_extractor(bad)


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(InputError, match="download the file elsewhere"):
        vgg16_extractor()
    with pytest.raises(InputError, match="download the file elsewhere"):
        SiameseContentLoss("vgg16")  # at once, not after the first epoch


def textures(step: int) -> torch.Tensor:
    """Stripes of random direction and width."""
    generator = torch.Generator().manual_seed(step)
    angle, width = torch.rand(2, 4, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    return torch.sin((x * torch.cos(6 * angle) + y * torch.sin(6 * angle)) * (0.3 + width))[:, None]


def test_an_extractor_trained_on_own_images(tmp_path):
    extractor = train_extractor(map(textures, range(40)), widths=(4, 8))
    start = random_extractor(1, widths=(4, 8))
    assert not torch.allclose(extractor.blocks[0][0].weight, start.blocks[0][0].weight)
    again = train_extractor(map(textures, range(40)), widths=(4, 8))
    assert torch.equal(extractor.blocks[1][0].weight, again.blocks[1][0].weight)
    assert not any(p.requires_grad for p in extractor.parameters())
    path = tmp_path / "own.safetensors"
    save_extractor(path, extractor)
    image = torch.rand(2, 1, 16, 16)
    for a, b in zip(load_extractor(path)(image), extractor(image), strict=True):
        assert torch.equal(a, b)
    loss = SiameseContentLoss("self", weights=path)
    logits, target = torch.randn(2, 2, 16, 16), torch.randint(0, 2, (2, 16, 16))
    assert loss(logits, target, image) > 0
    with pytest.raises(InputError, match="trained on 1 channels"):
        loss(logits, target, image.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="no images"):
        train_extractor([])


def test_training_lowers_the_reconstruction_error_in_3d():
    volumes = [torch.rand(1, 2, 6, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert train_extractor(volumes, widths=(2, 3)).dims == 3


def test_unit_range():
    image = torch.stack([torch.arange(4.0) * 5 - 3, torch.full((4,), 7.0)])[None]
    assert_close(to_unit_range(image), torch.tensor([[[0, 1 / 3, 2 / 3, 1], [0, 0, 0, 0]]]))


def test_names_are_checked():
    with pytest.raises(ValueError, match="'random', 'vgg16' or 'self'"):
        build_extractor("resnet", channels=1, dims=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a weights file"):
        build_extractor("self", channels=1, dims=2)
    with pytest.raises(ValueError, match="dims"):
        VGGFeatures(1, dims=4)
