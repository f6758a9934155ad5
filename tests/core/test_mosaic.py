"""Many images as one."""

import numpy as np
import pytest

from unbraid.core.errors import UnbraidError
from unbraid.core.mosaic import GAP, mosaic


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_every_image_stands_where_it_should(kind):
    images = np.arange(5 * 3 * 20 * 24).reshape(5, 3, 20, 24).astype(kind)
    whole = mosaic(images, across=2)
    assert whole.shape == (3 * (60 + GAP) - GAP, 2 * (72 + GAP) - GAP, 3)
    assert whole.dtype == kind
    for i, image in enumerate(images):
        y, x = (i // 2) * (60 + GAP), (i % 2) * (72 + GAP)
        np.testing.assert_array_equal(whole[y : y + 60 : 3, x : x + 72 : 3], image.transpose(1, 2, 0))
    np.testing.assert_array_equal(mosaic(images[:4].reshape(2, 2, 3, 20, 24)), mosaic(images[:4], 2))


@pytest.mark.parametrize("shape", [(4, 3, 8), (4, 2, 8, 8), (0, 1, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UnbraidError, match="mosaic takes images"):
        mosaic(np.zeros(shape), 2)
