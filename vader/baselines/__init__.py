"""The systems the paper compares with, on the same data, cameras, renderer and metrics."""
