"""Named data sets, a file each: which objects, which split, and how they become a prepared set."""
