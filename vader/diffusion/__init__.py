"""Stage 2: EDM diffusion in the latent volume of G1 (Sec. 3.3, B.2)."""
