import copy

import benchmark_modules  # noqa: F401

from benchmarks import mlc_tables


def row(name, scale, parts, **more):
    times = {f"decode_{batch}_ms": scale * batch for batch in mlc_tables.BATCHES}
    return {
        "name": name,
        "quantization": name.removesuffix("_head"),
        "parameter_bytes": 5.25e9,
        "finite": True,
        "decode_single_ms": scale * 1.25,
        "prefill_ms": 352.16,
        "prefill_parts_ms": parts,
        **times,
        **more,
    }


OURS = {
    "vm.builtin.attention_kv_cache_attention_with_fused_qkv": 310.0,
    "nvfp4_matmul_8x4_bf16_m1_2048": 20.5,
    "nvfp4_matmul_4x8_bf16_residual_m1_2048": 11.25,
    "nvfp4_matmul_9x4_bf16_f32_m1_2048": 0.125,
    "rms_norm1": 2.0,
}
THEIRS = {"fused_dequantize3_NT_matmul7": 400.0, "NT_matmul8": 100.5, "fused_NT_matmul9_cast1": 0.875}
REPORT = {
    "gpu": "Some GPU, 1.2",
    "date": "2026-01-02",
    "mlc_llm": "0123456789abcdef",
    "versions": {"apache-tvm": "0.0"},
    "shape": {"num_hidden_layers": 32, "hidden_size": 64},
    "context": 512,
    "torch": {"tokens": 2048, "bfloat16_linear_ms": 41.75, "float16_linear_ms": 43.5},
    "rows": [
        row("nvfp4_skel_head", 2.0, OURS, cosine_prefill=0.99888, cosine_decode=0.99893),
        row("q4f16_1", 3.0, THEIRS, finite=False, reference="none"),
        row("q0f16", 5.0, THEIRS),
        {"name": "q0bf16", "quantization": "q0bf16", "error": "no time was left"},
    ],
}


def test_parts_of_a_prefill():
    assert mlc_tables.prefill_parts(REPORT["rows"][0]) == {"attention": 310.0, "linear": 31.75, "head": 0.125}
    assert mlc_tables.prefill_parts(REPORT["rows"][1]) == {"attention": 0.0, "linear": 500.5, "head": 0.875}


def test_decode():
    text = mlc_tables.decode([REPORT])
    assert text.startswith(
        "Some GPU, 1.2, 2026-01-02, MLC-LLM 01234567, TVM 0.0. A Llama of 32 layers, hidden "
    )
    lines = text.splitlines()
    times = "5.2 | 2.00 | 32.00 | 128.00 | 2.50 | 352"
    assert f"| `nvfp4_skel`, NVFP4 head | {times} | 0.9989 | 0.9989 |" in lines
    assert "| `q4f16_1` | 5.2 | 3.00 | 48.00 | 192.00 | 3.75 | 352 | not finite | not finite |" in lines
    assert "| `nvfp4_skel`, NVFP4 head | 352.2 | 310.0 | 31.8 | 0.1 |" in lines
    assert "| torch (cuBLAS), bfloat16 |  |  | 41.8 |  |" in lines
    assert "| `q0f16` | 5.2 | 5.00 | 80.00 | 320.00 | 6.25 | 352 | none | none |" in lines
    assert "q0bf16" not in text
    assert text.count("\n") == mlc_tables.decode([REPORT, REPORT]).count("\n") // 2


def test_summary_has_the_factors_of_each_batch():
    report = copy.deepcopy(REPORT)
    report["rows"][1]["decode_64_ms"] = 2.0 * 64 * 6
    report["rows"][1]["decode_single_ms"] = 2.4  # faster than batch_decode with its 3
    text = mlc_tables.summary([report])
    assert text.startswith(
        "Decode steps of a Llama of 8B shape, its head quantized too, at batch 1, 16 and 64 are "
    )
    assert "are 1.2, 1.5 and 6.0 times as fast " in text
    assert (
        "as with `q4f16_1` and 2.5, 2.5 and 2.5 times as fast as with `q0f16` (Some GPU, 2026-01-02; " in text
    )


def test_agreement():
    row = {
        "model": "llama", "format": "modelopt", "quantization": "nvfp4_skel", "steps": 8,
        "cosine_prefill": 0.99998, "cosine_decode_min": 0.99991, "greedy_equal": 9,
        "cosine_transformers_min": 0.9997,
    }  # fmt: skip
    report = {"gpu": None, "cpu": "A CPU", "date": "2026-01-02", "mlc_llm": "0123456789abcdef", "rows": [row]}
    lines = mlc_tables.agreement([report]).splitlines()
    assert lines[0].startswith("A CPU, 2026-01-02, MLC-LLM 01234567:") and "8 decode steps" in lines[0]
    assert lines[-1] == "| llama, modelopt | `nvfp4_skel` | 0.999980 | 0.999910 | 0.999700 | 9 of 9 |"
    other = {"gpu": "A GPU", "cpu": "A CPU", "date": "2026-01-03", "mlc_llm": "fedcba9876543210"}
    other["rows"] = [{**row, "target": "sm_90", "cosine_decode_min": 0.5}]
    first, second = mlc_tables.agreement([report, other]).split("\n\nA GPU, 2026-01-03, MLC-LLM fedcba98:")
    assert first.splitlines()[-1] == lines[-1] and "for sm_90 beside" in second
    assert "| 0.500000 | 0.999700 | 9 of 9 |" in second.splitlines()[-1]


def test_engine():
    row = {
        "target": "sm_90",
        "model": "llama",
        "format": "modelopt",
        "quantization": "nvfp4_skel",
        "shards": 2,
    }
    good = {**row, "texts": 4, "tokens": 12, "equal_alone": 4, "equal_together": 3}
    report = {"gpu": "A GPU", "cpu": "A CPU", "date": "2026-01-02", "mlc_llm": "0123456789abcdef"}
    report["rows"] = [good, {**row, "error": "RuntimeError: no NCCL"}]
    lines = mlc_tables.engine([report]).splitlines()
    assert lines[0].startswith("A GPU, 2026-01-02, MLC-LLM 01234567: `mlc_llm serve`, greedy, 12 tokens")
    assert lines[-2:] == [
        "| llama, modelopt | `nvfp4_skel` | sm_90 | 2 | 4 of 4 | 3 of 4 |",
        "| llama, modelopt | `nvfp4_skel` | sm_90 | 2 | failed | failed |",
    ]
