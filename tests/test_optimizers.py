"""Muon is torch's."""

import pytest
import torch
from torch import nn

from fsqcodec.training import optimizers
from fsqcodec.training.optimizers import Muon


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("is_bf16_fast, tolerance", [(True, 1e-6), (False, 0.1)])  # of an update's size
def test_muon_is_that_of_torch_for_all_matrices_of_a_shape_at_once(is_bf16_fast, tolerance, monkeypatch):
    monkeypatch.setattr(optimizers, "is_bf16_fast", lambda device: is_bf16_fast)
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(64, 16), (16, 64), (64, 16), (8, 8)]]
    theirs = [nn.Parameter(matrix.detach().clone()) for matrix in ours]
    optimizer = Muon(ours, 1e-2, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, 1e-2, 0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for matrix, other in zip(ours, theirs):
            if step != 2 or matrix.shape != (8, 8):
                matrix.grad = torch.randn(matrix.shape)
                other.grad = matrix.grad.clone()
        optimizer.step()
        reference.step()
        for matrix, other in zip(ours, theirs):
            torch.testing.assert_close(matrix, other, rtol=0, atol=tolerance * 1e-2)
        optimizer.zero_grad()
        reference.zero_grad()
