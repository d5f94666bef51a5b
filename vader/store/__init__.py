"""What is kept on disk: trained runs, pretrained weights, files that appear whole, and where folders are."""
