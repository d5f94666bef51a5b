"""Volume -> pixels: cameras, the reference renderer and its fused form (Eq. 6-7)."""
