"""vader: an independent re-implementation of 3DVADER (Autodecoding Latent 3D Diffusion Models)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .generation.model import Model
    from .report.viewer import View

__version__ = "0.1.0"
__all__ = ["load", "view"]


def load(name: str, profile: str = "laptop", seed: int = 0, device: str = "auto", train: bool = False) -> Model:
    """A trained model, ready to make objects: `vader.load("furniture_chairs").sample(8)`.

    name, profile, seed: of the training, as `vader train` takes them. device: "cpu", "cuda" or "auto". train: where
    there are no runs of it, prepare the data and train them now. `vader.generation.model.Model` says what it can do,
    `vader.generation.objects.VolumeObject` what its objects can. Raises ConfigError and RunError, in one clear line.
    """
    from .generation.model import load as load_model

    return load_model(name, profile, seed, device, train)


def view(objects: Sequence[Any], title: str = "Objects", height: int = 640) -> View:
    """Objects in a viewer that turns, shown by JupyterLab where a cell ends with it (`vader.report.viewer.view`)."""
    from .report.viewer import view as show

    return show(objects, title, height)
