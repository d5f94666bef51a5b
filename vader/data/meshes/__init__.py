"""From meshes and solids to images and masks, under a fixed light rig."""
