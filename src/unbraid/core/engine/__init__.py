"""Exact attention statistics without the matrix: row blocks, fused kernels, and the choice between them."""
