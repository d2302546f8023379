"""The plug-in for MLC-LLM: ``mlc_llm ... --quantization nvfp4_skel``.

Importing this package activates it, at once or when ``mlc_llm`` is imported. Installed, it activates itself
(``startup/nvfp4_tvm_mlc_hook.py``). Nothing of MLC-LLM is imported here.
"""

from nvfp4_tvm.mlc.activation import activate

__all__ = ["activate"]

activate()
