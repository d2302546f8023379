"""The passes of nvfp4_tvm inside MLC-LLM's compile pipeline ``mlc_llm``."""

from __future__ import annotations


def install() -> None:
    """Put the passes into the pipeline."""
