"""What text encoders of published models share."""

import gc
import weakref

import pytest
import torch
from torch import nn

from pab.parallel.mesh import Axis
from pab.text.text_encoders import encode_batches


class Encoder(nn.Module):
    """Doubles tokens; `in_circle`: it refers to itself, so only the collector frees it."""

    def __init__(self, *, in_circle: bool) -> None:
        super().__init__()
        self.held = [self] if in_circle else []


@pytest.mark.parametrize("in_circle", [False, True])
def test_an_encoder_is_gone_when_its_batches_are_done(in_circle):
    seen = []

    def load():
        encoder = Encoder(in_circle=in_circle)
        seen.append(weakref.ref(encoder))
        return encoder

    gc.disable()
    try:
        states = encode_batches(
            [torch.arange(6.0).view(3, 2)],
            load=load,
            encode=lambda _, tokens: 2 * tokens,
            row_shape=(2,),
            like=torch.zeros(()),
            rows_per_batch=2,
            axis=Axis(),
        )
    finally:
        gc.enable()
    assert torch.equal(states, 2 * torch.arange(6.0).view(3, 2))
    assert [encoder() for encoder in seen] == [None]
