"""Ways to run a network: a batch of crops in, raw heatmaps out. One file a runtime."""

from hihlandmark.runtimes.protocol import Runtime

__all__ = ["Runtime"]
