"""The box of BCP."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_crossmatch.learning.copy_paste import draw_box


@pytest.mark.parametrize("patch_size", [(6, 9), (1, 5, 12)])
def test_a_box_has_two_thirds_of_every_edge_and_lies_anywhere(patch_size):
    rng = np.random.default_rng(0)
    drawn = [draw_box(rng, patch_size) for _ in range(300)]
    for axis, size in enumerate(patch_size):
        edge = max(size * 2 // 3, 1)
        assert {box[axis].stop - box[axis].start for box in drawn} == {edge}
        assert {box[axis].start for box in drawn} == set(range(size - edge + 1))
