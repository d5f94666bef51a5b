"""Objects of trained runs: sampled, reconstructed, animated, and rendered."""
