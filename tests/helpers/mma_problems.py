"""Problems for the mma.sync GEMM, and the float64 truth about them."""

from dataclasses import dataclass

import numpy as np
from relax_modules import NUMPY, Weight, activations

from nvfp4_tvm import layout
from nvfp4_tvm.codes import E2M1_VALUES, E4M3_VALUES


def pack_scales(scales, N, K, group_size):
    """Scale bytes [N, K / group_size] to ``scales``, one by one as `layout.scale_index` says."""
    packed = np.zeros((*layout.scales_shape(N, K, group_size), 4), np.uint8)
    n, group = np.ix_(np.arange(N), np.arange(K // group_size))
    packed[layout.scale_index(n, group, group_size=group_size)] = scales
    return packed.view("<u4")[..., 0].astype(np.uint32)


@dataclass
class Case:
    """Operands of one problem for M rows, and its exact result."""

    operands: dict
    expected: np.ndarray

    @classmethod
    def random(cls, problem, M, group_size=16, seed=0):
        """Scales over every finite non-negative byte, outliers in the activations, one global scale a row."""
        rng = np.random.default_rng(seed)
        N, K = problem.N, problem.K
        weight = Weight.random(rng, N, K)
        # Results of one magnitude, within float16, so that no row hides another's error
        rows = (rng.uniform(0.5, 2, N) * 1e-6).astype(np.float32)
        scales = weight.scales[:, : K // group_size]
        codes = np.stack([weight.codes & 15, weight.codes >> 4], -1).reshape(N, K)
        exact = E2M1_VALUES[codes].astype(np.float64) * np.repeat(E4M3_VALUES[scales], group_size, axis=1)
        x = activations(rng, (M, K), problem.x_dtype)
        total = x.astype(np.float64) @ exact.T * rows.astype(np.float64)
        operands = {
            "x": x,
            "words": layout.pack_codes(weight.codes),
            "scales": pack_scales(scales, N, K, group_size),
            "global_scale": layout.pack_global_scale(rows, N),
        }
        if problem.bias:
            operands["bias"] = (rng.standard_normal(N) * np.abs(total).mean()).astype(NUMPY[problem.x_dtype])
            total = total + operands["bias"].astype(np.float64)
        if problem.activation == "silu_mul":
            pairs = total.reshape(M, N // 16, 2, 8)
            with np.errstate(over="ignore"):
                gate = pairs[:, :, 0] / (1 + np.exp(-pairs[:, :, 0]))
            total = (gate * pairs[:, :, 1]).reshape(M, N // 2)
        if problem.residual:
            noise = rng.standard_normal(total.shape) * np.abs(total).mean()
            operands["residual"] = noise.astype(NUMPY[problem.out_dtype])
            total = total + operands["residual"].astype(np.float64)
        return cls(operands, total)

    def empty(self, problem):
        """Output full of NaN."""
        return np.full(self.expected.shape, np.nan).astype(NUMPY[problem.out_dtype])

    def check(self, found):
        """Compare with the error of the exact result rounded once, and little for sums in fp32.

        Rounding makes 1.66e-3 and 2.1e-4 on average; more where outliers make few elements count.
        """
        norm = np.linalg.norm(self.expected)
        rounded = self.expected.astype(found.dtype).astype(np.float64)
        error = np.linalg.norm(found.astype(np.float64) - self.expected) / norm
        rounding = np.linalg.norm(rounded - self.expected) / norm
        assert error <= 1.01 * rounding + 2e-5, (error, rounding)
