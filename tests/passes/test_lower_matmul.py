import numpy as np
import pytest
import tvm
from relax_modules import Weight, activations, assert_rounded_once, build_function, calls, symbolic, tensor
from tvm import relax

from nvfp4_tvm import layout, op
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.passes.lower_matmul import LowerNVFP4Matmul
from nvfp4_tvm.target import resolve_target


def packed_module(shapes, N, K, dtype="float32", out_dtype=None):
    """A function main(x0, x1, ..., words, scales, global_scale) of one matmul for each shape of x."""
    names = {}
    xs = [
        relax.Var(
            f"x{i}",
            relax.TensorType(
                tuple(names.setdefault(e, symbolic(e)) if isinstance(e, str) else e for e in shape), dtype
            ),
        )
        for i, shape in enumerate(shapes)
    ]
    packed = [
        relax.Var("words", relax.TensorType(layout.words_shape(N, K), "uint32")),
        relax.Var("scales", relax.TensorType(layout.scales_shape(N, K), "uint32")),
        relax.Var("global_scale", relax.TensorType(layout.global_scale_shape(N), "float32")),
    ]

    def body(b):
        return b.emit(relax.Tuple([b.emit(op.matmul(x, *packed, N=N, out_dtype=out_dtype)) for x in xs]))

    return build_function([*xs, *packed], body).get()


def prim_funcs(mod):
    return {g.name_hint: f for g, f in mod.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}


def lower(mod, target="llvm"):
    return LowerNVFP4Matmul(resolve_target(target).target)(mod)


def test_symbolic_m_shares_one_function():
    mod = lower(packed_module([("b", "s", 32), ("n", 32), (1, "s", 32)], 48, 32))
    ((name, function),) = prim_funcs(mod).items()
    assert name == "nvfp4_matmul_48x32"
    assert int(function.attrs["tirx.is_scheduled"]) == 1 and int(function.attrs["op_pattern"]) == 8
    names = calls(mod["main"])
    assert names.count("relax.call_tir") == 3 and "nvfp4.matmul" not in names
    # [b, s, K] and [1, s, K] are reshaped to [M, K] and back; [n, K] is not.
    assert names.count("relax.reshape") == 4


def test_static_m_gets_a_function_of_its_own():
    mod = lower(packed_module([(3, 32), ("n", 32)], 48, 32))
    shapes = {str(f.params[0].shape[0]) for f in prim_funcs(mod).values()}
    assert len(shapes) == 2 and any("3" in shape for shape in shapes)


def test_the_lowered_function_computes_the_matmul():
    N, K = 40, 144
    rng = np.random.default_rng(0)
    weight = Weight.random(rng, N, K)
    packed = layout.pack(*weight.arrays())
    mod = lower(packed_module([("b", "s", K), (K,)], N, K))
    machine = relax.VirtualMachine(tvm.compile(mod, target=resolve_target("llvm").target), tvm.cpu())
    for leading in [(1, 1), (1, 2), (2, 2), (1, 7), (3, 3), (2, 50)]:
        x, single = activations(rng, (*leading, K), "float32"), activations(rng, (K,), "float32")
        arrays = (x, single, packed.words, packed.scales, packed.global_scale)
        first, second = machine["main"](*map(tensor, arrays))
        assert_rounded_once(first.numpy(), x, weight)
        assert_rounded_once(second.numpy(), single, weight)


def test_cuda_lowering_binds_threads():
    text = lower(packed_module([("n", 32)], 48, 32, "bfloat16"), "cuda:sm_89").script()
    assert "threadIdx.x" in text and "blockIdx.x" in text


def test_a_target_without_kernels_is_refused():
    target = tvm.target.Target("vulkan")
    with pytest.raises(TargetError, match="target vulkan: no NVFP4 kernels; supported are cuda, llvm"):
        LowerNVFP4Matmul(target)(packed_module([("n", 32)], 48, 32))
