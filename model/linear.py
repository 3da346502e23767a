"""The two kinds of table: without biases, and with first values drawn in one place (`init.py`)."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """A linear map without bias."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def reset_parameters(self) -> None:
        """Leave the weights as they are: `init.draw_weights` draws them."""


class Embedding(nn.Embedding):
    """A row for each token id."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are: `init.draw_weights` draws them."""
