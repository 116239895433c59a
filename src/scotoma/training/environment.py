"""The machine and the packages a run depends on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from typing import Any


def hide_broken_torchvision() -> None:
    """Make a torchvision that does not import look absent to the packages that would try it.

    torchvision's compiled part must match torch's build; where it does not, importing it raises, and
    torchmetrics (so Lightning) imports it whenever its metadata is there. Nothing here needs it.
    Call before importing Lightning or torchmetrics. Does nothing when torchvision works or is absent.
    """
    if "lightning" in sys.modules or sys.modules.get("torchvision", "unset") is None:
        return
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError, ImportError):
        import lightning_utilities.core.imports as requirements

        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        installed_version = requirements._version

        def version_without_torchvision(name: str) -> str:
            if name == "torchvision":
                raise importlib.metadata.PackageNotFoundError(name)
            return installed_version(name)

        requirements._version = version_without_torchvision


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that change results."""
    packages = (
        "scotoma", "torch", "lightning", "monai", "dynamic-network-architectures", "numpy", "scipy",
        "scikit-learn", "nibabel", "SimpleITK", "connected-components-3d",
    )  # fmt: skip
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and accelerators; no host or user name."""
    import os

    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
