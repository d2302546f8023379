"""The host function runs here with CPU functions in the place of launches."""

import numpy as np
import pytest
import tvm
from tvm import te, tirx
from tvm.target import Target

from nvfp4_tvm import layout
from nvfp4_tvm.codegen.host import Branch, host_function, lower_host, parameters
from nvfp4_tvm.codegen.workspace import exact
from nvfp4_tvm.schedules.base import MatmulProblem, MRange
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.schedules.kernel import CudaKernel, Launch, Workspace

CPU = Target("llvm", host="llvm")
PROBLEM = MatmulProblem(24, 32, x_dtype="bfloat16", out_dtype="float32")


def lowered(name, function):
    """The host side of a CPU function, to be called by symbol."""
    passes, finalize, _ = tirx.get_tir_pipeline("s_tir")
    mod = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    return finalize()(passes(tirx.transform.BindTarget(CPU)(mod)))[name]


def mark(value, problem):
    """A kernel of one launch, which writes its mark to out."""
    M = tirx.Var("M", "int64")
    x = te.placeholder((M, problem.K), problem.x_dtype)
    out = te.compute((M, problem.out_N), lambda m, n: tirx.const(value, problem.out_dtype))
    # x is named so that the function knows M from two arguments
    return CudaKernel(f"mark{value}", (Launch(te.create_prim_func([x, out]), ("x", "out"), "s_tir"),))


def two_launches(problem):
    """The first launch leaves row numbers and tens in two workspaces, the second adds them."""
    M = tirx.Var("M", "int64")
    rows = te.compute((M,), lambda m: m.astype("float32"), name="rows")
    tens = te.compute((2, M), lambda i, m: (10 * i + m * 0).astype("uint32"), name="tens")
    out_shape = (M, problem.out_N)
    x = te.placeholder((M, problem.K), problem.x_dtype)
    rows_in, tens_in = te.placeholder((M,), "float32"), te.placeholder((2, M), "uint32")
    total = te.compute(out_shape, lambda m, n: rows_in[m] + tens_in[1, m].astype("float32"))
    first = te.create_prim_func([x, rows, tens])
    second = te.create_prim_func([rows_in, tens_in, total])
    return CudaKernel(
        "two",
        (Launch(first, ("x", "rows", "tens"), "s_tir"), Launch(second, ("rows", "tens", "out"), "s_tir")),
        (
            Workspace("rows", "float32", lambda M: (M,)),
            Workspace("tens", "uint32", lambda M: (2, M)),
        ),
    )


def build(problem, kernels):
    branches, functions = [], {}
    for m_range, kernel in kernels:
        symbols = tuple(f"{kernel.name}_{i}" for i in range(len(kernel.launches)))
        for symbol, launch in zip(symbols, kernel.launches, strict=True):
            functions[symbol] = lowered(symbol, launch.function)
        branches.append(Branch(m_range, kernel, symbols))
    host = lower_host(host_function("f", problem, branches, CPU))
    for symbol, function in functions.items():
        host[symbol] = function
    return tvm.get_global_func("target.build.llvm")(host, CPU)["f"]


def run(function, problem, M, workspace=0):
    buffers = parameters(problem, tirx.const(M, "int64"), tirx.const(workspace, "int64"))
    arrays = []
    for name, buffer in buffers.items():
        shape = tuple(int(extent) for extent in buffer.shape)
        value = np.nan if name == "out" else 0
        arrays.append(tvm.runtime.tensor(np.full(shape, value, str(buffer.dtype))))
    function(*arrays)
    return arrays[list(buffers).index("out")].numpy()


def test_each_m_takes_its_branch():
    kernels = [
        (MRange(1, 8), mark(1, PROBLEM)),
        (MRange(9, 16), mark(2, PROBLEM)),
        (MRange(17), mark(3, PROBLEM)),
    ]
    function = build(PROBLEM, kernels)
    for M in range(1, 301):
        expected = next(i for i, (m_range, _) in enumerate(kernels, 1) if M in m_range)
        assert (run(function, PROBLEM, M) == expected).all(), M


def test_no_rows_launch_nothing():
    assert run(build(PROBLEM, [(MRange(), mark(1, PROBLEM))]), PROBLEM, 0).shape == (0, 24)


@pytest.mark.parametrize("M", [1, 2, 300, 777])
def test_workspaces_carry_data_from_launch_to_launch(M):
    kernel = two_launches(PROBLEM)
    out = run(build(PROBLEM, [(MRange(), kernel)]), PROBLEM, M, exact(kernel, M))
    np.testing.assert_array_equal(out, np.repeat(np.arange(M, dtype=np.float32)[:, None] + 10, 24, 1))


def test_a_workspace_that_is_too_small_is_an_error():
    kernel = two_launches(PROBLEM)
    function = build(PROBLEM, [(MRange(), kernel)])
    with pytest.raises(ValueError, match=r"f: the workspace is smaller than workspace_bytes\(M\)"):
        run(function, PROBLEM, 3, exact(kernel, 3) - 1)


def test_rows_of_a_weight_may_be_open_and_a_workspace_absent():
    problem = DenseProblem(None, 8, "float32", "float32")
    M, N = tirx.Var("M", "int64"), tirx.Var("N", "int64")
    x, weight = te.placeholder((M, 8), "float32"), te.placeholder((N, 8), "float32")
    out = te.compute((M, N), lambda m, n: x[m, 0] + 10 * weight[n, 1])
    function = te.create_prim_func([x, weight, out])
    kernel = CudaKernel("sum", (Launch(function, ("x", "weight", "out"), "s_tir"),))
    host = lower_host(
        host_function("f", problem, [Branch(MRange(), kernel, ("sum_0",))], CPU, workspace=False)
    )
    host["sum_0"] = lowered("sum_0", function)
    run_it = tvm.get_global_func("target.build.llvm")(host, CPU)["f"]
    for m, n in ((1, 5), (3, 2)):
        a, b = (np.arange(rows * 8, dtype=np.float32).reshape(rows, 8) for rows in (m, n))
        result = tvm.runtime.tensor(np.full((m, n), np.nan, np.float32))
        run_it(tvm.runtime.tensor(a), tvm.runtime.tensor(b), result)
        np.testing.assert_array_equal(result.numpy(), a[:, :1] + 10 * b[None, :, 1])


@pytest.mark.parametrize("M", [2, 9])
def test_an_m_it_was_not_built_for_is_an_error(M):
    function = build(PROBLEM, [(MRange(3, 8), mark(1, PROBLEM))])
    assert (run(function, PROBLEM, 3) == 1).all() and (run(function, PROBLEM, 8) == 1).all()
    with pytest.raises(ValueError, match=r"f: M is outside of 3\.\.8, for which it was built"):
        run(function, PROBLEM, M)


def test_the_parameters_are_the_kernel_interface():
    problem = MatmulProblem(96, 48, x_dtype="float16", bias=True, residual=True, activation="silu_mul")
    M = tirx.Var("M", "int64")
    buffers = parameters(problem, M, tirx.Var("bytes", "int64"))
    assert list(buffers) == [
        "x", "words", "scales", "global_scale", "bias", "residual", "out", "workspace",
    ]  # fmt: skip
    assert tuple(buffers["words"].shape) == layout.words_shape(96, 48)
    assert [int(extent) for extent in buffers["bias"].shape] == [96]
    assert int(buffers["out"].shape[1]) == int(buffers["residual"].shape[1]) == 48
    assert buffers["out"].shape[0].same_as(M) and str(buffers["out"].dtype) == "bfloat16"
