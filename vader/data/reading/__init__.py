"""From objects on disk to a prepared set, by `passes.prepare_found`: what own folders and the paper's sets share."""
