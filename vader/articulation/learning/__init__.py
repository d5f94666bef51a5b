"""Learning poses, step by step, in the order in which the steps happen.

solids      each subject becomes a solid, inflated from its mean silhouette
one_part    the first stage: one part, the subject as a whole
regions     each subject is divided into parts around the largest discs of its silhouette
tracks      poses of the parts are found as smooth curves over each training video
teaching    a new predictor is told those poses
phases      which of these is under way, by the number of images seen
"""
