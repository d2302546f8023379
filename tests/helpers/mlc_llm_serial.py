"""MLC-LLM's command line, with what keeps models of its from compiling for the CPU out of the way.

    python tests/helpers/mlc_llm_serial.py compile ...

MLC-LLM routes tokens to experts by such functions on every target (``mlc_llm/op/moe_misc.py``), so that no mixture
model of its compiles for llvm, whatever its quantization. They share no memory between threads: here their
threads are loops. One of them initializes an array by writing in front of it, harmless to registers: that is put
right. And dlight's schedule for products of one row unrolls them whole, which LLVM compiles for many minutes: it
is left out. The variables of `mlc_llm_model` say where MLC-LLM is.
"""

import os
import re
import runpy
import sys
from pathlib import Path

import tvm

_MEANT = (
    (re.compile(r'T\.thread_binding\((.*), thread="[\w.]+"\)'), r"T.serial(\1)"),
    (re.compile(r"(local_top_k_index)\[-1\] = (\d+)"), r"\1[\2] = \2"),
    (re.compile(r"(local_top_k_index)\[-1(:|\])"), r"\1[0\2"),
)


def serial(mod):
    """Return a module whose loops over threads are serial."""
    mod = mod.clone()
    for name, function in mod.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and "T.thread_binding(" in (text := function.script()):
            assert "shared" not in text, name
            for pattern, meant in _MEANT:
                text = pattern.sub(meant, text)
            mod[name] = tvm.script.from_source(text)
    return mod


def main():
    """Put `serial` in front of MLC-LLM's pipeline, which its modules register, and run its command line."""
    sys.path.insert(0, str(Path(os.environ["MLC_LLM_SOURCE"]) / "python"))
    if shim := os.environ.get("MLC_LLM_SHIM"):
        runpy.run_path(shim)["apply"]()
    import mlc_llm.__main__
    import mlc_llm.compiler_pass.pipeline
    from tvm.relax.pipeline import PIPELINE_MAP
    from tvm.s_tir import dlight

    dlight.cpu.GEMV.apply = lambda *_: None
    of_mlc = PIPELINE_MAP["mlc_llm"]

    def pipeline(*arguments, **keywords):
        rest = of_mlc(*arguments, **keywords)
        return tvm.transform.module_pass(lambda mod, _: rest(serial(mod)), opt_level=0, name="serial")

    PIPELINE_MAP["mlc_llm"] = pipeline
    mlc_llm.__main__.main()


if __name__ == "__main__":
    main()
