"""`python -m vader` is the command `vader`, also under torchrun."""

from __future__ import annotations

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
