"""A stand-in for MLC-LLM: its registries and what models, loaders and shards are there, and one small model.

What the plug-in relies on is here and nothing else, so that a test fails when it comes to rely on more. Where
MLC-LLM itself is at hand, tests/nvfp4_tvm/mlc/test_mlc_llm.py runs it.
"""
