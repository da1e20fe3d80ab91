"""The CPU backend: C++ kernels in `csrc`, compiled as `engine.backends.cpu._native`."""
