"""What a plain linear layer must compute."""

import numpy as np
from relax_modules import HALF_ULP


def assert_right(found, x, weight, out_dtype):
    """Compare a product that was summed in float32, in any order, and rounded once with float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    expected = x @ weight.T
    bound = HALF_ULP[out_dtype] * np.abs(expected) + 2.0**-24 * x.shape[1] * (np.abs(x) @ np.abs(weight).T)
    assert found.shape == expected.shape
    assert (np.abs(found.astype(np.float64) - expected) <= bound * 1.01 + 1e-30).all()
