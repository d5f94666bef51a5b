"""Parts of the fused renderer that only its kernels use: vectors and empty space for numba, the march for Triton."""
