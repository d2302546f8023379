"""Entering the plug-in in MLC-LLM's registries, as MLC-LLM imports them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from wrapt import register_post_import_hook

logger = logging.getLogger(__name__)


def _call(function: str) -> Callable[[ModuleType], None]:
    """Return a hook that calls ``module:function`` of this package with the module of MLC-LLM just imported."""
    module, _, name = function.partition(":")

    def hook(imported: ModuleType) -> None:
        getattr(import_module(f"nvfp4_tvm.mlc.{module}"), name)(imported)

    return hook


#: What to do when a module of MLC-LLM has been imported. Names that it exports are still unknown to others then.
HOOKS = {
    "mlc_llm.support.config": "record:carry_records",
    "mlc_llm.quantization": "registration:register_quantizations",
    "mlc_llm.model": "registration:register_models",
    "mlc_llm.loader": "registration:register_loaders",
    "mlc_llm.interface.convert_weight": "dump:keep_float32",
    "mlc_llm.interface.gen_config": "record:write_records",
    "mlc_llm.compiler_pass.pipeline": "registration:install_pipeline",
}

_active = False


def activate() -> None:
    """Make NVFP4 known to MLC-LLM, now as far as it is imported, the rest when it will be. Harmless twice."""
    global _active
    if _active:
        return
    _active = True
    for module, function in HOOKS.items():
        register_post_import_hook(_call(function), module)
    if "mlc_llm" in sys.modules:
        logger.debug("activated after mlc_llm was imported")
