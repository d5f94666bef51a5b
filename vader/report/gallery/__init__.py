"""`vader gallery`: what the trained models make, as pages that open from a disk, with no network and no server.

`finding` says which sets have runs, `objects` and `videos` make a hall of each, `contents` is what hangs in it, `pages`
and `writing` put it into a folder, and `record` is what it says of itself there.
"""

from .contents import GalleryError, Hall, Picture, Row, Work
from .record import gallery_dir, read_record

__all__ = ["GalleryError", "Hall", "Picture", "Row", "Work", "gallery_dir", "read_record"]
