"""Relax modules with NVFP4 weights, and the float64 truth about them."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import tvm
from tvm import relax, tirx

from nvfp4_tvm import numerics, op

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
#: Half a unit in the last place, relative: 24, 11 and 8 significant bits.
HALF_ULP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass
class Weight:
    codes: np.ndarray
    scales: np.ndarray
    rows: np.ndarray

    @classmethod
    def random(cls, rng, N, K):
        """Scales over every finite non-negative E4M3 byte; global scales from 1e-6 to 1e3."""
        return cls(
            rng.integers(0, 256, (N, K // 2), dtype=np.uint8),
            rng.integers(0, 0x7F, (N, K // 16), dtype=np.uint8),
            (10.0 ** rng.uniform(-6, 3, N)).astype(np.float32),
        )

    def exact(self):
        """float64 [N, K]."""
        unscaled = numerics.dequantize(self.codes, self.scales, np.float32(1), np.float64)
        return unscaled * self.rows.astype(np.float64)[:, None]

    def arrays(self):
        return [self.codes, self.scales, self.rows]

    def params(self, name="w"):
        """Relax parameters called ``{name}.codes`` and so on."""
        return [
            relax.Var(f"{name}.{field}", relax.TensorType(array.shape, str(array.dtype)))
            for field, array in zip(("codes", "scales", "global_scale"), self.arrays(), strict=True)
        ]

    def constants(self):
        return [relax.const(array) for array in self.arrays()]


def tensor(array):
    return tvm.runtime.tensor(np.array(array, order="C"))


def activations(rng, shape, dtype):
    """Standard normal with outliers of 1e4 in one column of a thousand."""
    x = rng.standard_normal(shape)
    x[..., :: max(1, shape[-1] // 2)] *= 1e4 if dtype != "float16" else 1e3
    return x.astype(NUMPY[dtype])


def relative_error(found, expected):
    found = np.asarray(found, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def assert_rounded_once(found, x, weight, bias=None):
    """Check x @ weight.T + bias element by element: fp32 accumulation and one rounding, nothing else."""
    x, w = np.asarray(x, np.float64), weight.exact()
    b = 0.0 if bias is None else np.asarray(bias, np.float64)
    expected = x @ w.T + b
    # Roundings of a sum of K terms are independent: four standard deviations of their random walk.
    accumulation = 4 * np.sqrt(x.shape[-1]) * 2.0**-24 * (np.abs(x) @ np.abs(w).T + np.abs(b))
    bound = HALF_ULP[str(found.dtype)] * np.abs(expected) * (1 + 2.0**-7) + accumulation
    if found.dtype == np.float16:
        bound += 2.0**-25  # half the smallest subnormal
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert found.shape == expected.shape
    assert (error <= bound).all(), (error / bound).max()


def build_function(inputs, body, *, name="main", num_input=None, builder=None):
    """Add a dataflow function whose output is ``body(builder)``."""
    builder = builder or relax.BlockBuilder()
    attrs = None if num_input is None else {"num_input": num_input}
    with builder.function(name, inputs, attrs=attrs):
        with builder.dataflow():
            output = builder.emit_output(body(builder))
        builder.emit_func_output(output)
    return builder


def linear(builder, x, weight, *, dtype=None, out_dtype=None, cast=None, axes=None):
    """Emit what a frontend writes: ``matmul(x, permute_dims(dequantize(...)))``."""
    w = builder.emit(op.dequantize(*weight, dtype or str(x.ty.dtype)))
    if cast:
        w = builder.emit(relax.op.astype(w, cast))
    return builder.emit(relax.op.matmul(x, builder.emit(relax.op.permute_dims(w, axes)), out_dtype=out_dtype))


def calls(function):
    """Names of the operators (or called functions) of a function's bindings, in order."""
    names = []
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call):
                call = binding.value
                if isinstance(call.op, tvm.ir.Op):
                    names.append(call.op.name)
                else:
                    names.append(str(call.op))
    return names


def symbolic(name="m"):
    return tirx.Var(name, "int64")
