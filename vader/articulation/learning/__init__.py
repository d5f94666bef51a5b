"""The stages of learning poses, in the order in which they happen.

- solids: each subject becomes a solid, inflated from its mean silhouette.
- one_part: the first training learns one part, the subject as a whole.
- regions: each subject is divided into parts around the largest discs of its silhouette.
- tracks: poses of the parts are found as smooth curves over each training video.
- teaching: a new predictor learns those poses.
- phases: the number of images seen decides which of these is under way.
"""
