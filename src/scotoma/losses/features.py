"""Features of a network's inner modules, without changing its code."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn


class FeatureCollector:
    """Keeps what named submodules put out in the latest forward pass, with its graph.

    Args:
        module: the network.
        names: submodules as in `named_modules()`, for instance "network.encoder.stages.2".

    Raises:
        ValueError: a name that is not there; the message lists similar ones.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> with FeatureCollector(network, ["0"]) as collected:
        ...     _ = network(torch.zeros(1, 1, 8, 8))
        ...     [tuple(f.shape) for f in collected.take()]
        [(1, 4, 6, 6)]
    """

    def __init__(self, module: nn.Module, names: Sequence[str]):
        known = dict(module.named_modules())
        missing = [name for name in names if name not in known]
        if missing:
            last = missing[0].rpartition(".")[2]
            near = [name for name in known if name.endswith(last) and name][:5] or list(known)[1:6]
            raise ValueError(f"the network has no part named '{missing[0]}'; there are {', '.join(near)}")
        self.names = list(names)
        self._outputs: dict[str, Tensor] = {}
        self._handles = [known[name].register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._outputs[name] = output

        return hook

    def take(self) -> list[Tensor]:
        """The outputs in the order of the names; forgets them, so that the graph can be freed."""
        missing = [name for name in self.names if name not in self._outputs]
        if missing:
            raise RuntimeError(f"'{missing[0]}' has not run since its features were taken last")
        outputs = [self._outputs[name] for name in self.names]
        self._outputs.clear()
        return outputs

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._outputs.clear()

    def __enter__(self) -> FeatureCollector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
