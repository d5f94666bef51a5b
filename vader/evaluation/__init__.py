"""From trained runs to numbers: the protocols of Sec. 4 (`pictures`, `shapes`, `poses`), `metrics`, and costs."""
