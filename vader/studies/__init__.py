"""Experiments about single decisions of the paper, each on top of trained runs."""
