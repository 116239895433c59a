"""Which voxels and which images count: all but the sigma largest voxel losses, the k largest image losses.

All weights are constants to the gradient. A weight that followed the loss would turn the derivative
negative near the cut-off, and training would push those losses up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .common import (
    Batch,
    check_window,
    components,
    gather_images,
    joined,
    lesion_margin,
    processes,
    ramp,
    where_true,
)

SAMPLE = 4096
"""Values looked at to bracket an order statistic before the exact search."""


def order_pair(values: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The rank-th smallest value and the next one (rank counted from 1), exactly.

    On a processor a strided sample brackets the answer and the few values inside the bracket are searched.
    Should the bracket miss, everything is. A GPU sorts faster than it answers where the bracket lies, and its
    kthvalue is not deterministic.

    Args:
        values: (N,), rank < N.
    """
    n = values.numel()
    if values.is_cuda:
        ordered = values.sort().values
        return ordered[rank - 1], ordered[rank]
    if n > 4 * SAMPLE:
        # An odd stride does not run along the columns of an image of even width.
        sample = values[:: (n // SAMPLE) | 1].sort().values
        middle = rank / n * sample.numel()
        margin = 6 * math.sqrt(middle * max(0.0, 1 - rank / n)) + 2
        low = sample[max(0, int(middle - margin))]
        high = sample[min(sample.numel() - 1, int(middle + margin))]
        above = values[values >= low]
        inside = above[above <= high]
        below = n - above.numel()
        if 0 < rank - below < inside.numel():
            values, rank = inside, rank - below
    return values.kthvalue(rank).values, values.kthvalue(rank + 1).values


def keep_smallest(
    values: Tensor,
    kept: int,
    smooth: bool,
    temperature: float,
    out: Tensor | None = None,
    drop_above: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Weights that keep the smallest values, and the cut-off.

    Args:
        values: (N,).
        kept: how many to keep, fewer than N.
        smooth: sigmoid((tau - l) / T) with tau midway between the last kept and the first dropped value and
            T = temperature (tau + 1e-6); otherwise 1 and 0, values tied at the cut sharing the places left.
        temperature: see above.
        out: (N,) where to put the weights.
        drop_above: values up to this are kept, however many there are; tau is never below it.

    Returns:
        Weights (N,), and tau (scalar).
    """
    out = torch.empty_like(values) if out is None else out
    last, first_dropped = order_pair(values, kept)
    tau = ((last + first_dropped) / 2).clamp(min=drop_above)
    if smooth:
        torch.sub(tau, values, out=out).div_(temperature * (tau + 1e-6)).sigmoid_()
    elif last < first_dropped or 0 < drop_above >= last:
        where_true(torch.le, values, last.clamp(min=drop_above), out)
    else:
        where_true(torch.lt, values, last, out)
        tied = where_true(torch.eq, values, last)
        out += tied.mul_((kept - out.sum()) / tied.sum())
    return out, tau


def _disputed_regions(batch: Batch, smallest: int) -> Tensor:
    """Where label and network differ in a connected region of so many voxels or more: (B, *S) bool."""
    if batch.logits.shape[1] == 2:
        differ = (lesion_margin(batch.logits) > 0) != (batch.target > 0)
    else:
        own = batch.logits.gather(1, batch.target.clamp_min(0)[:, None])[:, 0]
        differ = batch.logits.amax(1) > own
    if batch.valid is not None:
        differ &= batch.valid
    return components(differ, smallest, faces=True)


class Selection(nn.Module):
    """Weights of voxels within their image and of images within the batch.

    Args:
        sigma: share of the largest voxel losses of each image to drop, in [0, 1).
        k: images to keep, those with the largest loss: a float is a share (rounded up), an int a count in
            the joined batch of all processes.
        smooth: sigmoid weights around both cut-offs instead of a step.
        per_class: drop the share sigma of every class of an image rather than of all its voxels.
        max_class_drop: never drop more than this share of any class of an image; 1 lifts the guard.
        drop_above: never drop a voxel whose loss is not above this, so that sigma is the most that goes and
            images without wrong voxels lose none. For cross-entropy -log(p) spares all voxels whose label
            the network finds at least as likely as p.
        spare_regions: never drop a voxel of a region of at least this many, joined by their faces, in which
            label and network differ: that is a hard lesion, or one that was overlooked, or a hard part of an
            outline, and not a wrong voxel; 0 spares none.
        pixel_temperature, image_temperature: widths of the two sigmoids, relative to the cut-off and to the
            spread of the image losses.
        queue: how many past image losses to rank against as well; for batches of one or two.
        sigma_ramp, k_ramp: [start, end] as shares of training between which sigma grows from 0 and k falls
            from everything.
    """

    def __init__(
        self,
        sigma: float = 0.05,
        k: float | int = 0.75,
        *,
        smooth: bool = True,
        per_class: bool = False,
        max_class_drop: float = 0.5,
        drop_above: float = 0.0,
        spare_regions: int = 0,
        pixel_temperature: float = 0.1,
        image_temperature: float = 0.25,
        queue: int = 0,
        sigma_ramp: Sequence[float] | None = None,
        k_ramp: Sequence[float] | None = None,
    ):
        super().__init__()
        if not 0 <= sigma < 1:
            raise ValueError(f"sigma is the share of voxels to drop, in [0, 1); got {sigma}")
        if isinstance(k, bool) or (isinstance(k, int) and k < 1) or (isinstance(k, float) and not 0 < k <= 1):
            raise ValueError(f"k must be a share in (0, 1] or a count of images >= 1; got {k!r}")
        if not 0 < max_class_drop <= 1:
            raise ValueError(f"max_class_drop must lie in (0, 1]; got {max_class_drop}")
        if drop_above < 0:
            raise ValueError(f"drop_above is a loss, at least 0; got {drop_above}")
        if spare_regions < 0:
            raise ValueError(f"spare_regions is a number of voxels, at least 0; got {spare_regions}")
        if pixel_temperature <= 0 or image_temperature <= 0:
            raise ValueError(
                "the temperatures of smooth selection must be positive; smooth=False is the step"
            )
        if queue < 0:
            raise ValueError(f"queue is a number of past images; got {queue}")
        self.sigma = sigma
        self.k = k
        self.smooth = smooth
        self.per_class = per_class
        self.max_class_drop = max_class_drop
        self.drop_above = drop_above
        self.spare_regions = spare_regions
        self.pixel_temperature = pixel_temperature
        self.image_temperature = image_temperature
        self.sigma_ramp = check_window("sigma_ramp", sigma_ramp)
        self.k_ramp = check_window("k_ramp", k_ramp)
        self.progress = 1.0
        # NaN where nothing has been stored yet. Part of the state, so that a resumed run goes on alike.
        self.past: Tensor
        self.register_buffer("past", torch.full((queue,), math.nan))

    @property
    def active(self) -> bool:
        """Whether the settings select anything at all, at any point of training."""
        return self.sigma > 0 or self.selects_images

    @property
    def selects_images(self) -> bool:
        """Whether the settings ever leave an image out."""
        return isinstance(self.k, int) or self.k < 1

    @property
    def current_sigma(self) -> float:
        """sigma at the present progress."""
        return self.sigma * ramp(self.progress, self.sigma_ramp)

    def kept_images(self, images: int, pool: int | None = None) -> int:
        """How many of a pool of images are kept at the present progress.

        Args:
            images: size of the joined batch, which a count k refers to.
            pool: how many images are ranked, past ones included; None is the batch alone.
        """
        share = min(1.0, self.k / images) if isinstance(self.k, int) else self.k
        share = 1 + (share - 1) * ramp(self.progress, self.k_ramp)
        return max(1, math.ceil((pool or images) * share - 1e-9))  # 3 / 7 * 7 must not become 4

    # --- voxels ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def voxel_weights(self, loss: Tensor, batch: Batch) -> Tensor | None:
        """Weight of every voxel, 0 where ignored: (B, *S); None when all valid voxels count alike.

        Args:
            loss: (B, *S) per-voxel loss >= 0.
            batch: what it was computed from.
        """
        sigma = self.current_sigma
        if sigma == 0:
            return None
        values = loss.flatten(1)
        spare = torch.empty_like(values)
        lesions = [batch.is_class(c, out=spare).sum(1) for c in range(1, batch.logits.shape[1])]
        present = torch.stack([batch.count() - torch.stack(lesions).sum(0), *lesions], 1).long().tolist()
        weights = torch.empty_like(values)
        for i, counts in enumerate(present):
            self._weigh_image(values[i], batch.labels[i], counts, sigma, weights[i])
        if self.spare_regions:
            weights.masked_fill_(_disputed_regions(batch, self.spare_regions).flatten(1), 1.0)
        if batch.valid_weight is not None:
            weights *= batch.valid_weight
        return weights.view_as(loss)

    def _weigh_image(
        self, values: Tensor, labels: Tensor, present: list[int], sigma: float, out: Tensor
    ) -> None:
        """Write the weights of one image.

        Args:
            values: (N,) losses, 0 where ignored.
            labels: (N,) classes, in the dtype of the losses.
            present: how many voxels of each class there are.
            sigma: share to drop.
            out: (N,) where to put the weights.
        """
        if self.per_class:
            out.zero_()
            for c, n in enumerate(present):
                self._trim_class(values, labels, c, n, math.floor(min(sigma, self.max_class_drop) * n), out)
            return
        total = sum(present)
        dropped = min(math.floor(sigma * total), total - 1)
        if dropped <= 0:
            out.fill_(1.0)
            return
        # Ignored voxels have loss 0, below all others, so that they only shift the rank.
        kept = values.numel() - dropped
        _, tau = keep_smallest(values, kept, self.smooth, self.pixel_temperature, out, self.drop_above)
        allowed = {c: math.floor(self.max_class_drop * n) for c, n in enumerate(present) if n > 0}
        small = [c for c, most in allowed.items() if most < dropped]  # the others cannot lose too many
        if small:
            if self.smooth:
                over = labels[values > tau]
                lost = torch.stack([(over == c).sum() for c in small]).tolist()
            else:  # values tied at the cut go in part
                lost = torch.stack([(1 - out[labels == c]).sum() for c in small]).tolist()
            for c, dropped_of_class in zip(small, lost, strict=True):
                if dropped_of_class > allowed[c]:
                    out.mul_(where_true(torch.ne, labels, float(c)))
                    self._trim_class(values, labels, c, present[c], allowed[c], out)

    def _trim_class(self, values: Tensor, labels: Tensor, c: int, n: int, dropped: int, out: Tensor) -> None:
        """Write the weights of one class, 0 so far: the given number of its n largest losses dropped."""
        if n == 0:
            return
        mine = where_true(torch.eq, labels, float(c))
        dropped = min(dropped, n - 1)
        if dropped <= 0:
            out += mine
            return
        # The other classes sink to -1, below all losses, so that they only shift the rank. Whole passes over
        # the image take less than picking a large class out and putting it back.
        own = (values * mine).add_(mine - 1)
        kept = own.numel() - dropped
        weights, _ = keep_smallest(own, kept, self.smooth, self.pixel_temperature, drop_above=self.drop_above)
        out.addcmul_(weights, mine)

    # --- images ---------------------------------------------------------------------------------------

    def image_weights(self, losses: Tensor, counts: Tensor) -> Tensor:
        """What to multiply each image's loss with before summing: (B,), detached.

        Includes the division by the summed weights of the joined batch and, under several processes, the
        factor that makes averaged gradients equal those of the joined batch.

        Args:
            losses: (B,) image losses, with gradient in training.
            counts: (B,) valid voxels; an image without any is left out.
        """
        several = joined(losses)
        learning = losses.requires_grad and torch.is_grad_enabled()
        present = counts > 0
        with torch.no_grad():
            mine = losses.detach()
            pool = torch.where(present, mine, math.nan)
            if several:
                pool = gather_images(pool)
            batch = pool[~pool.isnan()] if bool(torch.isfinite(mine).all()) else mine
            images = len(batch)
            if images == 0:
                return torch.zeros_like(mine)
            factor = float(processes()) if several else 1.0
            if not self.selects_images:
                return present * (factor / images)
            pool = torch.cat([batch, self.past[~self.past.isnan()].to(batch)])
            weigh = self._image_rule(pool, self.kept_images(images, len(pool)))
            weights = present * weigh(mine) * (factor / (images * weigh(pool).mean()))
            if learning and self.training and len(self.past):
                newest = batch[-len(self.past) :].to(self.past)
                self.past.copy_(torch.cat([self.past, newest])[-len(self.past) :])
        return weights

    def _image_rule(self, pool: Tensor, kept: int) -> Callable[[Tensor], Tensor]:
        """The weight of an image loss as a function, given the losses to rank it among."""
        if kept >= len(pool):
            return torch.ones_like
        ordered = pool.sort(descending=True).values
        last, first_dropped = ordered[kept - 1], ordered[kept]
        if self.smooth:
            kappa = (last + first_dropped) / 2
            width = self.image_temperature * (pool.std(correction=0) + 1e-6)
            return lambda x: torch.sigmoid((x - kappa) / width)
        # Images tied at the cut share the places left.
        share = (kept - (pool > last).sum()) / (pool == last).sum()
        return lambda x: (x > last).to(x.dtype) + (x == last) * share
