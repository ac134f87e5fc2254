"""Training: annotated faces to weights. Needs the extra ``hihlandmark[train]``.

`trainer` is the loop, `config` the TOML configuration, `objectives` the losses of each
architecture. Reading data sets and augmentation are in `hihlandmark.datasets`.
"""
