"""Compare compiled folders with transformers, on this machine or on another that has the GPU.

    python benchmarks/verify_library.py reference CHECKPOINT -o reference.npz
    python benchmarks/verify_library.py check reference.npz OUT... --json out.json

The reference (torch and transformers) is float32 on exactly dequantized weights: logits of a prompt, and 16
greedy steps. A check scores the prompt, decodes the reference's tokens, and generates freely.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STEPS, PROMPT = 16, 37


def make_reference(checkpoint: str, output: str) -> None:
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from reference import reference_logits, reference_model, reference_steps

    model = reference_model(checkpoint)
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, PROMPT)
    tokens, logits = reference_steps(model, prompt.tolist(), STEPS)
    np.savez(
        output, prompt=prompt, score=reference_logits(model, prompt.tolist()), tokens=tokens, steps=logits
    )


def check(reference: str, folder: str) -> dict[str, object]:
    import nvfp4_tvm
    from nvfp4_tvm.runtime.folder import Manifest

    expected = np.load(reference)
    prompt, tokens = expected["prompt"].tolist(), expected["tokens"].tolist()
    manifest = Manifest.read(Path(folder))
    runner = nvfp4_tvm.load(folder)
    score = runner.logits(prompt)
    runner.reset()
    steps = [runner.prefill(prompt)]
    steps += [runner.decode(token) for token in tokens[:-1]]
    result = runner.generate(prompt, STEPS)
    return {
        "folder": Path(folder).name,
        "reference": Path(reference).stem,
        "target": manifest.target,
        "dtype": manifest.dtype,
        "cosine_prefill_min": float(cosine(score, expected["score"]).min()),
        "cosine_decode_min": float(cosine(np.stack(steps), expected["steps"]).min()),
        "greedy_steps_equal": sum(int(s.argmax()) == t for s, t in zip(steps, tokens, strict=True)),
        "generated_equal": list(result.token_ids) == tokens,
        "steps": STEPS,
    }


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("reference")
    make.add_argument("checkpoint")
    make.add_argument("-o", "--output", required=True)
    run = commands.add_parser("check")
    run.add_argument("reference")
    run.add_argument("folders", nargs="+")
    run.add_argument("--json")
    arguments = parser.parse_args()
    if arguments.command == "reference":
        make_reference(arguments.checkpoint, arguments.output)
        return
    sys.path.insert(0, str(ROOT))
    from benchmarks.record import write

    rows = [check(arguments.reference, folder) for folder in arguments.folders]
    for row in rows:
        print(row)
    if arguments.json:
        write(Path(arguments.json), rows)


if __name__ == "__main__":
    main()
