"""What the library offers: a table from method to class, and the options that its classes take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any, Literal

import pytorch_grad_cam as library
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils import model_targets
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_with_sign_correction
from torch import Tensor

from camkit.plugin import option


@dataclass(frozen=True)
class GradCamOptions:
    """Options of the pytorch-grad-cam backend."""

    score: Literal["logit", "softmax", "rest"] = option(
        "logit", help="what is explained (not by finercam); rest: logit minus cross-entropy"
    )
    aug_smooth: bool = option(False, help="mean map of the image and its mirror image, at three contrasts")
    eigen_smooth: bool = option(
        False, help="first principal component in place of the sum over the channels"
    )
    batch_size: int = option(32, min=1, help="ablationcam, scorecam: images in one forward")
    seed: int = option(0, min=0, max=2**32 - 1, help="randomcam, kpcacam: of what they draw")
    kernel: Literal["sigmoid", "rbf", "poly", "cosine", "linear"] = option("sigmoid", help="kpcacam")
    gamma: float | None = option(None, min=0.0, help="kpcacam: of the kernel; none is 1 / channels")
    k: float = option(2.0, help="fem: standard deviations above the mean that count as active")
    alpha: float = option(1.0, min=0.0, help="finercam: how strongly similar classes are held against")
    comparisons: int = option(3, min=1, help="finercam: how many similar classes")


@dataclass(frozen=True)
class Method:
    """A method of the library.

    cam: its class; arguments: of its constructor.
    agnostic: the same map for every class. alone: image by image. draws: from numpy's generator.
    twice: it differentiates the gradients again.
    """

    cam: type[BaseCAM]
    note: str
    arguments: Callable[[GradCamOptions], dict[str, Any]] = lambda _: {}
    agnostic: bool = False
    alone: bool = False
    draws: bool = False
    twice: bool = False


METHODS: dict[str, Method] = {
    "gradcam": Method(library.GradCAM, "signed"),
    "hirescam": Method(library.HiResCAM, "signed; eigen_smooth voids its faithfulness"),
    "gradcam-elementwise": Method(library.GradCAMElementWise, "rectified before the sum over channels"),
    "gradcam++": Method(
        library.GradCAMPlusPlus,
        "positive gradients only; unlike in native, an epsilon of 1e-6 weakens those below 1e-3",
    ),
    "xgradcam": Method(library.XGradCAM, "signed"),
    "layercam": Method(library.LayerCAM, "positive gradients only"),
    "eigencam": Method(
        library.EigenCAM, "the sign is free: the larger extreme is taken to be positive", agnostic=True
    ),
    "eigengradcam": Method(
        library.EigenGradCAM, "the sign is free: the larger extreme is taken to be positive"
    ),
    "ablationcam": Method(
        library.AblationCAM,
        "one forward for each channel; wants a layer behind a ReLU, for it fills others with -1e7",
        lambda options: {"ablation_layer": library.AblationLayer(), "batch_size": options.batch_size},
    ),
    "scorecam": Method(
        library.ScoreCAM,
        "one forward for each channel; weights are positive",
        alone=True,  # it holds a copy of the image for each channel
    ),
    "fullgrad": Method(
        library.FullGrad,
        "no raw map: unsigned, every channel scaled to [0, 1] before the sum; as large as the input, "
        "whatever the layer",
    ),
    "kpcacam": Method(
        library.KPCA_CAM,
        "the sign is free: the larger extreme is taken to be positive",
        lambda options: {"kernel": options.kernel, "gamma": options.gamma},
        agnostic=True,
        draws=True,  # for maps of more than 200 positions, in scikit-learn's solver
    ),
    "fem": Method(library.FEM, "weights are positive", lambda options: {"k": options.k}, agnostic=True),
    "shapleycam": Method(
        library.ShapleyCAM,
        "signed; where the score is linear in the layer it equals gradcam",
        twice=True,
    ),
    "finercam": Method(library.GradCAM, "gradcam of the score minus those of the most similar classes"),
    "randomcam": Method(
        library.RandomCAM,
        "random weights from seed, the same for every image: a control",
        agnostic=True,
        alone=True,  # it would draw other weights for each image of a batch
        draws=True,
    ),
}

SCORES: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "logit": model_targets.ClassifierOutputTarget,
    "softmax": model_targets.ClassifierOutputSoftmaxTarget,
    "rest": model_targets.ClassifierOutputReST,
}

# Names that mean something else to the library's functions when they run for camkit.
REBOUND = {
    "tqdm": SimpleNamespace(tqdm=iter),  # progress bars and warnings have no switch
    "print": lambda *_: None,
    # An SVD leaves the sign open, and rounding decides it: an image alone may be negative to the same
    # image in a batch. This is the library's own remedy, which it uses for segmentation only.
    "get_2d_projection": get_2d_projection_with_sign_correction,
}


@cache
def adapted(cls: type[BaseCAM]) -> type[BaseCAM]:
    """A subclass that runs the code of `cls` with the names of `REBOUND`; `cls` stays as it is."""
    functions = [
        getattr(cls, name) for name in ("get_cam_weights", "get_cam_image", "compute_cam_per_layer")
    ]
    own = [FunctionType(f.__code__, f.__globals__ | REBOUND, f.__name__, f.__defaults__) for f in functions]
    return type(cls.__name__, (cls,), {f.__name__: f for f in own})
