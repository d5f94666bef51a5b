"""Everything kept on disk: trained runs, pretrained weights, whole files, and the places of folders."""
