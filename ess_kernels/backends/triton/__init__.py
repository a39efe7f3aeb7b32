"""`backend="triton"`: the engine's inner work in Triton kernels, for CUDA tensors."""
