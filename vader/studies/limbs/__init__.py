"""Why limbs hardly turn (Sec. 3.2): the smallest scene in which each step of the recipe can be asked alone.

    vader study limbs

A body that stands still and one limb that turns about a joint, both boxes, before the videos' camera. Volume, skinning
weights and poses are known, so each can be given or learned. Everything takes a few minutes of one core. The command
writes `reports/limbs.md` and `reports/limbs-laptop.json`.

- scene: the boxes, their pictures and their volume.
- gradient: whether the gradients of poses and keypoints are right.
- basins: from how far away the pictures lead a limb back, by size and axis of its turns.
- explanations: what is learned from pictures when some of it is given.
- predictor: poses as a keypoint network reads them, told the truth and then released.
- keypoints: what noise on keypoints costs a part of few pixels, and where the sets' limbs are.
"""
