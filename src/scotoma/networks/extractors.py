"""Frozen feature extractors for the Siamese content loss: the shape of VGG16, in 2-D and 3-D.

The convolutions are built here, so that no compiled image library is needed; weights come from a seed, from a
file, from the usual download, or from training on the user's own images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scotoma.errors import InputError

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16_WIDTHS = (64, 128, 256, 512, 512)
VGG16_DEPTHS = (2, 2, 3, 3, 3)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VGGFeatures(nn.Module):
    """Blocks of 3x3 convolutions and ReLU with pooling between them; gives the last activation of each block.

    Args:
        channels: channels of the input.
        dims: 2 or 3.
        widths: channels of each block. VGG16 has (64, 128, 256, 512, 512).
        depths: convolutions in each block. VGG16 has (2, 2, 3, 3, 3); with four blocks the outputs are
            relu1_2, relu2_2, relu3_3 and relu4_3.

    Shapes:
        (B, channels, *S) -> list of (B, widths[l], *S_l), S_l halved from block to block. An axis shorter
        than 2 is not halved; where no axis can be halved the list ends early.

    Example:
        >>> [tuple(f.shape) for f in VGGFeatures(1, widths=(4, 8))(torch.zeros(1, 1, 8, 6))]
        [(1, 4, 8, 6), (1, 8, 4, 3)]
    """

    def __init__(
        self,
        channels: int,
        dims: int = 2,
        widths: Sequence[int] = VGG16_WIDTHS[:4],
        depths: Sequence[int] = VGG16_DEPTHS[:4],
    ):
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3; got {dims}")
        self.channels, self.dims, self.widths = channels, dims, tuple(widths)
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        self.blocks = nn.ModuleList()
        for width, depth in zip(widths, depths, strict=False):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [convolution(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.blocks.append(nn.Sequential(*layers))

    def forward(self, image: Tensor) -> list[Tensor]:
        taps: list[Tensor] = []
        for block in self.blocks:
            if taps:
                kernel = [2 if size >= 2 else 1 for size in image.shape[2:]]
                if max(kernel) == 1:
                    break
                image = (F.max_pool2d if self.dims == 2 else F.max_pool3d)(image, kernel)
            image = block(image)
            taps.append(image)
        return taps

    def convolutions(self) -> list[nn.Conv2d | nn.Conv3d]:
        """All convolutions, from input to output."""
        return [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]


def freeze(extractor: nn.Module) -> nn.Module:
    """The extractor in evaluation mode and without gradients to its weights."""
    return extractor.eval().requires_grad_(False)


def random_extractor(
    channels: int, dims: int = 2, *, seed: int = 0, widths: Sequence[int] | None = None
) -> nn.Module:
    """Seeded He initialisation, zero biases; an eighth (3-D) or a quarter (2-D) of VGG16's width by default.

    Untrained features of this shape serve a loss of this kind well [chosen: structure was found to matter
    more than trained weights]. The same seed gives the same weights on every machine.
    """
    if widths is None:
        widths = [width // (4 if dims == 2 else 8) for width in VGG16_WIDTHS[:4]]
    extractor = VGGFeatures(channels, dims, widths)
    generator = torch.Generator().manual_seed(seed)
    for layer in extractor.convolutions():
        fan_in = layer.weight[0].numel()
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
            layer.bias.zero_()  # type: ignore[union-attr]
    return freeze(extractor)


class ImageNetVGG16(nn.Module):
    """VGG16 up to relu4_3 with ImageNet weights.

    Shapes:
        (B, M, H, W) with values in [0, 1]: three channels are taken as colours, any other number channel by
        channel as grey. Gives relu1_2, relu2_2, relu3_3, relu4_3, the latter case with B * M images.
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        self.dims = 2
        self.features = VGGFeatures(3)
        # torchvision counts ReLU and pooling layers too, hence the gaps in its numbering.
        index, names = 0, []
        for depth in VGG16_DEPTHS[:4]:
            names += [f"features.{index + 2 * i}" for i in range(depth)]
            index += 2 * depth + 1
        for layer, name in zip(self.features.convolutions(), names, strict=True):
            for part in ("weight", "bias"):
                tensor = state.get(f"{name}.{part}")
                own = getattr(layer, part)
                if tensor is None or tensor.shape != own.shape:
                    found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                    raise InputError(
                        f"VGG16 weights: {name}.{part} is {found}, expected {tuple(own.shape)}; "
                        "give torchvision's vgg16 (without batch norm)."
                    )
                with torch.no_grad():
                    own.copy_(tensor)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        freeze(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        if image.shape[1] != 3:
            image = image.reshape(-1, 1, *image.shape[2:]).expand(-1, 3, -1, -1)
        return self.features((image - self.mean) / self.std)


def vgg16_extractor(weights: str | Path | None = None) -> nn.Module:
    """VGG16 with ImageNet weights (Simonyan & Zisserman 2015).

    Args:
        weights: a file with torchvision's `vgg16` state dict, .safetensors or .pth; None takes PyTorch's
            download cache, filling it from the network where it is empty.

    Raises:
        InputError: the file cannot be read, holds other weights, or there is no network.
    """
    if weights is not None:
        return ImageNetVGG16(read_state(Path(weights)))
    try:
        state = torch.hub.load_state_dict_from_url(
            VGG16_URL, map_location="cpu", check_hash=True, weights_only=True, progress=False
        )
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"The VGG16 weights could not be downloaded from {VGG16_URL} ({error}); download the file "
            "elsewhere and name it as the extractor's weights, or use the extractor 'random'."
        ) from None
    return ImageNetVGG16(state)


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from .pth / .pt without running anything in it.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{path}: no readable weights there ({reason}); download or copy the file anew."
        ) from None
    if not isinstance(state, dict):
        raise InputError(
            f"{path}: holds no state dict; give the weights of a network as .safetensors or .pth."
        )
    return state


# --- an encoder trained on the user's own images ------------------------------------------------------


def train_extractor(
    batches: Iterable[Tensor],
    *,
    widths: Sequence[int] | None = None,
    noise: float = 0.3,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Train an encoder to see through noise on images without labels.

    A denoising auto-encoder [chosen]: the image with Gaussian noise goes through the encoder, a small
    decoder restores it from the deepest features, and the mean squared error is minimised.

    Args:
        batches: images (B, M, *S), 2-D or 3-D, any intensity range; one optimiser step each. Each image and
            channel is brought to [0, 1] as the content loss does.
        widths: as `random_extractor`.
        noise: standard deviation of the noise, on the scale [0, 1].
        learning_rate: of Adam.
        seed: of the weights and the noise.

    Returns:
        The frozen encoder.

    Raises:
        ValueError: no batch at all.
    """
    encoder: VGGFeatures | None = None
    decoder: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        image = to_unit_range(batch.float())
        if encoder is None or decoder is None or optimizer is None:
            dims = image.ndim - 2
            encoder = random_extractor(image.shape[1], dims, seed=seed, widths=widths)  # type: ignore[assignment]
            assert isinstance(encoder, VGGFeatures)
            encoder.requires_grad_(True).train()
            decoder = _restorer(encoder, generator)
            encoder.to(image.device)
            decoder.to(image.device)
            optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], learning_rate)
        noisy = image + noise * torch.randn(image.shape, generator=generator).to(image.device)
        deepest = encoder(noisy)[-1]
        restored = F.interpolate(decoder(deepest), size=image.shape[2:])
        optimizer.zero_grad()
        F.mse_loss(restored, image).backward()
        optimizer.step()
    if encoder is None:
        raise ValueError("there are no images to train an extractor on")
    return freeze(encoder)


def _restorer(encoder: VGGFeatures, generator: torch.Generator) -> nn.Module:
    """Decoder from the deepest features to the image: nearest-neighbour upsampling between convolutions."""
    convolution = nn.Conv2d if encoder.dims == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    widths = encoder.widths[::-1]
    for wide, narrow in pairwise(widths):
        layers += [convolution(wide, narrow, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)]
    layers.append(convolution(widths[-1], encoder.channels, 3, padding=1))
    decoder = nn.Sequential(*layers)
    for layer in decoder:
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            fan_in = layer.weight[0].numel()
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
                layer.bias.zero_()  # type: ignore[union-attr]
    return decoder


def save_extractor(path: Path, extractor: nn.Module) -> None:
    """Write an extractor made by `train_extractor` as safetensors, atomically."""
    from safetensors.torch import save_file

    from scotoma.files import replacing

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in extractor.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary)


def load_extractor(path: str | Path) -> nn.Module:
    """Read an extractor written by `save_extractor`; its shape follows from the weights.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    state = read_state(Path(path))
    convolutions: dict[int, list[Tensor]] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blocks" and parts[3] == "weight":
            convolutions.setdefault(int(parts[1]), []).append(tensor)
    if not convolutions or sorted(convolutions) != list(range(len(convolutions))):
        raise InputError(f"{path}: these are not the weights of an extractor; write one with save_extractor.")
    blocks = [convolutions[i] for i in range(len(convolutions))]
    first = state["blocks.0.0.weight"]
    extractor = VGGFeatures(
        first.shape[1],
        first.ndim - 2,
        [block[0].shape[0] for block in blocks],
        [len(block) for block in blocks],
    )
    extractor.load_state_dict(state)
    return freeze(extractor)


def to_unit_range(image: Tensor) -> Tensor:
    """Each image and channel from its own minimum and maximum to [0, 1]; a constant one becomes 0."""
    flat = image.flatten(2)
    low, high = flat.amin(2), flat.amax(2)
    shape = (*low.shape, *[1] * (image.ndim - 2))
    span = (high - low).view(shape)
    return (image - low.view(shape)) / torch.where(span > 0, span, 1.0)


def build_extractor(
    kind: Literal["random", "vgg16", "self"],
    *,
    channels: int,
    dims: int,
    seed: int = 0,
    weights: str | Path | None = None,
    widths: Sequence[int] | None = None,
) -> nn.Module:
    """An extractor by name.

    Args:
        kind: "random" (seeded), "vgg16" (ImageNet) or "self" (a file written by `save_extractor`).
        channels, dims: of the images it will see.
        seed, widths: for "random".
        weights: file, needed for "self", optional for "vgg16".

    Raises:
        ValueError: an unknown kind, or "self" without a file.
        InputError: weights that cannot be had, or do not fit the images.
    """
    if kind == "random":
        return random_extractor(channels, dims, seed=seed, widths=widths)
    if kind == "vgg16":
        return vgg16_extractor(weights)
    if kind != "self":
        raise ValueError(f"extractor must be 'random', 'vgg16' or 'self', not {kind!r}")
    if weights is None:
        raise ValueError("the extractor 'self' needs a weights file; train one with train_extractor")
    extractor = load_extractor(weights)
    assert isinstance(extractor, VGGFeatures)
    if extractor.channels != channels:
        raise InputError(
            f"{weights}: this extractor was trained on {extractor.channels} channels, the images have "
            f"{channels}; train another one."
        )
    return extractor
