"""Studies of sets of videos: whose poses are learned, what parts and foreground supervision do, and how they move."""
