"""Every setting of an experiment, one file per stage, and the sizes they come in (`profiles`, `table5`)."""
