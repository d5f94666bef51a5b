"""From trained runs to objects: sampled, reconstructed, animated, and rendered."""
