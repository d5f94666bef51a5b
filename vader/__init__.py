"""vader: an independent re-implementation of 3DVADER (Autodecoding Latent 3D Diffusion Models)."""

__version__ = "0.1.0"
