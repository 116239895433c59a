"""The examples in the docstrings run and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import scotoma.losses

MODULES = [f"scotoma.losses.{module.name}" for module in pkgutil.iter_modules(scotoma.losses.__path__)]


@pytest.mark.parametrize(
    "name", [*MODULES, "scotoma.networks.extractors", "scotoma.networks.feature_selection"]
)
def test_examples(name):
    module = importlib.import_module(name)
    names = {"torch": importlib.import_module("torch"), "nn": importlib.import_module("torch.nn")}
    assert doctest.testmod(module, extraglobs=names).failed == 0
