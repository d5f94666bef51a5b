"""Tools that all readers share: pictures, lenses, scenes, the way into the cube, captions, archives."""
