"""Compile the libraries that ctest runs, and write their inputs with answers that are exact in float64.

``make_case.py --list`` prints the cases for CMake, ``name;library;function;tolerance`` a line;
``make_case.py FOLDER`` makes them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

# cpu_kernels: random problems, their float64 answers and the errors that rounding allows
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

KERNELS, MODEL = "kernels.so", "model.so"


@dataclass(frozen=True)
class Case:
    """A matmul to run; cases of one function share its kernel and differ in M."""

    name: str
    library: str
    N: int
    K: int
    M: int
    dtype: str = "float32"
    bias: bool = False
    tolerance: float = 2e-6

    @property
    def function(self) -> str:
        # the name that LowerNVFP4Matmul gives a kernel
        return f"nvfp4_matmul_{self.N}x{self.K}"


# Tolerances: cpu_kernels.ACCUMULATION, in bfloat16 with the rounding of the result.
CASES = (
    Case("gemv", KERNELS, N=100, K=2880, M=1, bias=True),
    Case("gemm", KERNELS, N=100, K=2880, M=33, bias=True),
    Case("bfloat16", KERNELS, N=33, K=144, M=3, dtype="bfloat16", tolerance=2e-3),
    Case("relax", MODEL, N=17, K=48, M=5),
)


def write_inputs(folder: Path, seed: int) -> dict[str, object]:
    """Write the safetensors of every case; return the canonical weights by function."""
    import numpy as np
    from cpu_kernels import exact, random_activations, random_weight
    from safetensors.numpy import save_file

    from nvfp4_tvm import layout

    rng = np.random.default_rng(seed)
    weights = {case.function: random_weight(rng, case.N, case.K, (0.5, 2.0)) for case in CASES}
    for case in CASES:
        weight = weights[case.function]
        x = random_activations(rng, case.M, case.K, case.dtype)
        expected = x.astype(np.float64) @ exact(weight).T * weight.global_scale[: case.N]
        tensors = {
            "x": x,
            "words": weight.words,
            "scales": weight.scales,
            "global_scale": weight.global_scale,
        }
        if case.bias:
            tensors["bias"] = rng.standard_normal(case.N).astype(case.dtype) * 1000
            expected = expected + tensors["bias"].astype(np.float64)
        save_file({**tensors, "expected": expected}, str(folder / f"{case.name}.safetensors"))
        if case.name == "gemv":
            wrong = {**tensors, "expected": expected * 1.001}
            save_file(wrong, str(folder / "wrong_answer.safetensors"))
            narrow = {**tensors, "x": np.ascontiguousarray(x[:, :-16]), "expected": expected}
            save_file(narrow, str(folder / "narrow_x.safetensors"))
    return {name: layout.unpack(weight) for name, weight in weights.items()}


def compile_kernels(path: Path) -> None:
    """Compile one kernel a function, for the range of M of its cases."""
    import tvm

    from nvfp4_tvm.schedules.base import MatmulProblem, MRange
    from nvfp4_tvm.schedules.dispatch import dispatch
    from nvfp4_tvm.target import resolve_target

    target = resolve_target("llvm").target
    functions = {}
    for case in CASES:
        if case.library == path.name and case.function not in functions:
            rows = [other.M for other in CASES if other.function == case.function]
            m_range = MRange(min(rows), max(rows))
            problem = MatmulProblem(case.N, case.K, m_range, case.dtype, case.dtype, case.bias)
            functions[case.function] = dispatch(problem, target).with_attr("global_symbol", case.function)
    tvm.compile(tvm.IRModule(functions), target=target).export_library(str(path))


def compile_model(path: Path, weights: dict[str, object]) -> None:
    """Compile a Relax function through the passes, as `nvfp4_tvm.compile` does a checkpoint."""
    from tvm import relax, transform

    from nvfp4_tvm import compiler, op
    from nvfp4_tvm.passes.pipeline import weight_passes
    from nvfp4_tvm.target import resolve_target

    (case,) = (case for case in CASES if case.library == path.name)
    codes, scales, global_scale = (relax.const(array) for array in weights[case.function])
    x = relax.Var("x", relax.TensorType((case.M, case.K), case.dtype))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            weight = builder.emit(op.dequantize(codes, scales, global_scale, case.dtype))
            product = relax.op.matmul(x, builder.emit(relax.op.permute_dims(weight)))
            out = builder.emit_output(product)
        builder.emit_func_output(out)
    mod = transform.Sequential(weight_passes())(builder.get())
    executable, _ = compiler.build(mod, resolve_target("llvm"))
    compiler.export(executable, path)


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        for case in CASES:
            print(f"{case.name};{case.library};{case.function};{case.tolerance}")
        return
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    weights = write_inputs(folder, seed=20)
    compile_kernels(folder / KERNELS)
    compile_model(folder / MODEL, weights)
    (folder / "garbage.safetensors").write_bytes(b"\xff" * 64)


if __name__ == "__main__":
    main()
