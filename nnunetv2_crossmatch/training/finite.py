"""Counter of losses and gradients that are not finite, kept on the device and fetched every ten steps.

Limit: counts and logs; the trainer decides whether to skip a step or to end the run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

FETCH_EVERY = 10
"""Steps between two fetches of the counters; a fetch waits for the GPU."""

MAX_IN_A_ROW = 20
"""Steps in a row without a finite loss and gradient after which a run cannot recover. A gradient scaler that starts at
65536 needs fewer to find its scale."""


class NonFiniteCounter:
    """Counts steps whose loss or gradient is not finite.

    Args:
        log: prints one line to the training log.
        expect_overflow: whether gradients may overflow now and then without harm (a gradient scaler skips such steps).
    """

    def __init__(self, log: Callable[[str], None], expect_overflow: bool) -> None:
        self.log, self.expect_overflow = log, expect_overflow
        self.steps = 0
        self.losses: torch.Tensor | int = 0
        self.gradients: torch.Tensor | int = 0
        self.in_a_row: torch.Tensor | int = 0

    def count(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> int:
        """Count one step (two scalars, on any device).

        Returns:
            Number of consecutive steps that were not finite; 0 except every :data:`FETCH_EVERY` steps.
        """
        bad_loss, bad_gradient = ~loss.isfinite(), ~gradient_norm.isfinite()
        self.losses = self.losses + bad_loss.long()
        self.gradients = self.gradients + bad_gradient.long()
        self.in_a_row = (self.in_a_row + 1) * (bad_loss | bad_gradient).long()
        self.steps += 1
        return self._fetch() if self.steps % FETCH_EVERY == 0 else 0

    def _fetch(self) -> int:
        counters = [torch.as_tensor(count) for count in (self.losses, self.gradients, self.in_a_row)]
        losses, gradients, in_a_row = (int(count) for count in torch.stack(counters).tolist())
        if losses or (gradients and not self.expect_overflow):
            bad = f"the loss in {losses}, the gradient in {gradients}"
            self.log(f"Not finite in the last {FETCH_EVERY} steps: {bad}; {in_a_row} steps in a row until now.")
        self.losses = self.gradients = 0
        return in_a_row
