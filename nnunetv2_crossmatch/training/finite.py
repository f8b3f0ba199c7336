"""Watch for losses and gradients that are not finite: counted on the device, fetched now and then.

Limit: counts and tells; whether a step is skipped, saved or the last one is the trainer's to decide.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

READ_EVERY = 10
"""Steps between two looks at the counters: only then does a GPU have to be waited for."""

TOO_MANY = 20
"""Steps in a row without a finite loss and gradient after which a run cannot recover. A gradient scaler that starts at
65536 needs fewer to find its scale."""


class FiniteWatch:
    """Counts steps whose loss or gradient is not finite.

    Args:
        say: takes one line at a time.
        expect_overflow: whether gradients may overflow now and then without harm (a gradient scaler skips such steps).
    """

    def __init__(self, say: Callable[[str], None], expect_overflow: bool) -> None:
        self.say, self.expect_overflow = say, expect_overflow
        self.steps = 0
        self.losses: torch.Tensor | int = 0
        self.gradients: torch.Tensor | int = 0
        self.in_a_row: torch.Tensor | int = 0

    def note(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> int:
        """Take in one step (two scalars, on any device).

        Returns:
            How many steps in a row were not finite, as far as is known: fetched every :data:`READ_EVERY` steps, else 0.
        """
        bad_loss, bad_gradient = ~loss.isfinite(), ~gradient_norm.isfinite()
        self.losses = self.losses + bad_loss.long()
        self.gradients = self.gradients + bad_gradient.long()
        self.in_a_row = (self.in_a_row + 1) * (bad_loss | bad_gradient).long()
        self.steps += 1
        return self._look() if self.steps % READ_EVERY == 0 else 0

    def _look(self) -> int:
        counters = [torch.as_tensor(count) for count in (self.losses, self.gradients, self.in_a_row)]
        losses, gradients, in_a_row = (int(count) for count in torch.stack(counters).tolist())
        if losses or (gradients and not self.expect_overflow):
            bad = f"the loss in {losses}, the gradient in {gradients}"
            self.say(f"Not finite in the last {READ_EVERY} steps: {bad}; {in_a_row} steps in a row until now.")
        self.losses = self.gradients = 0
        return in_a_row
