"""Formats on disk, a reader each: it knows a layout, and nothing of the data sets that use it."""
