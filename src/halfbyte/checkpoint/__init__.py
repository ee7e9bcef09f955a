"""Where weights come from and go to: checked safetensors, model folders, the hub, Halfbyte's own format."""

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.checkpoint.packed import Packed, Recipe

__all__ = ["Checkpoint", "Packed", "Recipe", "open_checkpoint"]
