"""Tests and benchmarks of vader; `python -m tests.benchmarks` runs the latter."""
