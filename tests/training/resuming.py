"""A training that is interrupted and goes on."""

from __future__ import annotations

import pytest

from scotoma.training.callbacks import SaveEveryEpoch
from scotoma.training.train import train


class Interrupted(Exception):
    pass


def interrupted_and_resumed(data, settings, out, monkeypatch):
    """A run that ended after its first epoch and was resumed."""
    save = SaveEveryEpoch.on_train_epoch_end

    def interrupt(self, trainer, module):
        save(self, trainer, module)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(SaveEveryEpoch, "on_train_epoch_end", interrupt)
        with pytest.raises(Interrupted):
            train(data, settings, out)
    assert not (out / "model.safetensors").exists()
    return train(data, settings, out, resume=True)
