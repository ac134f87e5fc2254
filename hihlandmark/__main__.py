"""`python -m hihlandmark`, for launchers such as ``torchrun -m hihlandmark train``."""

from hihlandmark.cli import main

main()
