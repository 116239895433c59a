"""The one door to Lightning, so that a broken torchvision is out of the way before it is imported."""

# ruff: noqa: E402
from scotoma.training.environment import hide_broken_torchvision

hide_broken_torchvision()

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

__all__ = ["Callback", "CheckpointIO", "EarlyStopping", "LightningModule", "TensorBoardLogger", "Trainer"]
