"""Fused normalization and dropout kernels: arrays in, arrays out; nothing here knows a Tensor."""
