"""A training that is interrupted and goes on."""

from __future__ import annotations

import pytest

from scotoma.training.callbacks import SaveEveryEpoch
from scotoma.training.train import train


class Interrupted(Exception):
    pass


def interrupted_and_resumed(data, settings, out, monkeypatch, epochs=1):
    """A run that ended after so many epochs and was resumed."""
    save, saved = SaveEveryEpoch.on_train_epoch_end, []

    def interrupt(self, trainer, module):
        save(self, trainer, module)
        saved.append(trainer.current_epoch)
        if len(saved) == epochs:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(SaveEveryEpoch, "on_train_epoch_end", interrupt)
        with pytest.raises(Interrupted):
            train(data, settings, out)
    assert not (out / "model.safetensors").exists()
    return train(data, settings, out, resume=True)
