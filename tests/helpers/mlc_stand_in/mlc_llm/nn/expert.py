"""Weights of experts, ``[E, N, K]``."""

from tvm.relax.frontend import nn


class MixtralExperts(nn.Module):
    def __init__(self, num_local_experts, in_features, out_features):
        self.num_local_experts = num_local_experts
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter((num_local_experts, out_features, in_features))
