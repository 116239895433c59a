"""Rare targets: the Siamese content loss.

Mac, Moody, Khademi. *Siamese Content Loss Networks for Highly Imbalanced Medical Image Segmentation.*
MIDL 2020 (PMLR v121).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from .common import joined_mean, prepare

Extractor = Literal["random", "vgg16", "self"] | nn.Module


class SiameseContentLoss(nn.Module):
    r"""Distance between what a frozen network sees of the image under the prediction and under the truth.

    With the soft probability q of a foreground class (never thresholded), its truth y, the image x scaled to
    [0, 1] and :math:`\phi_l` the l-th feature map of the frozen extractor:

    .. math::
        a = x \cdot q, \quad b = \operatorname{sg}[x \cdot y], \quad
        d_l = \operatorname{mean} (\phi_l(a) - \phi_l(b))^2, \quad L = \sum_l w_l d_l

    Every foreground class that an image holds, or in which it is predicted somewhere, is taken in turn; the
    mean is over all these pairs of image and class. No gradient reaches the extractor.

    Source: Mac, Moody, Khademi, MIDL 2020. Known: image masked by truth and by prediction through the same
    frozen, transferred network, L2 distance of multi-resolution features, as an auxiliary loss. Chosen by us,
    because the text could not be reached: network, layers, weights, scaling, several classes.

    The gradient on q is proportional to x: where x is 0 nothing can be learned, hence the scaling to
    [offset, 1], each image and channel from its own minimum and maximum. False positives on a black
    background cost nothing: add it to a segmentation loss, never use it alone.

    Args:
        extractor: "random" (the shape of VGG16, narrower, seeded), "vgg16" (ImageNet, 2-D; volumes go
            through slice by slice), "self" (trained on your own images, see
            `scotoma.networks.extractors.train_extractor`), or a module (N, M, *S) -> list of feature maps.
        weights: file for "vgg16" (optional) and "self".
        variant: "squared", or "norm" for sum_l w_l (sqrt(d_l + 1e-12) - 1e-6).
        tap_weights: w_l from fine to coarse; None is 1 for each.
        offset: what the darkest voxel becomes, in [0, 1).
        rescale: scale intensities; False uses the image as it is.
        complement: weight of the same distance for the background, x (1 - q) against x (1 - y).
        slices: most slices per volume and class for a 2-D extractor, evenly drawn from those with
            truth or prediction.
        seed, widths: of the random extractor.
        ignore_index: label value, or several, of voxels that do not count: both masks are 0 there.

    Raises:
        ValueError: settings outside their range, or "self" without weights.
        InputError: weights that cannot be read or had.

    Example:
        >>> loss = SiameseContentLoss(widths=(4, 8))
        >>> image, target = torch.rand(1, 1, 16, 16), torch.zeros(1, 16, 16, dtype=torch.long)
        >>> target[:, 4:9, 4:9] = 1
        >>> sure = torch.stack([target == 0, target == 1], 1) * 200.0
        >>> loss(sure, target, image).item()
        0.0
        >>> loss(-sure, target, image).item() > 0
        True
    """

    def __init__(
        self,
        extractor: Extractor = "random",
        *,
        weights: str | Path | None = None,
        variant: Literal["squared", "norm"] = "squared",
        tap_weights: Sequence[float] | None = None,
        offset: float = 0.1,
        rescale: bool = True,
        complement: float = 0.0,
        slices: int = 8,
        seed: int = 0,
        widths: Sequence[int] | None = None,
        ignore_index: int | Sequence[int] | None = None,
    ):
        super().__init__()
        if isinstance(extractor, str) and extractor not in ("random", "vgg16", "self"):
            raise ValueError(f"extractor must be 'random', 'vgg16', 'self' or a module, not {extractor!r}")
        if extractor == "self" and weights is None:
            raise ValueError("the extractor 'self' needs a weights file; train one with train_extractor")
        if variant not in ("squared", "norm"):
            raise ValueError(f"variant must be 'squared' or 'norm', not {variant!r}")
        if not 0 <= offset < 1:
            raise ValueError(f"offset must lie in [0, 1); got {offset}")
        if complement < 0:
            raise ValueError(f"complement is a weight >= 0; got {complement}")
        if tap_weights is not None and not (len(tap_weights) and all(0 <= w < math.inf for w in tap_weights)):
            raise ValueError(f"tap_weights must be numbers >= 0, one per tap; got {list(tap_weights)}")
        if slices < 1:
            raise ValueError(f"slices must be at least 1; got {slices}")
        self.weights = weights
        self.variant = variant
        self.tap_weights = None if tap_weights is None else [float(w) for w in tap_weights]
        self.offset = offset
        self.rescale = rescale
        self.complement = complement
        self.slices = slices
        self.seed = seed
        self.widths = widths
        self.ignore_index = ignore_index
        self.kind: str | None = extractor if isinstance(extractor, str) else None
        # Kept out of the module tree: frozen weights belong neither into checkpoints nor to the optimiser,
        # and need not be sent between processes.
        self._extractors: dict[tuple[int, int], nn.Module] = {}
        if isinstance(extractor, nn.Module):
            self._extractors[0, 0] = extractor.eval().requires_grad_(False)
        elif extractor == "vgg16":
            self._extractor(3, 2)  # missing weights are reported now, not after an epoch

    def _extractor(self, channels: int, dims: int) -> nn.Module:
        """The extractor for such images, built once."""
        if self.kind is None:
            return self._extractors[0, 0]
        if self.kind == "vgg16":
            channels, dims = 3, 2
        if (channels, dims) not in self._extractors:
            from scotoma.networks.extractors import build_extractor

            self._extractors[channels, dims] = build_extractor(
                self.kind,  # type: ignore[arg-type]
                channels=channels,
                dims=dims,
                seed=self.seed,
                weights=self.weights,
                widths=self.widths,
            )
        return self._extractors[channels, dims]

    def forward(self, logits: Tensor, target: Tensor, image: Tensor) -> Tensor:
        """Scalar loss, 0 where no image holds or predicts any foreground.

        Args:
            logits: (B, C, *S).
            target: (B, *S) or (B, 1, *S).
            image: (B, M, *S).
        """
        batch = prepare(logits, target, self.ignore_index)
        if image.shape[0] != logits.shape[0] or image.shape[2:] != logits.shape[2:]:
            raise ValueError(
                f"image {tuple(image.shape)} and logits {tuple(logits.shape)} do not belong together"
            )
        # Activations of a deep network without normalisation overflow float16.
        with torch.autocast(logits.device.type, enabled=False):
            x = self._scaled(image.detach().to(batch.logits.dtype))
            probability = batch.logits.softmax(1)
            truth = torch.stack([batch.target == c for c in range(logits.shape[1])], 1)
            if batch.valid is not None:
                probability = probability * batch.valid[:, None]
            pairs = self._pairs(probability.detach(), truth)
            if not len(pairs):
                return joined_mean(batch.logits.sum() * 0, torch.zeros((), device=logits.device))
            which, c = pairs.unbind(1)
            q, y, x = probability[which, c], truth[which, c].to(probability.dtype), x[which]
            extractor = self._extractor(image.shape[1], image.ndim - 2).to(x.device, x.dtype)
            distance = self._distance(extractor, x, q, y)
            if self.complement > 0:
                valid = 1.0 if batch.valid is None else batch.valid[which].to(q.dtype)
                distance = distance + self.complement * self._distance(extractor, x, valid - q, valid - y)
            return joined_mean(distance.sum(), torch.tensor(float(len(pairs)), device=logits.device))

    def _scaled(self, image: Tensor) -> Tensor:
        if not self.rescale:
            return image
        from scotoma.networks.extractors import to_unit_range

        return self.offset + (1 - self.offset) * to_unit_range(image)

    @staticmethod
    def _pairs(probability: Tensor, truth: Tensor) -> Tensor:
        """Pairs (image, class) with the class in the truth, or above every other somewhere: (P, 2)."""
        best = probability.amax(1)
        there = [
            truth[:, c].flatten(1).any(1) | ((probability[:, c] == best) & (best > 0)).flatten(1).any(1)
            for c in range(1, truth.shape[1])
        ]
        pairs = torch.stack(there, 1).nonzero()
        pairs[:, 1] += 1
        return pairs

    def _distance(self, extractor: nn.Module, x: Tensor, q: Tensor, y: Tensor) -> Tensor:
        """Summed feature distance of each pair: (P,)."""
        a, b = x * q[:, None].to(x.dtype), x * y[:, None].to(x.dtype)
        owner = torch.arange(len(x), device=x.device)
        if x.ndim == 5 and getattr(extractor, "dims", 3) == 2:
            owner, index = self._slices(q.detach(), y)
            a, b = a[owner, :, index], b[owner, :, index]
        with torch.no_grad():
            wanted = extractor(b)
        if isinstance(wanted, Tensor):
            raise ValueError("the extractor must give a list of feature maps; put a single one into a list")
        if self.tap_weights is not None and len(self.tap_weights) < len(wanted):
            raise ValueError(f"{len(self.tap_weights)} tap_weights for {len(wanted)} feature maps")
        total = x.new_zeros(len(x))
        for level, (phi_a, phi_b) in enumerate(zip(extractor(a), wanted, strict=True)):
            weight = 1.0 if self.tap_weights is None else self.tap_weights[level]
            # Channels may have been turned into images, slices into images: fold them back into pairs.
            d = (phi_a - phi_b).square().flatten(1).mean(1).view(len(owner), -1).mean(1)
            count = torch.bincount(owner, minlength=len(x)).clamp(min=1)
            d = x.new_zeros(len(x)).index_add(0, owner, d) / count
            if self.variant == "norm":
                d = (d + 1e-12).sqrt() - 1e-6
            total = total + weight * d
        return total

    def _slices(self, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """For a 2-D extractor on volumes: pair and position along the first axis of the slices to look at."""
        owners, positions = [], []
        for i in range(len(q)):
            filled = ((q[i] > 0.5) | (y[i] > 0)).flatten(1).any(1).nonzero()[:, 0]
            if not len(filled):
                filled = q[i].flatten(1).sum(1).argmax()[None]
            chosen = torch.linspace(0, len(filled) - 1, min(self.slices, len(filled)), device=q.device)
            positions.append(filled[chosen.round().long()])
            owners.append(torch.full_like(positions[-1], i))
        return torch.cat(owners), torch.cat(positions)
