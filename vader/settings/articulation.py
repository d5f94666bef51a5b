"""The settings of poses that are learned from video. `profiles.py` has their smaller sizes."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import later, require


@dataclass(frozen=True)
class ArticulationConfig:
    """Poses that are learned from video alone (Sec. 3.2, B.1); read where autodecoder.lbs_channels, N_p, is above 0.

    What the paper leaves open has UVA's value [63]. Lengths here are the camera's; half an edge of the canonical cube,
    the unit everywhere else, is `margin` of them.
    """

    keypoints_per_axis: int = 5  # N_k = 5^3 = 125 points in each part, on a grid at first (B.1, UVA)
    predictor_resolution: int = 64  # of the images that the 2D keypoint predictor sees (B.1)
    predictor_channels: int = 32  # of its U-Net: doubled by each block down to predictor_max_channels (UVA)
    predictor_max_channels: int = 1024
    predictor_blocks: int = 5
    predictor_kernel: int = 7  # of the convolution that makes the heat maps (UVA)
    temperature: float = 0.1  # of the soft-argmax (UVA)
    field_of_view: float = 0.175  # radians, full angle (B.1)
    near: float = 9.5  # the subject is between these depths (UVA)
    far: float = 11.5
    margin: float = 1.075  # the cube is larger than what lies between them by this (UVA's bound_inc)
    equivariance_weight: float = 10.0  # keypoints move with the image (UVA)
    equivariance_sigma: float = 0.1  # of the random affine maps (UVA)
    projection_weight: float = 10.0  # 2D keypoints lie where the pose projects the 3D ones (UVA)
    settling_weight: float = 10.0  # the same while subjects are rendered in the neutral pose, which it then teaches
    pull_weight: float = 200.0  # poses of parts that hold no density go to that of the largest part (UVA, stage two)
    pull_threshold: float = 0.01  # mean raw density below which a part is pulled (UVA, stage two)
    rigid_pull_weight: float = 10.0  # the same while there is one part (UVA, stage one)
    rigid_pull_threshold: float = 0.1
    rigid_images: int = 4_500_000  # images seen with one part before there are N_p; 0: N_p from the start
    neutral_images: int = 0  # of them, the first ones are rendered in the neutral pose, while keypoints settle there
    start_weight: float = 0.0  # of the distance to one solid for all subjects, meanwhile (see `start`)
    depth_weight: float = 0.0  # of squared raw density that is deeper than the mean silhouette is wide (see `start`)
    free_depth_images: int = 0  # seen in the first stage before that; from then to its end the weight rises from 0
    predictor_learning_rate: float = 5e-4  # of the predictor and the 3D keypoints (UVA)
    ray_stride: int = 1  # a training step renders every n-th pixel and row, at a random offset
    change_weight: float = later(0.0)  # of pixels where a video changes, in the pixel loss (`losses.change_weights`)
    # A gentler start than with all frames at once, see `start`. Off by default.
    own_start: bool = False  # a solid of its own for each video, which follows the silhouette's centre
    neutral_share: float = 1.0  # of a video's frames, its most symmetric ones, that training begins with
    symmetry_share: float = later(0.0)  # symmetry counts where the subject is in more than this share of the frames
    widening_images: int = 0  # seen after the neutral ones while that share grows to all frames
    predictor_warmup_images: int = 0  # seen after the neutral ones while the predictor's rate rises from 0
    # The second stage, see `regions`: the first images of its clock are not shown, the skinning weights are told where
    # parts start instead (0: they start at random, as in UVA); the same goes on with a weight that falls to 0 at the
    # end. Its learning rates are shares of the first stage's.
    region_images: int = later(0)
    region_weight: float = later(0.0)
    # The next ones are rendered in poses that are parameters of each video (see `tracks`), and then the predictor is
    # told those, as many times as there are images in `taught_images`, before it takes over.
    track_images: int = later(0)
    track_rate: float = later(1e-3)  # of the curves, which are in radians and in halves of the cube's edge
    track_harmonics: int = later(10)  # cosines that a curve is made of
    track_roll: float = later(1.0)  # times that rate for turns across the picture, which pictures tell best
    taught_images: int = later(0)
    taught_channels: int = later(0)  # of a predictor that is made anew to be told them; 0: the first stage's goes on
    taught_rate: float = later(1.0)  # share of the predictor's learning rate, at first; it falls to 0
    taught_frames: int = later(0)  # in a step, each of a video drawn for it; 0: the frames that a step would show
    taught_rendered: float = later(0.0)  # share of them that are rendered, limbs and whole in poses of other frames
    taught_sigma: float = later(0.0)  # of random affine maps of those frames, as equivariance_sigma
    taught_extent: float = later(1.0)  # of a part's 3D keypoints then, drawn together around where parts start
    refine_steps: int = later(0)  # of Gauss-Newton after EPnP, which noise on keypoints close together misleads
    parts_restart: bool = later(False)  # rates fall to 0 while poses are found, and again while they are predicted
    parts_rate: float = later(1.0)  # of decoder and embeddings
    parts_hourglass_rate: float = later(1.0)  # of the part of the predictor that all parts share
    parts_heads_rate: float = later(1.0)  # of its heat maps, and of the 3D keypoints

    def __post_init__(self) -> None:
        for name in ("keypoints_per_axis", "predictor_resolution", "predictor_channels", "predictor_blocks"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        require(self.track_harmonics >= 1, f"track_harmonics is {self.track_harmonics}, expected at least 1")
        require(self.predictor_kernel % 2 == 1, f"predictor_kernel is {self.predictor_kernel}, expected an odd number")
        require(self.keypoints_per_axis >= 2, "keypoints_per_axis is 1, expected at least 2: one point has no pose")
        require(
            self.predictor_resolution % 2**self.predictor_blocks == 0,
            f"predictor_resolution {self.predictor_resolution} cannot be halved {self.predictor_blocks} times",
        )
        positive = ("temperature", "field_of_view", "near", "margin", "predictor_learning_rate")
        for name in (
            *positive,
            "parts_rate",
            "parts_hourglass_rate",
            "parts_heads_rate",
            "track_rate",
            "track_roll",
            "taught_rate",
            "taught_extent",
        ):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}, expected a positive number")
        require(self.near < self.far, f"near is {self.near:g} and far is {self.far:g}, expected near < far")
        require(self.taught_sigma >= 0, f"taught_sigma is {self.taught_sigma:g}, expected 0 or more")
        terms = ("equivariance", "projection", "settling", "pull", "rigid_pull", "start", "depth", "region", "change")
        for name in (*(f"{term}_weight" for term in terms), "rigid_images", "neutral_images"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}, expected 0 or more")
        for name in (
            "free_depth_images",
            "widening_images",
            "predictor_warmup_images",
            "region_images",
            "track_images",
            "taught_images",
            "taught_channels",
            "taught_frames",
            "refine_steps",
        ):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}, expected 0 or more")
        require(0 < self.neutral_share <= 1, f"neutral_share is {self.neutral_share:g}, expected it in (0, 1]")
        require(0 <= self.taught_rendered <= 1, f"taught_rendered is {self.taught_rendered:g}, expected it in [0, 1]")
        require(0 <= self.symmetry_share < 1, f"symmetry_share is {self.symmetry_share:g}, expected it in [0, 1)")
        require(self.ray_stride >= 1, f"ray_stride is {self.ray_stride}, expected at least 1")

    @property
    def keypoints(self) -> int:
        """N_k."""
        return self.keypoints_per_axis**3

    @property
    def distance(self) -> float:
        """Distance from the camera to the centre of the canonical cube, in halves of its edge."""
        return (self.near + self.far) / 2 / self.margin
