import time

import pytest

from nvfp4_tvm.checkpoint.patterns import Patterns, role_of
from nvfp4_tvm.errors import CheckpointError


def match(entry, name, **options):
    return Patterns([entry], "here", **options).matches(name)


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", False),
        ("model.layers.0", "model.layers.0.mlp", False),
        ("re:.*lm_head", "model.lm_head", True),
        ("re:lm_head", "lm_head_2", True),  # matched from the start, as the library's re.match
        ("re:lm_head$", "lm_head_2", False),
        ("re:head", "lm_head", False),
        (r"re:.*layers\.(0|31)\..*", "model.layers.31.mlp.up_proj", True),
        (r"re:.*layers\.(0|31)\..*", "model.layers.3.mlp.up_proj", False),
        ("re:.*self_attn.(q|k|v)_proj$", "model.layers.1.self_attn.k_proj", True),
        ("re:.*[qk]_proj", "a.k_proj", True),
        ("re:^(?!.*mlp).*proj", "a.k_proj", True),
        ("*", "x", False),  # compressed-tensors has no wildcards
    ],
)
def test_names_and_expressions(entry, name, expected):
    assert match(entry, name) is expected


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("lm_head", "lm_head", True),
        ("*lm_head*", "model.lm_head", True),
        ("model.layers.0*", "model.layers.0.mlp.up_proj", True),
        ("model.layers.0*", "model.layers.1.mlp.up_proj", False),
        ("model.layers.0.*", "model.layers.0", True),
        ("model.layers.0.*", "model.layers.01", False),
        ("model.layers.0", "model.layers.0.mlp.up_proj", True),
        ("model.layers.0", "model.layers.01.mlp", False),
        ("*.q_proj", "model.layers.3.self_attn.q_proj", True),
        ("*.mlp", "model.layers.3.mlp.up_proj", True),
        ("*[kv]_proj", "a.v_proj", True),
        ("lm_?ead", "lm_head", True),
        ("*.Q_proj", "a.q_proj", False),
    ],
)
def test_wildcards(entry, name, expected):
    assert match(entry, name, wildcards=True) is expected


def test_none_is_empty():
    assert not Patterns(None, "here").matches("x")


@pytest.mark.parametrize(
    "expression",
    ["(a+)+", "(?:a*)*", "((ab)*c)+", "(a|aa)+$", "(a{2,9})*", r"(a)\1", "(?x)( a+ ) +", ".*.*.*.*.*"],
)
def test_what_may_not_end_is_refused(expression):
    with pytest.raises(CheckpointError, match="backtrack"):
        Patterns([f"re:{expression}"], "here")


def test_the_worst_that_is_accepted_ends():
    start = time.perf_counter()
    patterns = Patterns(["re:.*a.*a.*ab"], "here")
    assert not patterns.matches("a" * 256)
    patterns = Patterns(["*a*a*a*a*a*a*a*a*b"], "here", wildcards=True)
    assert not patterns.matches("a" * 200)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("module", "role"),
    [
        ("model.embed_tokens", "embedding"), ("transformer.wte", "embedding"), ("lm_head", "linear"),
        ("model.layers.0.mlp.gate", "router"), ("block_sparse_moe.router", "router"),
        ("model.layers.0.mlp.gate_proj", "linear"),
    ],
)  # fmt: skip
def test_role(module, role):
    assert role_of(module) == role
