"""Where weights come from and go to: checked safetensors, model folders, the hub, Halfbyte's own format."""

from halfbyte.checkpoint.folder import Checkpoint, open_checkpoint
from halfbyte.checkpoint.packed import Packed, Recipe

__all__ = ["Checkpoint", "Packed", "Recipe", "open_checkpoint"]
