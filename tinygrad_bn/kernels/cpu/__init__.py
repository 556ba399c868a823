"""The numba kernels for the CPU. Importing a module of this package imports numba; nothing is compiled before its first call."""
