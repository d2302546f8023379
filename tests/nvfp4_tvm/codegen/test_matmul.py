from dataclasses import replace

import pytest
import tvm

from nvfp4_tvm.codegen import CompileError, compile_machine_code
from nvfp4_tvm.codegen import matmul as codegen_matmul
from nvfp4_tvm.codegen.cache import VARIABLE
from nvfp4_tvm.codegen.compiling import launch_names
from nvfp4_tvm.codegen.fatbin import extract_fatbins
from nvfp4_tvm.codegen.matmul import build_matmul, build_matmuls, host_name
from nvfp4_tvm.errors import NVFP4Error, ShapeError
from nvfp4_tvm.schedules import dispatch
from nvfp4_tvm.schedules.base import KernelRule, MatmulProblem, MRange
from nvfp4_tvm.schedules.gemm_plain import PlainGemm
from nvfp4_tvm.target import resolve_target

SM89, SM90 = (resolve_target(f"cuda:{arch}").target for arch in ("sm_89", "sm_90"))
PLAIN = MatmulProblem(48, 64, x_dtype="float32", out_dtype="float32")
GATED = replace(PLAIN, activation="silu_mul", residual=True, bias=True)


@pytest.fixture(autouse=True)
def no_caches(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.setattr(codegen_matmul, "_built", {})


def test_names_tell_problems_apart():
    problem = MatmulProblem(96, 48)
    variants = [
        problem,
        replace(problem, N=112),
        replace(problem, K=64),
        replace(problem, x_dtype="float16"),
        replace(problem, out_dtype="float32"),
        replace(problem, bias=True),
        replace(problem, residual=True),
        replace(problem, activation="silu_mul"),
        replace(problem, M=MRange(1, 8)),
        replace(problem, M=MRange(4)),
        replace(problem, M=MRange(4, 4)),
    ]
    names = [host_name(variant) for variant in variants]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
    assert names[0] == "nvfp4_matmul_96x48_bf16" and names[8] == "nvfp4_matmul_96x48_bf16_m1_8"


def test_one_host_module_over_the_cuda_modules():
    built = build_matmul(GATED, SM89)
    assert built.module.implements_function(built.name) and callable(built.function)
    assert [module.kind for module in built.module.imports] == ["cuda", "cuda"]
    assert len(built.log.modules) == 2
    assert all(use.spill_stores == use.spill_loads == 0 for use in built.log.usage.values())


def test_the_exported_library_holds_the_machine_code(tmp_path):
    built = build_matmul(GATED, SM89)
    built.module.export_library(str(tmp_path / "lib.so"))
    found = extract_fatbins((tmp_path / "lib.so").read_bytes())
    assert sorted(found) == sorted(code.fatbin for code in built.log.modules)
    loaded = tvm.runtime.load_module(str(tmp_path / "lib.so"))
    assert loaded.implements_function(built.name)


def test_a_problem_is_built_once(monkeypatch):
    compiled = []

    def compiler(source, arch):
        compiled.append(arch)
        return compile_machine_code(source, arch)

    assert build_matmul(PLAIN, SM89, compiler) is build_matmul(PLAIN, SM89, compiler)
    assert compiled == ["sm_89"]
    assert build_matmul(PLAIN, SM90, compiler) is not build_matmul(PLAIN, SM89, compiler)
    assert compiled == ["sm_89", "sm_90"]


def test_several_are_built_as_each_alone():
    begun, ended = [], []

    def compiler(source, arch):
        begun.append(source)
        code = compile_machine_code(source, arch)
        ended.append(source)
        return code

    together = build_matmuls([PLAIN, GATED, PLAIN], SM89, compiler)
    assert list(together) == [PLAIN, GATED] and len(begun) == len(ended) == len(set(ended)) == 3
    for problem, built in together.items():
        assert build_matmul(problem, SM89, compiler) is built
        assert built.problem == problem and built.module.implements_function(host_name(problem))
        # In the order of the launches, whichever compiled first
        assert [module.implements_function(f"{launch}_kernel") for module, launch in zip(
            built.module.imports, launch_names(built.name, built.kernels[0][1]), strict=True
        )] == [True] * len(built.log.modules)  # fmt: skip
    assert len(begun) == 3


def test_one_that_fails_keeps_none_of_them():
    def compiler(source, arch):
        return compile_machine_code(source + "?" * ("silu" in source), arch)

    with pytest.raises(CompileError):
        build_matmuls([GATED, PLAIN], SM89, compiler)
    assert not codegen_matmul._built


def test_a_target_without_a_host_gets_one():
    bare = tvm.target.Target({"kind": "cuda", "arch": "sm_89"})
    assert build_matmul(PLAIN, bare).module.implements_function(host_name(PLAIN))


def test_neighbouring_ranges_with_one_kernel_are_one_branch():
    built = build_matmul(PLAIN, SM89)  # float32 activations have one kernel for every M
    assert [(str(m_range), kernel.name) for m_range, kernel in built.kernels] == [("1..", "gemm_plain")]


def test_workspace():
    built = build_matmul(GATED, SM89)
    assert built.workspace_bytes(0) == 0
    assert (
        built.workspace_bytes(1) == 1024 and built.workspace_bytes(100) == 100 * 48 * 4 // 1024 * 1024 + 1024
    )
    for M in (1, 7, 100, 5000):
        assert built.workspace_bytes(M) <= built.bytes.slope * M + built.bytes.constant
    assert build_matmul(PLAIN, SM89).workspace_bytes(100) == 0


def test_an_m_outside_is_refused():
    built = build_matmul(replace(PLAIN, M=MRange(1, 8)), SM89)
    with pytest.raises(ShapeError, match=r"m1_8: M is 9, expected 1..8; build the matmul for a wider range"):
        built.workspace_bytes(9)


def test_a_kernel_that_does_not_compile_is_an_error_and_not_kept():
    def compiler(source, arch):
        return compile_machine_code(source + "?", arch)

    for _ in range(2):
        with pytest.raises(CompileError):
            build_matmul(PLAIN, SM89, compiler)


def test_a_rule_that_returns_something_else_is_refused(monkeypatch):
    class Wrong(KernelRule):
        name = "wrong"

        def apply(self, problem, target):
            return PlainGemm().apply(problem, target).launches[0].function

    monkeypatch.setitem(dispatch.TABLES, "sm_89", ((MRange(), (Wrong(),)),))
    with pytest.raises(NVFP4Error, match="rule wrong: returned PrimFunc, expected a CudaKernel"):
        build_matmul(PLAIN, SM89)
