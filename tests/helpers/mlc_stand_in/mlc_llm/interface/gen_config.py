"""Writing mlc-chat-config.json."""

import json


def gen_config(config, model, quantization, output):
    model_config = model.config.from_file(config)
    chat = {
        "model_type": model.name,
        "quantization": quantization.name,
        "model_config": model_config.asdict(),
    }
    (output / "mlc-chat-config.json").write_text(json.dumps(chat))
