import re

import numpy as np
import pytest
import tvm
from grouped_problems import Experts
from relax_modules import (
    HALF_ULP,
    NUMPY,
    Weight,
    activations,
    assert_rounded_once,
    build_function,
    calls,
    relative_error,
    symbolic,
    tensor,
)
from tvm import relax
from tvm.s_tir import dlight as dl

from nvfp4_tvm import layout, op, pipeline
from nvfp4_tvm.codegen import BuildLog, cuda_machine_code
from nvfp4_tvm.codegen import matmul as codegen_matmul
from nvfp4_tvm.codegen.fatbin import extract_fatbins
from nvfp4_tvm.codegen.matmul import build_matmul
from nvfp4_tvm.errors import TargetError
from nvfp4_tvm.passes.lower_matmul import LowerNVFP4Matmul
from nvfp4_tvm.passes.rewrite_matmul import is_call
from nvfp4_tvm.schedules.base import MatmulProblem
from nvfp4_tvm.schedules.grouped import GroupedProblem
from nvfp4_tvm.target import resolve_target


def packed_vars(N, K, prefix="w"):
    return [
        relax.Var(f"{prefix}.words", relax.TensorType(layout.words_shape(N, K), "uint32")),
        relax.Var(f"{prefix}.scales", relax.TensorType(layout.scales_shape(N, K), "uint32")),
        relax.Var(f"{prefix}.global_scale", relax.TensorType(layout.global_scale_shape(N), "float32")),
    ]


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
    packed = packed_vars(N, K)

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


def test_activation_and_residual_on_the_cpu():
    N, K = 96, 48
    rng = np.random.default_rng(1)
    weight = Weight.random(rng, N, K)
    weight.rows[:] = 1e-3
    packed = layout.pack(*weight.arrays())
    M = symbolic("n")
    x = relax.Var("x", relax.TensorType((1, M, K), "float32"))
    residual = relax.Var("r", relax.TensorType((1, M, N // 2), "float16"))
    arguments = packed_vars(N, K)
    mod = build_function(
        [x, residual, *arguments],
        lambda b: b.emit(
            op.matmul(x, *arguments, residual=residual, N=N, out_dtype="float16", activation="silu_mul")
        ),
    ).get()
    machine = relax.VirtualMachine(tvm.compile(lower(mod), target=resolve_target("llvm").target), tvm.cpu())
    for rows in (1, 3, 33):
        xs = rng.standard_normal((1, rows, K)).astype(np.float32)
        rs = rng.standard_normal((1, rows, N // 2)).astype(np.float16)
        found = machine["main"](*map(tensor, (xs, rs, packed.words, packed.scales, packed.global_scale)))
        product = xs.astype(np.float64) @ weight.exact().T
        j = np.arange(N // 2)
        gate, up = product[..., j // 8 * 16 + j % 8], product[..., j // 8 * 16 + j % 8 + 8]
        expected = gate / (1 + np.exp(-gate)) * up + rs
        assert relative_error(found.numpy(), expected) <= HALF_ULP["float16"]


CUDA = resolve_target("cuda:sm_89")


def chain(N, K, rows, builder=None, name="main", dtype="float32"):
    """x -> x + matmul(gated matmul(x)), twice: what a layer's MLP is to the matmuls.

    float32 activations have one kernel for every M, which compiles fast, and a workspace where it is gated.
    """
    weights = packed_vars(2 * N, K, "gate_up") + packed_vars(K, N, "down")
    x = relax.Var("x", relax.TensorType((1, rows, K), dtype))

    def body(b):
        y = x
        for _ in range(2):
            inner = b.emit(op.matmul(y, *weights[:3], N=2 * N, activation="silu_mul"))
            y = b.emit(op.matmul(inner, *weights[3:], residual=y, N=K))
        return b.emit(relax.op.add(y, y))

    return build_function([x, *weights], body, name=name, num_input=1, builder=builder)


def extent(expr):
    return re.sub(r"T.int64\((\d+)\)", r"\1", str(expr))


def external(mod):
    """Names and output shapes of the calls of machine code in a module."""
    return {
        str(binding.value.args[0].global_symbol): [
            [extent(e) for e in ty.shape] for ty in binding.value.ty.fields
        ]
        for function in mod.functions.values()
        if isinstance(function, relax.Function)
        for block in function.body.blocks
        for binding in block.bindings
        if is_call(binding.value, "relax.call_dps_packed")
    }


def test_cuda_calls_machine_code_with_a_workspace_that_relax_owns():
    log = BuildLog()
    mod = LowerNVFP4Matmul(CUDA.target, log)(packed_module([("n", 32)], 48, 32, "float32"))
    ((name, (out, workspace)),) = external(mod).items()
    assert name == "nvfp4_matmul_48x32_f32" and out == ["n", "48"] and workspace == ["16"]
    (module,) = mod.attrs["external_mods"]
    assert module.implements_function(name)
    assert list(log.usage) == [f"{name}_gemm_plain_kernel"]
    assert not prim_funcs(mod)


def test_the_workspace_of_a_symbolic_m_is_linear():
    mod = lower(chain(48, 64, symbolic("n")).get(), "cuda:sm_89")
    by_name = external(mod)
    problem = MatmulProblem(96, 64, x_dtype="float32", out_dtype="float32", activation="silu_mul")
    built = build_matmul(problem, CUDA.target)
    assert by_name[built.name][1] == [f"n * {built.bytes.slope} + {built.bytes.constant}"]


def test_entry_points_share_one_kernel():
    builder = chain(48, 64, symbolic("n"), name="prefill")
    mod = chain(48, 64, 4, builder, "decode").get()
    log = BuildLog()
    lowered = LowerNVFP4Matmul(CUDA.target, log)(mod)
    assert len(lowered.attrs["external_mods"]) == 2 and len(external(lowered)) == 2
    names = [name for module in log.modules for name in module.usage]
    assert len(names) == len(set(names))


def test_modules_that_are_there_already_are_kept():
    mod = packed_module([("n", 32)], 48, 32, "float32")
    other = build_matmul(MatmulProblem(16, 16, x_dtype="float32"), CUDA.target).module
    lowered = LowerNVFP4Matmul(CUDA.target)(mod.with_attr("external_mods", [other]))
    assert len(lowered.attrs["external_mods"]) == 2
    assert lowered.attrs["external_mods"][0].implements_function("nvfp4_matmul_16x16_f32_bf16")


@pytest.mark.parametrize(
    ("bounds", "name"), [({}, "48x32_f32"), ({"n": 12}, "48x32_f32_m1_12"), ({"other": 3}, "48x32_f32")]
)
def test_an_upper_bound_of_m_limits_the_kernels(bounds, name):
    mod = packed_module([("n", 32), (5, 32)], 48, 32, "float32")
    mod["main"] = mod["main"].with_attr("tir_var_upper_bound", bounds)
    assert list(external(lower(mod, "cuda:sm_89"))) == [f"nvfp4_matmul_{name}"]


def test_a_static_m_gets_the_kernels_of_that_m():
    assert list(external(lower(packed_module([(2, 3, 32)], 48, 32, "float32"), "cuda:sm_89"))) == [
        "nvfp4_matmul_48x32_f32_m6_6"
    ]


def test_a_module_without_matmuls_is_left_alone():
    x = relax.Var("x", relax.TensorType((3,), "float32"))
    mod = build_function([x], lambda b: b.emit(relax.op.add(x, x))).get()
    tvm.ir.assert_structural_equal(lower(mod, "cuda:sm_89"), mod)


def build_in(which, mod):
    """Build with our pipeline, TVM's defaults, or one that fuses and schedules everything it finds."""
    if which == "ours":
        return relax.build(mod, CUDA.target, relax_pipeline=pipeline(CUDA.target))
    lowered = LowerNVFP4Matmul(CUDA.target)(mod)
    if which == "default":
        return relax.build(lowered, CUDA.target)
    if which == "cuda":
        return relax.build(lowered, CUDA.target, relax_pipeline=relax.get_default_pipeline(CUDA.target))
    with CUDA.target:
        fallback = dl.ApplyDefaultSchedule(dl.gpu.GEMV(), dl.gpu.Matmul(), dl.gpu.Fallback())
        return relax.build(fallback(relax.get_pipeline("zero")(lowered)), CUDA.target)


@pytest.mark.parametrize("which", ["ours", "default", "cuda", "zero and dlight"])
def test_pipelines_keep_the_kernels_and_plan_their_memory(which, tmp_path):
    mod = chain(48, 64, 4).get()
    names = list(external(lower(mod, "cuda:sm_89")))
    images = [
        code.fatbin
        for name in names
        for built in codegen_matmul._built.values()
        if built.name == name
        for code in built.log.modules
    ]
    with cuda_machine_code(CUDA.code_arch) as log:
        executable = build_in(which, mod)
    assert not any("nvfp4" in kernel for kernel in log.usage), "compiled again by the pipeline"
    text = executable.as_text()
    assert all(text.count(f"call  {name} ") == 2 for name in names)
    # Both rounds of the chain share storages: 2 products and 2 workspaces, x's successor, and the result
    assert text.count("vm.builtin.alloc_storage in") <= 6
    executable.export_library(str(tmp_path / "lib.so"))
    found = extract_fatbins((tmp_path / "lib.so").read_bytes())
    assert images and all(image in found for image in images)
    tvm.runtime.load_module(str(tmp_path / "lib.so"))


@pytest.mark.parametrize("which", ["ours", "default", "cuda", "zero and dlight"])
def test_cuda_graphs_capture_the_kernels(which):
    mod = chain(48, 64, 4).get()
    with (
        tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}),
        cuda_machine_code(CUDA.code_arch),
    ):
        text = build_in(which, mod).as_text()
    captured = text[text.index("@main_cuda_graph_capture:") :].split("\n\n")[0]
    # x is the caller's, so the first matmul that reads it stays outside, and with it the second, which adds x
    assert captured.count("call  nvfp4_matmul") == 2
    assert "alloc_storage" not in captured


@pytest.mark.gpu
@pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")
def test_a_captured_graph_computes_the_chain(tmp_path):
    gpu, target = tvm.cuda(0), resolve_target("auto").target
    rng = np.random.default_rng(3)
    N, K, rows = 48, 64, 4
    gate_up, down = Weight.random(rng, 2 * N, K), Weight.random(rng, K, N)
    for weight in (gate_up, down):
        weight.rows[:] = 1e-3
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        prefill = chain(N, K, symbolic("n"), name="prefill", dtype="bfloat16")
        mod = chain(N, K, rows, prefill, "decode", "bfloat16").get()
        executable = relax.build(mod, target, relax_pipeline=pipeline(target))
    executable.export_library(str(tmp_path / "lib.so"))
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "lib.so")), gpu)
    packed = [layout.pack(*weight.arrays()) for weight in (gate_up, down)]
    arrays = [getattr(p, field) for p in packed for field in ("words", "scales", "global_scale")]
    weights = [tvm.runtime.tensor(array, gpu) for array in arrays]

    def rounded(y):
        return y.astype(NUMPY["bfloat16"]).astype(np.float64)

    def expected(y):
        # Rounded where the module rounds: gate times up is quadratic, and amplifies what came before
        j = np.arange(N)
        for _ in range(2):
            product = y @ gate_up.exact().T
            gate, up = product[:, j // 8 * 16 + j % 8], product[:, j // 8 * 16 + j % 8 + 8]
            y = rounded(y + rounded(gate / (1 + np.exp(-gate)) * up) @ down.exact().T)
        return 2 * y

    # The graph of decode is captured by its first call and replayed by the others
    for name, M in [("decode", rows)] * 4 + [("prefill", M) for M in (1, 16, 17, 100, 4)]:
        x = rng.standard_normal((1, M, K)).astype(NUMPY["bfloat16"])
        found = machine[name](tvm.runtime.tensor(x, gpu), *weights).numpy()
        assert relative_error(found[0], expected(x[0].astype(np.float64))) < 1.7e-3


def experts_module(problem, tokens, each):
    """What routes each token's row to ``each`` experts; ``main(x, ...)`` of tokens, or of one token's rows."""
    rows = each if problem.selected else tokens
    inputs = [relax.Var(name, relax.TensorType(*about)) for name, about in problem.operands(rows).items()]

    def body(b):
        x = inputs[0] if problem.selected else b.emit(relax.op.repeat(inputs[0], each, 0))
        return b.emit(op.grouped_matmul(x, *inputs[1:], N=problem.N, out_dtype=problem.out_dtype))

    return build_function(inputs, body).get()


def test_experts_on_the_cpu():
    problem = GroupedProblem(40, 144, experts=4)
    lowered = lower(experts_module(problem, symbolic("n"), 1))
    assert list(prim_funcs(lowered)) == ["nvfp4_grouped_4x40x144"]
    machine = relax.VirtualMachine(tvm.compile(lowered, target=resolve_target("llvm").target), tvm.cpu())
    for M in (1, 18):
        operands, expected = Experts.random(problem).case(M)
        found = machine["main"](*map(tensor, operands.values())).numpy()
        assert relative_error(found, expected) <= HALF_ULP["bfloat16"]


@pytest.mark.parametrize(
    ("form", "tokens", "each", "bounds", "name"),
    [
        ({}, "n", 3, {"n": 12}, "grouped_4x40x144_f32_m3_36"),
        ({}, "n", 3, {}, "grouped_4x40x144_f32"),
        ({"selected": True}, 1, 2, {}, "grouped_selected_4x40x144_f32_m2_2"),
        ({"selected": True, "shared_x": True}, 1, 2, {}, "grouped_shared_4x40x144_f32_m2_2"),
    ],
)
def test_experts_on_cuda_are_built_for_the_rows_there_can_be(form, tokens, each, bounds, name):
    problem = GroupedProblem(40, 144, x_dtype="float32", out_dtype="float32", experts=4, **form)
    mod = experts_module(problem, symbolic(tokens) if tokens == "n" else tokens, each)
    mod["main"] = mod["main"].with_attr("tir_var_upper_bound", bounds)
    ((found, (out, workspace)),) = external(lower(mod, "cuda:sm_89")).items()
    assert found == f"nvfp4_{name}" and out[1] == "40"
    assert workspace != ["16"]  # the plain kernel notes the expert of each row


def test_a_target_without_kernels_is_refused():
    target = tvm.target.Target("vulkan")
    with pytest.raises(
        TargetError, match=r"target vulkan: no NVFP4 kernels; supported are cuda \(sm_80, .*\), llvm"
    ):
        LowerNVFP4Matmul(target)(packed_module([("n", 32)], 48, 32))
