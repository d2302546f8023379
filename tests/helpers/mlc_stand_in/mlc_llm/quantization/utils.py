"""Which linear layers are heads and gates, by their names."""


def is_final_fc(name):
    return name in ("head", "lm_head", "lm_head.linear", "embed_out")


def is_moe_gate(name, node):
    return name.endswith("gate") and isinstance(node.out_features, int) and node.out_features <= 256
