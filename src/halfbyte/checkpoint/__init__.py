"""Where weights come from and go to: checked safetensors, model folders, the hub, Halfbyte's own format."""

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.checkpoint.packed import Recipe, RepackedWeights

__all__ = ["Checkpoint", "Recipe", "RepackedWeights", "open_checkpoint"]
