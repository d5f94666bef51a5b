"""Stage 1: one embedding per object -> latent 3D features -> density and colour voxels (Sec. 3.1-3.2, B.1)."""
