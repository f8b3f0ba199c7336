"""Which planes a review draws of a case."""

from __future__ import annotations

import numpy as np
import pytest

from nnunetv2_crossmatch.report.contours import CaseVolumes
from nnunetv2_crossmatch.review.pictures import CONTESTED, draw_planes


@pytest.mark.parametrize(
    ("shape", "captions"),
    [
        ((1, 12, 10), [""]),  # an image of a microscope: there was nothing to choose
        ((3, 12, 10), ["along z, slice 3 of 3"]),  # too few slices for the planes across them
        ((6, 12, 10), ["along z, slice 3 of 6", "along y, slice 5 of 12", "along x, slice 8 of 10"]),
    ],
)
def test_the_slice_with_most_contested_voxels_is_drawn_in_every_plane_that_there_is(shape, captions):
    contested = np.zeros(shape, np.int32)
    contested[min(2, shape[0] - 1), 4, 5:9] = contested[min(2, shape[0] - 1), 3:6, 7] = 1
    labels = np.ones(shape, np.int32)
    case = CaseVolumes("case", np.random.default_rng(0).normal(size=shape), labels, {CONTESTED: contested})
    assert [picture.caption for picture in draw_planes(case)] == captions
