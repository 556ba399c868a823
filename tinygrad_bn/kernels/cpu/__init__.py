"""The numba kernels for the CPU: importing one imports numba; nothing is compiled before its first call."""
