"""The whole way on a small model: make a checkpoint, quantize it to NVFP4, compile it, generate, compare.

Run it with ``examples/quickstart.sh``, or with ``python examples/quickstart.py`` where the package, torch and
transformers are installed. The model is random, so its text is noise; its numbers are what is shown: they are
compared with transformers running the exactly dequantized weights in float32.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import nvfp4_tvm

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "A checkpoint is compiled into a library"
NEW_TOKENS = 32
#: What two float32 computations of the same network agree to, by far; a wrong scale or a lost bit does not.
LEAST_COSINE = 0.9999


def make_checkpoint(folder: Path) -> None:
    """Write a random two-layer Llama in bf16, and a tokenizer trained on the README."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train([str(ROOT / "README.md")], trainer)
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=512,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def reference_logits(plain: Path, quantized: Path, token_ids: list[int]) -> np.ndarray:
    """Return float32 [len, vocab] logits of transformers with the NVFP4 weights, exactly dequantized."""
    model = transformers.LlamaForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    checkpoint = nvfp4_tvm.open_checkpoint(quantized)
    for name, module in model.named_modules():
        if name in checkpoint.module_names() and checkpoint.is_quantized(name):
            module.weight.data = torch.from_numpy(checkpoint.nvfp4(name).dequantize(np.float32))
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the smallest cosine between corresponding rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.min((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "quickstart", help="where to write")
    options = parser.parse_args()
    plain, quantized, compiled = (options.folder / name for name in ("plain", "nvfp4", "compiled"))
    for folder in (plain, quantized, compiled):
        shutil.rmtree(folder, ignore_errors=True)
    transformers.utils.logging.disable_progress_bar()

    make_checkpoint(plain)
    print(f"1. made       {plain}: a random Llama in bf16 with a tokenizer")

    summary = nvfp4_tvm.quantize_checkpoint(plain, quantized)
    print(
        f"2. quantized  {quantized}: {summary.layers} layers, {summary.bytes_read / 1e6:.2f} -> "
        f"{summary.bytes_written / 1e6:.2f} MB"
    )

    start = time.perf_counter()
    made = nvfp4_tvm.compile(quantized, compiled, target="llvm")
    print(
        f"3. compiled   {compiled}: for {made.manifest.target} in {made.manifest.dtype}, "
        f"in {time.perf_counter() - start:.0f} s"
    )

    tokenizer = Tokenizer.from_file(str(compiled / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    runner = nvfp4_tvm.load(compiled)
    result = runner.generate(prompt, max_new_tokens=NEW_TOKENS)
    tokens = list(result.token_ids)
    print(f"4. generated  {len(tokens)} tokens at {result.tokens_per_second:.0f} tokens/s: {tokens}")
    print(f"              as text (noise, the model is random): {tokenizer.decode(tokens)!r}")

    expected = reference_logits(plain, quantized, prompt + tokens)
    prefill = runner.logits(prompt)
    decode = np.stack([runner.decode(token) for token in tokens])
    greedy = expected[len(prompt) - 1 : -1].argmax(axis=1).tolist()
    prefill_cosine, decode_cosine = (
        cosine(prefill, expected[: len(prompt)]),
        cosine(decode, expected[len(prompt) :]),
    )
    same = sum(a == b for a, b in zip(tokens, greedy, strict=True))
    print("5. compared   with transformers on the dequantized weights in float32:")
    print(f"              least cosine of logits: prefill {prefill_cosine:.9f}, decode {decode_cosine:.9f}")
    print(f"              greedy tokens that agree: {same} of {len(tokens)}")
    agrees = min(prefill_cosine, decode_cosine) >= LEAST_COSINE and same == len(tokens)
    print(
        "              AGREES" if agrees else f"              DISAGREES (expected cosine >= {LEAST_COSINE})"
    )
    print(f"\nNow try: .venv/bin/nvfp4-tvm generate {compiled} --prompt '{PROMPT}' --max-new-tokens 20")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
