"""Images and masks of meshes and solids, under a fixed light rig."""
