"""The page of a run, from the outputs of the stages."""
