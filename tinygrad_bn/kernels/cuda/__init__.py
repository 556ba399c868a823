"""The fused kernels on CUDA devices, and on numba's simulator of one. Arrays in, arrays out."""
