import benchmark_modules  # noqa: F401
import numpy as np
import torch

from benchmarks import torch_baseline
from nvfp4_tvm import layout


def test_same_bytes_as_the_layout():
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 256, (48, 128), np.uint8), rng.integers(0, 256, (48, 16), np.uint8)
    words, block_scales = torch_baseline.pack(torch.tensor(codes), torch.tensor(scales))
    expected = layout.pack(codes, scales, 1.0)
    assert np.array_equal(words.numpy(), expected.words) and np.array_equal(
        block_scales.numpy(), expected.scales
    )
