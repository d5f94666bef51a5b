"""Experiments on one part of the method each: what they train, measure and compare, as functions for notebooks."""
