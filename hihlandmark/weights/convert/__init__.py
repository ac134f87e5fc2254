"""Convert the checkpoints that the authors of HIH, ADNet and Adaptive Wing released."""

from hihlandmark.weights.convert.checkpoint import SYSTEMS, convert_checkpoint

__all__ = ["SYSTEMS", "convert_checkpoint"]
