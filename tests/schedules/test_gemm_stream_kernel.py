import numpy as np
import pytest
import tvm
from relax_modules import NUMPY, Weight, activations, assert_rounded_once, relative_error

from nvfp4_tvm import layout
from nvfp4_tvm.arch import ARCHS, get_arch
from nvfp4_tvm.codegen import cuda_machine_code
from nvfp4_tvm.codegen.sass import count_instructions, sass
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_stream import stream_gemm
from nvfp4_tvm.schedules.gemm_stream_config import StreamConfig
from nvfp4_tvm.target import cuda_target

SMALL = StreamConfig(24, 2, 3, 3, 3, 2, overhead=0)
WIDE = StreamConfig(64, 4, 2, 3, 2, 1, group=2, overhead=0)
#: No tile of the tests' weights is ever cut: one launch.
WHOLE = StreamConfig(32, 4, 1, 4, 2, 1, early=False, overhead=1000)


def built(kernel, arch):
    """``(BuildLog, executable)`` of all launches, called launch0, launch1."""
    module = tvm.IRModule(
        {
            f"launch{i}": x.function.with_attr("global_symbol", f"launch{i}")
            for i, x in enumerate(kernel.launches)
        }
    )
    with cuda_machine_code(arch) as log:
        executable = tvm.compile(module, cuda_target(arch).target, tir_pipeline="tirx")
    return log, executable


@pytest.mark.parametrize(
    ("arch", "problem", "config"),
    [
        (
            "sm_80",
            MatmulProblem(100, 2880, x_dtype="float16", out_dtype="float32", bias=True, residual=True),
            SMALL,
        ),
        ("sm_89", MatmulProblem(4096, 4096), WIDE),
        ("sm_90", MatmulProblem(512, 528, activation="silu_mul", residual=True), WHOLE),
    ],
)
def test_machine_code(arch, problem, config):
    kernel = stream_gemm(problem, config, get_arch(arch))
    log, _ = built(kernel, arch)
    for name, usage in log.usage.items():
        assert usage.spill_stores == usage.spill_loads == usage.stack == 0, name
    last = log.usage[f"launch{len(kernel.launches) - 1}_kernel"]
    assert (
        ARCHS[arch].blocks_per_sm(config.threads, last.registers, config.shared_bytes) >= config.blocks_per_sm
    )
    counts = count_instructions(sass(log.modules[0].fatbin, arch))
    mma = {name: n for name, n in counts.items() if name.startswith("HMMA.16816.F32")}
    assert mma and all(("BF16" in name) == (problem.x_dtype == "bfloat16") for name in mma)
    # A 128-block is four steps: two mma for 16 rows and 8 tokens, whose activations are one load
    eights = config.tokens // 8
    assert sum(mma.values()) == 4 * 2 * config.tiles * eights
    wide = sum(n for name, n in counts.items() if name.startswith("LDS.128"))
    # A lane's words of 16 rows are two loads, before the first 128-block and in the loop
    assert wide >= 4 * eights + 2 * 2 * config.tiles
    assert any(name.startswith("LDGSTS.E.BYPASS") and "128" in name for name in counts)
    if problem.out_dtype != "float32":
        assert counts["STG.E.128"] > 0
    assert ("ACQBULK" in counts or "griddepcontrol" in log.modules[0].source) == (arch == "sm_90")


def test_flags_are_cleared_only_where_tiles_may_be_cut():
    problem = MatmulProblem(256, 512, bias=True)
    one = stream_gemm(problem, WHOLE, get_arch("sm_89"))
    assert [launch.arguments for launch in one.launches] == [
        ("x", "words", "scales", "global_scale", "bias", "out")
    ]
    assert one.workspaces == ()
    two = stream_gemm(problem, WIDE, get_arch("sm_89"))
    assert [launch.arguments[-3:] for launch in two.launches] == [("flags",), ("partials", "flags", "out")]
    assert [workspace.name for workspace in two.workspaces] == ["partials", "flags"]
    for launch in (*one.launches, *two.launches):
        assert "tirx.kernel_launch_params" not in launch.function.attrs
    for launch in stream_gemm(problem, WIDE, get_arch("sm_90")).launches:
        assert "tirx.kernel_launch_params" in launch.function.attrs


def needs_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not tvm.cuda(0).exist, reason="needs an NVIDIA GPU")(test))


def run_on_gpu(problem, config, operands, M, guard=0):
    """Run twice on poisoned memory with ``guard`` elements behind out; return out, the same both times."""
    arch = f"sm_{tvm.cuda(0).compute_version.replace('.', '')}"
    kernel = stream_gemm(problem, config, get_arch(arch))
    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")
    module = tvm.IRModule(
        {
            f"launch{i}": x.function.with_attr("global_symbol", f"launch{i}")
            for i, x in enumerate(kernel.launches)
        }
    )
    executable = tvm.compile(module, target, tir_pipeline="tirx")
    device = tvm.cuda(0)
    arrays = {name: tvm.runtime.tensor(array, device) for name, array in operands.items()}
    # NaN behind x: what is read there shows in the result
    x = operands["x"]
    flat = np.concatenate([x.reshape(-1), np.full(4096, np.nan).astype(x.dtype)])
    arrays["x"] = tvm.runtime.tensor(flat, device)._create_view(x.shape)
    for workspace in kernel.workspaces:
        shape = tuple(int(extent) for extent in workspace.shape(M))
        poison = (
            np.full(shape, np.nan, np.float32) if workspace.dtype == "float32" else np.ones(shape, np.uint32)
        )
        arrays[workspace.name] = tvm.runtime.tensor(poison, device)
    results = []
    for _ in range(2):
        size = M * problem.out_N
        memory = tvm.runtime.tensor(np.full(size + guard, np.nan).astype(NUMPY[problem.out_dtype]), device)
        arrays["out"] = memory._create_view((M, problem.out_N))
        for i, launch in enumerate(kernel.launches):
            executable[f"launch{i}"](*(arrays[name] for name in launch.arguments))
        results.append(memory.numpy())
    assert results[0].tobytes() == results[1].tobytes()
    assert np.isnan(results[0][M * problem.out_N :].astype(np.float32)).all()
    return results[0][: M * problem.out_N].reshape(M, problem.out_N)


@needs_gpu
@pytest.mark.parametrize("config", [SMALL, WIDE, WHOLE], ids=lambda config: config.name)
@pytest.mark.parametrize(
    ("N", "K", "dtype", "out_dtype"),
    [
        (8, 16, "bfloat16", "bfloat16"),
        (24, 48, "float16", "float16"),
        (100, 2880, "bfloat16", "float32"),
        (520, 1040, "bfloat16", "bfloat16"),
        (2048, 8192, "float16", "float16"),
    ],
)
def test_numbers_on_the_gpu(N, K, dtype, out_dtype, config):
    rng = np.random.default_rng(N + K)
    weight = Weight.random(rng, N, K)
    if "float16" in (dtype, out_dtype):
        weight.rows[:] = np.minimum(weight.rows, np.float32(1e-6))  # results within float16
    packed = layout.pack(*weight.arrays())
    for M in (1, 17, 33, 64, 100, 777):
        problem = MatmulProblem(N, K, MRange(), dtype, out_dtype, bias=True)
        x = activations(rng, (M, K), dtype)
        bias = (weight.rows * rng.standard_normal(N)).astype(NUMPY[dtype])
        operands = {
            "words": packed.words,
            "scales": packed.scales,
            "global_scale": packed.global_scale,
            "bias": bias,
        }
        found = run_on_gpu(problem, config, {"x": x, **operands}, M, guard=4096)
        assert_rounded_once(found, x, weight, bias)


@needs_gpu
@pytest.mark.parametrize("activation", [None, "silu_mul"])
@pytest.mark.parametrize("config", [SMALL, WIDE], ids=lambda config: config.name)
def test_epilogue_on_the_gpu(activation, config):
    N, K, M = 1024, 768, 77
    rng = np.random.default_rng(5)
    weight = Weight.random(rng, N, K)
    weight.rows[:] = np.float32(1e-4)
    packed = layout.pack(*weight.arrays())
    problem = MatmulProblem(N, K, bias=True, residual=True, activation=activation)
    arrays = (rng.standard_normal(shape) for shape in ((M, K), (N,), (M, problem.out_N)))
    x, bias, added = (array.astype(NUMPY["bfloat16"]) for array in arrays)
    operands = {
        "x": x,
        "words": packed.words,
        "scales": packed.scales,
        "global_scale": packed.global_scale,
        "bias": bias,
        "residual": added,
    }
    found = run_on_gpu(problem, config, operands, M)
    expected = x.astype(np.float64) @ weight.exact().T + bias.astype(np.float64)
    if activation is not None:
        tiles = expected.reshape(M, -1, 2, 8)
        gate, up = (tiles[:, :, half].reshape(M, -1) for half in range(2))
        expected = gate / (1 + np.exp(-gate)) * up
    assert relative_error(found, expected + added.astype(np.float64)) <= 1.75e-3
