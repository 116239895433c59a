"""The pictures of docs/methods/ for the four supervised methods, computed by the package's own losses.

    python benchmarks/method_figures.py [--out docs/methods/images] [NAME ...]

Names: missing-lesions, noisy-pixels, rare-target, few-labels; all without any. Seconds on one core, and the
same pictures every time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from scotoma.losses import SiameseContentLoss, lopsided_bootstrap_loss
from scotoma.losses.common import prepare
from scotoma.losses.patch_dragsaw import box_fractions, cell_grid, dragsaw
from scotoma.losses.selection import Selection

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods" / "images"
LABEL, PREDICTION = "#e4572e", "#2e86e4"


def disc(size: int, row: float, column: float, radius: float) -> Tensor:
    """Mask of a disc: (size, size) bool."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def smooth(values: Tensor, width: int) -> Tensor:
    """Mean over squares, three times, (*S) -> (*S)."""
    for _ in range(3):
        values = F.avg_pool2d(values[None, None], width, 1, width // 2, count_include_pad=False)[0, 0]
    return values


def logits_of(probability: Tensor) -> Tensor:
    """Two-class logits (1, 2, *S) with this probability of class 1."""
    return torch.stack([torch.zeros_like(probability), probability.logit()])[None]


def missing_lesions() -> Figure:
    """Loss and derivative of one voxel labelled background, for three beta."""
    p = torch.cat([torch.linspace(0.002, 0.4999, 300), torch.linspace(0.5001, 0.998, 300)])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
    for beta, colour in ((1.0, "#888888"), (0.5, "#2e86e4"), (0.1, "#e4572e")):
        lesion = p.logit().requires_grad_()
        logits = torch.stack([torch.zeros_like(lesion), lesion])[None]
        label = torch.zeros(1, len(p), dtype=torch.long)
        loss = lopsided_bootstrap_loss(logits, label, beta=beta, reduction="none")[0]
        (slope,) = torch.autograd.grad(loss.sum(), lesion)
        name = f"beta = {beta:g}" + (" (cross-entropy)" if beta == 1 else "")
        for axis, values in zip(axes, (loss.detach(), slope), strict=True):
            for half in (slice(0, 300), slice(300, None)):
                axis.plot(p[half], values[half], color=colour, label=name if half.start == 0 else None)
        if beta == 0.1:
            axes[1].plot(1 - beta, 0, "o", color=colour)
            axes[1].annotate(
                "rests at p = 1 - beta",
                (1 - beta, 0),
                (0.57, -0.42),
                arrowprops={"arrowstyle": "->", "color": colour},
                color=colour,
            )
    axes[0].set(ylabel="loss", ylim=(0, 4), title="loss of a voxel labelled background")
    axes[1].set(ylabel="derivative", title="its derivative in the lesion's logit")
    axes[1].axhline(0, color="black", linewidth=0.6)
    for axis in axes:
        axis.axvline(0.5, color="black", linewidth=0.6, linestyle=":")
        axis.set(xlabel="p, what the network says of lesion", xlim=(0, 1))
    axes[0].legend(frameon=False)
    return figure


def noisy_pixels() -> Figure:
    """Which voxels count when the label of a disc is shifted: four rules on one image."""
    size = 64
    truth, label = disc(size, 32, 30, 12), disc(size, 32, 33, 12)
    # A network that has found the true border, a little unsure around it.
    probability = smooth(truth.float(), 5).clamp(0.005, 0.995)
    batch = prepare(logits_of(probability), label[None].long(), None)
    loss = F.cross_entropy(batch.logits, batch.target, reduction="none")
    rules = {
        "hard, sigma .05": Selection(0.05, 1.0, smooth=False),
        "smooth, sigma .05": Selection(0.05, 1.0),
        "smooth, per class, .05": Selection(0.05, 1.0, per_class=True),
    }
    figure, axes = plt.subplots(1, 5, figsize=(12, 2.9), layout="constrained")
    axes[0].imshow(probability, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("network, label")
    shown = axes[1].imshow(loss[0], cmap="magma")
    axes[1].set_title("loss of each voxel")
    figure.colorbar(shown, ax=axes[1], shrink=0.7)
    for axis, (name, rule) in zip(axes[2:], rules.items(), strict=True):
        weights = rule.voxel_weights(loss, batch)
        assert weights is not None
        kept = axis.imshow(weights[0], cmap="viridis", vmin=0, vmax=1)
        axis.set_title(name)
    figure.colorbar(kept, ax=axes[4], shrink=0.7, label="weight")
    for axis in axes:
        axis.contour(label, levels=[0.5], colors=LABEL, linewidths=1)
        axis.set(xlim=(10, 53), ylim=(53, 11))
        axis.set_axis_off()
    return figure


def rare_target() -> Figure:
    """What truth and prediction cut out of an image, and where the loss pulls on the prediction."""
    size, generator = 96, torch.Generator().manual_seed(0)
    spots = [disc(size, *place) for place in ((30, 28, 4), (60, 62, 3), (25, 70, 3))]
    truth, false_alarm = torch.stack(spots).sum(0), disc(size, 72, 30, 4)
    tissue = smooth(torch.rand(size, size, generator=generator), 7)
    tissue = (tissue - tissue.min()) / (tissue.max() - tissue.min())
    body = smooth(disc(size, 48, 48, 44).float(), 3)
    image = body * (0.35 + 0.3 * tissue) + 0.4 * smooth(truth.float(), 3)
    # Finds one spot, is unsure of another, misses the third, and believes in one that is not there.
    belief = 0.9 * spots[0].float() + 0.45 * spots[1].float() + 0.8 * false_alarm.float()
    probability = smooth(belief, 3).clamp(0.01, 0.99)
    q = logits_of(probability).requires_grad_()
    SiameseContentLoss(seed=0)(q, truth[None], image[None, None]).backward()
    assert q.grad is not None
    scaled = 0.1 + 0.9 * (image - image.min()) / (image.max() - image.min())
    pull = -q.grad[0, 1]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.1), layout="constrained")
    views = (
        ("image, truth and prediction", image),
        ("image x truth", scaled * truth),
        ("image x prediction", scaled * probability),
    )
    for axis, (name, view) in zip(axes, views, strict=False):
        axis.imshow(view, cmap="gray")
        axis.set_title(name)
    axes[0].contour(truth, levels=[0.5], colors=LABEL, linewidths=1)
    axes[0].contour(probability, levels=[0.3], colors=PREDICTION, linewidths=1)
    for colour, name in ((LABEL, "truth"), (PREDICTION, "prediction > .3")):
        axes[0].plot([], [], color=colour, label=name)
    axes[0].legend(fontsize=7, loc="lower right")
    limit = float(pull.abs().max())
    drawn = axes[3].imshow(pull, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[3].set_title("pull on the logit of lesion")
    figure.colorbar(drawn, ax=axes[3], shrink=0.7, ticks=[-limit, 0, limit]).ax.set_yticklabels(
        ["down", "0", "up"]
    )
    for axis in axes:
        axis.set_axis_off()
    return figure


def toy(exchanged: bool, steps: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine of cells with equal and with different labels after every step, free features."""
    phi = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)[None]
    difference = 0.5 * torch.cdist(phi, phi, p=1)
    features = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([features], 0.05)
    same, different = [], []
    other = ~torch.eye(8, dtype=torch.bool)
    for _ in range(steps):
        unit = F.normalize(features[0].detach(), dim=-1)
        cosine = unit @ unit.T
        same.append(cosine[(difference[0] == 0) & other].mean().item())
        different.append(cosine[difference[0] > 0].mean().item())
        optimizer.zero_grad()
        weights = 1 - difference if exchanged else difference
        dragsaw(features, features, weights, torch.ones(1, 8, 8, dtype=torch.bool), 0.5).mean().backward()
        optimizer.step()
    return np.array(same), np.array(different)


def few_labels() -> Figure:
    """Boxes around the cells of a feature map, how different their labels are, and the two-cluster toy."""
    size, stride, side = 96, 12, 23
    target = (disc(size, 40, 36, 20) | disc(size, 66, 70, 12)).long()[None]
    axes_of_cells = cell_grid((size // stride, size // stride), 64)
    centres = [axis * stride for axis in axes_of_cells]
    shares, _ = box_fractions(target, None, centres, [side, side], 2)
    difference = 0.5 * torch.cdist(shares, shares, p=1)[0]
    order = shares[0, :, 1].argsort(stable=True)
    figure, axes = plt.subplots(1, 4, figsize=(12.5, 3.1), layout="constrained")
    axes[0].imshow(target[0], cmap=ListedColormap(["#dddddd", "#f2b8a5"]))
    rows, columns = torch.meshgrid(*centres, indexing="ij")
    drawn = axes[0].scatter(columns, rows, c=shares[0, :, 1], cmap="viridis", s=22, edgecolors="white")
    for row, column in ((36, 36), (24, 60), (72, 72)):
        corner = (column - side // 2 - 0.5, row - side // 2 - 0.5)
        axes[0].add_patch(Rectangle(corner, side, side, fill=False, edgecolor="black"))
    axes[0].set_title("cells, three of their boxes")
    axes[0].set_axis_off()
    figure.colorbar(drawn, ax=axes[0], shrink=0.7, label="foreground in the box")
    matrix = axes[1].imshow(difference[order][:, order], cmap="magma", vmin=0, vmax=1)
    axes[1].set(title="difference D of the pairs", xlabel="cell, by its foreground", xticks=[], yticks=[])
    figure.colorbar(matrix, ax=axes[1], shrink=0.7)
    for axis, exchanged, name in (
        (axes[2], False, "the loss on a toy of two clusters"),
        (axes[3], True, "tug and repulse exchanged"),
    ):
        same, different = toy(exchanged)
        axis.plot(same, color=PREDICTION, label="same labels")
        axis.plot(different, color=LABEL, label="different labels", linestyle="--")
        axis.set(title=name, xlabel="step", ylabel="mean cosine", ylim=(-1.08, 1.08))
    axes[2].legend(frameon=False, loc="center right")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "missing-lesions": missing_lesions,
    "noisy-pixels": noisy_pixels,
    "rare-target": rare_target,
    "few-labels": few_labels,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(FIGURES))
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"no picture {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        figure = FIGURES[name]()
        # No version or date in the file, so that the same picture is the same file.
        figure.savefig(arguments.out / f"{name}.png", dpi=90, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
