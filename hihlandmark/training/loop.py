"""The training loop: batches in, an exponential moving average of the weights out."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from hihlandmark.heatmap import encode
from hihlandmark.models.hih import HIH
from hihlandmark.training.datasets import Batch, TrainingBatches
from hihlandmark.training.losses import csc, soft_label_cross_entropy
from hihlandmark.heatmap import gaussian

MEAN = torch.tensor([0.485, 0.456, 0.406])
STD = torch.tensor([0.229, 0.224, 0.225])


def normalise(crops: torch.Tensor) -> torch.Tensor:
    x = (crops.float() / 255 - MEAN) / STD
    return x.permute(0, 3, 1, 2)  # channels_last strides


def batch_loss(model: HIH, batch: Batch, decimal_weight: float) -> tuple[torch.Tensor, dict]:
    integers, decimal, features = model.forward_stacks(normalise(batch.crops))
    main = model.configuration.points
    stride = batch.crops.shape[1] // integers[-1].shape[-1]
    u = (batch.points + 0.5) / stride
    h = integers[-1].shape[-1]
    bins = decimal.shape[-1]

    def integer_loss(pred, points_u, w):
        m = w > 0
        t = gaussian(points_u[m].floor().clamp(0, h - 1), h, SIGMA)
        return (soft_label_cross_entropy(pred[m], t) * w[m]).sum()

    um, wm = u[:, :main], batch.weights[:, :main]
    m = wm > 0
    total_w = batch.weights.sum()
    loss_int = sum(integer_loss(i, um, wm) for i in integers)
    frac = (um[m] - um[m].floor())
    t = gaussian(frac * bins - 0.5, bins, 1.0)
    loss_dec = (soft_label_cross_entropy(decimal[m], t) * wm[m]).sum()
    start = main
    for name, head in model.auxiliary_heads.items():
        end = start + head.out_channels
        rows = (batch.weights[:, start:end] > 0).any(dim=1)
        if rows.any():
            loss_int = loss_int + integer_loss(head(features[rows]), u[rows, start:end], batch.weights[rows, start:end])
        start = end
    loss_int, loss_dec = loss_int / total_w, loss_dec / wm.sum()
    return loss_int + decimal_weight * loss_dec, {"int": loss_int.item(), "dec": loss_dec.item()}

SIGMA = 1.5
