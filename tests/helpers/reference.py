"""What a checkpoint computes, by transformers in float32 on exactly dequantized weights."""

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from nvfp4_tvm.checkpoint import open_checkpoint


def reference_model(folder):
    """Return the transformers model of a checkpoint, its NVFP4 weights dequantized exactly, in float32."""
    checkpoint = open_checkpoint(folder)
    config = json.loads((Path(folder) / "config.json").read_text())
    config.pop("quantization_config", None)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), dtype=torch.float32
    ).eval()
    state = {}
    for module in checkpoint.module_names():
        if checkpoint.is_quantized(module):
            state[f"{module}.weight"] = torch.from_numpy(checkpoint.nvfp4(module).dequantize(np.float32))
    names = set(checkpoint.names()) & set(model.state_dict())
    if any(".experts." in module for module in checkpoint.module_names()):
        return _with_experts(checkpoint, config, state)
    for name in names - set(state):
        state[name] = torch.from_numpy(checkpoint.tensor(name).astype(np.float32))
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    assert set(missing) <= tied and not unexpected, (missing, unexpected)
    if tied:
        model.tie_weights()
    return model


def _with_experts(checkpoint, config, state):
    """Load as transformers loads checkpoints: it stacks the experts, which are tensors of their own in files."""
    quantized = {
        tensor
        for module in checkpoint.module_names()
        if checkpoint.is_quantized(module)
        for tensor in checkpoint.tensors_of(module)
    }
    for name in set(checkpoint.names()) - quantized - set(state):
        state[name] = torch.from_numpy(checkpoint.tensor(name).astype(np.float32))
    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()}, f"{folder}/model.safetensors"
        )
        (Path(folder) / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    assert not any(found[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        found
    )
    return model.eval()


def reference_logits(model, token_ids):
    """Return float32 [len, vocab]."""
    with torch.no_grad():
        return model(torch.tensor([list(token_ids)])).logits[0].float().numpy()


def reference_steps(model, prompt, steps):
    """Decode greedily: the tokens, and float32 [steps, vocab], the logits each was chosen from."""
    tokens, logits = list(prompt), []
    for _ in range(steps):
        logits.append(reference_logits(model, tokens)[-1])
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :], np.stack(logits)


def forced_steps(model, prompt, tokens, dtype):
    """Return what a model in another dtype makes of a prompt and all tokens but the last, as `reference_steps`."""
    rounded = copy.deepcopy(model).to(getattr(torch, dtype))
    return reference_logits(rounded, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]


def clear_steps(model, length, steps, margin=0.05, draw=None):
    """Decode greedily from a prompt that leaves no choice to rounding.

    Random models have near ties, which 16-bit activations decide either way: the best token of every step is ahead
    of the next by at least ``margin`` times the root mean square of the logits.

    Parameters
    ----------
    draw : callable, optional
        Returns a prompt of about ``length`` tokens, drawn from a NumPy generator; by default any tokens.

    Returns
    -------
    prompt, tokens : list of int
    logits : numpy.ndarray
        As `reference_steps`.
    """
    for seed in range(100):
        generator = np.random.default_rng(seed)
        if draw is None:
            prompt = generator.integers(3, model.config.vocab_size, length).tolist()
        else:
            prompt = draw(generator, length)
        tokens, logits = reference_steps(model, prompt, steps)
        best = np.sort(logits, axis=-1)[:, -2:]
        if ((best[:, 1] - best[:, 0]) > margin * np.sqrt((logits**2).mean(-1))).all():
            return prompt, tokens, logits
    raise AssertionError(f"no clear prompt among {seed + 1}")


def cosine(a, b):
    """Cosine of each row of ``a`` with that of ``b``, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
