"""Volumes that turn in a browser: the radiance field itself, marched by Eq. 6-7, in one file and with no network.

    page = viewer_page([("chair", volume), Exhibit("driven", other, caption="seed 0", glb=mesh)], "Samples")
    view(objects)  # the same in JupyterLab

What is drawn is the volume that is evaluated, not a mesh made from it: `march.glsl` takes the samples that
`vader.rendering.reference` takes. `payload` says how a volume travels, `page` makes the file.
"""

from .page import Exhibit, View, view, viewer_page
from .payload import Payload, ViewerError, restore, volume_payload

__all__ = ["Exhibit", "Payload", "View", "ViewerError", "restore", "view", "viewer_page", "volume_payload"]
