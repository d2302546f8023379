from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from nvfp4_tvm.codegen.cache import compile_cached
from nvfp4_tvm.codegen.compiling import begin, launch_names
from nvfp4_tvm.codegen.launch import with_host
from nvfp4_tvm.schedules.base import MRange
from nvfp4_tvm.schedules.dense import dense_kernel
from nvfp4_tvm.schedules.dense_kernel import DenseConfig
from nvfp4_tvm.schedules.dense_problem import DenseProblem
from nvfp4_tvm.target import resolve_target

PROBLEM = DenseProblem(24, 48, "float16", "float16")


def test_names_of_launches():
    kernel = dense_kernel(PROBLEM, DenseConfig(1, 1, 1, 1))
    assert launch_names("f", kernel) == ("f_m8_ks1_nt1_nb1_d1",)
    both = replace(kernel, launches=kernel.launches * 2)
    assert launch_names("f", both) == ("f_m8_ks1_nt1_nb1_d1_0", "f_m8_ks1_nt1_nb1_d1_1")


def test_a_kernel_of_several_ranges_is_compiled_once():
    few, many = (dense_kernel(PROBLEM, DenseConfig(1, 1, NB, 1)) for NB in (1, 2))
    kernels = [(MRange(1, 8), few), (MRange(9, 16), many), (MRange(17), few)]
    target = with_host(resolve_target("cuda:sm_89").target)
    compiled = []

    def compiler(source, arch):
        compiled.append(arch)
        return compile_cached(source, arch)

    with ThreadPoolExecutor(1) as pool:
        compiling = begin("f", PROBLEM, kernels, target, compiler, pool, workspace=False)
        module, log = compiling.finish()
    assert compiled == ["sm_89"] * 2 and len(log.modules) == 2
    assert module.implements_function("f") and compiling.kernels == tuple(kernels)
