"""The algorithm in plain PyTorch: every position of every head from a few matrix products, on CPU and CUDA tensors."""
