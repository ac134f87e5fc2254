"""Average weights with those that their training started from: often better on faces unlike these.

    python benchmarks/average_weights.py --weights START.json END.json --share 0.5 --out FOLDER

Every tensor becomes (1 - share) * START + share * END (Wortsman et al., arXiv 2109.01903). Heads
with weights of low rank, whose factors have no common basis, are END's. The card is that of END
without its calibrations and figures. These, and shape regressions, are to be fitted and measured
again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hihlandmark.weights import find_weights, read_weights, save_weights

LOW_RANK = (".mix", ".basis")


def main() -> None:
    """Write the averaged weights."""
    parser = argparse.ArgumentParser(description="Average weights.")
    parser.add_argument("--weights", type=Path, nargs=2, required=True, metavar="CARD")
    parser.add_argument("--share", type=float, default=0.5, help="of the second weights")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    start, end = (find_weights(str(path)) for path in arguments.weights)
    first, second = read_weights(start), read_weights(end)
    heads = tuple(name.rpartition(".")[0] + "." for name in second if name.endswith(LOW_RANK))
    averaged = {n: t for n, t in second.items() if not n.startswith("shape_regression.")}
    for name, tensor in averaged.items():
        if name in first and tensor.is_floating_point() and not name.startswith(heads):
            averaged[name] = torch.lerp(first[name].float(), tensor.float(), arguments.share)
    card = end.card.model_copy(update={"calibration": {}, "figures": (), "activation_ranges": {}})
    print(save_weights(arguments.out, card, averaged))


if __name__ == "__main__":
    main()
