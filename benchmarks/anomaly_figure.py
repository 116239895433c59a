"""The picture of docs/methods/no-labels.md: one slice of a phantom patient, its lesions, and the maps.

    python benchmarks/anomaly_figure.py [--seed 0] [--patient 10] [--work FOLDER]

Takes phantom and auto-encoders from the work folder of `anomaly_phantom.py` and makes what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from anomaly_phantom import CONTROLS, LESION_KINDS, phantom, trained
from common import ROOT
from scotoma.anomaly import PatientAnomalyDetector

COLOURS = ("#e4572e", "#2e86e4", "#b8e42e")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patient", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path("anomaly-phantom"))
    arguments = parser.parse_args()
    controls = [phantom(arguments.seed, 1, i, arguments.work)[0] for i in range(CONTROLS)]
    case, kinds = phantom(arguments.seed, 0, arguments.patient, arguments.work)
    maps = {}
    for variant, net in (("published", "narrow 15"), ("improved", "wide 9")):
        autoencoder = trained(net, arguments.seed, controls, arguments.work)
        maps[variant] = PatientAnomalyDetector(autoencoder, variant=variant).fit(controls).score(case)
    # the slice that shows most of each kind
    shown = [np.minimum((kinds == n).sum(axis=(1, 2)), 40) for n in range(1, 4)]
    z = int(np.sum(shown, axis=0).argmax())
    rows, columns = (np.flatnonzero(case.mask[z].any(axis=a)) for a in (1, 0))
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))

    def view(plane: np.ndarray) -> np.ndarray:
        return np.where(case.mask[z], plane, 0)[cut][::-1]

    figure, axes = plt.subplots(1, 5, figsize=(11, 2.9), layout="constrained")
    axes[0].imshow(view(case.image[0, z]), cmap="gray")
    axes[0].set_title("T1")
    axes[1].imshow(view(case.image[1, z]), cmap="gray")
    axes[1].set_title("FLAIR")
    axes[2].imshow(view(case.image[1, z]), cmap="gray", alpha=0.6)
    lesions = np.ma.masked_equal(kinds[z][cut][::-1], 0)
    axes[2].imshow(lesions, cmap=ListedColormap(COLOURS), vmin=1, vmax=3, interpolation="nearest")
    axes[2].set_title("lesions")
    for colour, kind in zip(COLOURS, LESION_KINDS, strict=True):
        axes[2].plot([], [], "s", color=colour, label=kind)
    axes[2].legend(fontsize=7, loc="lower right", framealpha=0.7, handletextpad=0.2)
    for axis, (variant, scores) in zip(axes[3:], maps.items(), strict=True):
        drawn = axis.imshow(view(scores[z]), cmap="magma", vmin=0, vmax=5)
        axis.set_title({"published": "published", "improved": "improved (default)"}[variant])
    for axis in axes:
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes[3:], label="-log10 share of normal voxels", shrink=0.85)
    path = ROOT / "docs" / "methods" / "images" / "anomaly_example.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
