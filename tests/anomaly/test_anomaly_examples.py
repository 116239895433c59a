"""The examples in the docstrings run, and every public name is there."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = [
    "scotoma.anomaly.brain_mask",
    "scotoma.anomaly.candidates",
    "scotoma.anomaly.dense",
    "scotoma.anomaly.detector",
    "scotoma.anomaly.local_svm",
    "scotoma.anomaly.one_class_svm",
    "scotoma.networks.patch_autoencoder",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str):
    names = {"np": import_module("numpy"), "torch": import_module("torch")}
    names |= {n: getattr(import_module("scotoma.anomaly"), n) for n in ("SiamesePatchAutoencoder",)}
    found = doctest.testmod(import_module(name), extraglobs=names)
    assert found.attempted
    assert not found.failed


def test_every_public_name_is_there():
    anomaly = import_module("scotoma.anomaly")
    for name in anomaly.__all__:
        assert getattr(anomaly, name).__doc__
    with pytest.raises(AttributeError):
        anomaly.no_such_thing  # noqa: B018
