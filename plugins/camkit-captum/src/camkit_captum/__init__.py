"""captum as a backend of camkit: a table of methods, and what is the same for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from captum import attr  # type: ignore[import-untyped]
from torch import Tensor

from camkit.errors import OptionError, UsageError
from camkit.plugin import Explainer, Query, option, random_state_kept, wide
from camkit_captum.network import DEEPLIFT, GUIDED, Network, StandIns, replace


@dataclass(frozen=True)
class CaptumOptions:
    """Options of the captum backend."""

    steps: int = option(50, min=1, help="points on the path of integrated gradients")
    baseline: Literal["zero", "mean"] = option(
        "zero", help="the image without content: zero after normalisation, or its own mean colour"
    )
    absolute: bool = option(True, help="saliency: without the sign, as captum defines it")
    window: int | None = option(None, min=1, help="occlusion: pixels; none: 1/7 of the shorter side")
    stride: int | None = option(None, min=1, help="occlusion: pixels; none: half the window")
    noise_tunnel: Literal["none", "smoothgrad", "smoothgrad-sq", "vargrad"] = option(
        "none", help="mean, mean square or variance over noisy copies of the image"
    )
    samples: int = option(20, min=1, help="noise tunnel, gradient-shap: noisy copies")
    stdev: float = option(0.15, min=0.0, help="of the noise, as a share of the image's range of values")
    seed: int = option(0, min=0, max=2**32 - 1, help="of the noise; every image gets the same")
    batch_size: int = option(32, min=1, help="images in one forward, where a method needs many")


@dataclass(frozen=True)
class Job:
    """What a method works on: inputs `[B, C, H, W]`, at least float32, and targets `[B]`."""

    network: Network
    inputs: Tensor
    targets: Tensor
    options: CaptumOptions

    def run(self, attribution: Any, **arguments: Any) -> Tensor:
        """captum's attributions, through a noise tunnel if there is one."""
        options = self.options
        if options.noise_tunnel != "none":
            attribution = attr.NoiseTunnel(attribution)
            tunnel = {
                "nt_type": options.noise_tunnel.replace("-", "_"),
                "nt_samples": options.samples,
                "nt_samples_batch_size": min(options.samples, options.batch_size),
                "stdevs": self.stdev,
            }
            arguments = tunnel | arguments
        result: Tensor = attribution.attribute(self.inputs, target=self.targets, **arguments)
        return result

    @property
    def baseline(self) -> Tensor:
        """`[B, C, H, W]`."""
        if self.options.baseline == "zero":
            return torch.zeros_like(self.inputs)
        return self.inputs.mean((2, 3), keepdim=True).expand_as(self.inputs)

    @property
    def stdev(self) -> float:
        """In the units of the inputs."""
        return self.options.stdev * float(self.inputs.max() - self.inputs.min())

    @property
    def path(self) -> dict[str, Any]:
        """Arguments of integrated gradients."""
        size = max(len(self.inputs), self.options.batch_size)
        return {"baselines": self.baseline, "n_steps": self.options.steps, "internal_batch_size": size}


def _deeplift(job: Job) -> Tensor:
    """Checked by what DeepLIFT promises: the attributions add up to the change of the score."""
    attribution = attr.DeepLift(job.network)
    result: Tensor = attribution.attribute(job.inputs, job.baseline, target=job.targets).detach()
    with torch.no_grad():
        change = (job.network(job.inputs) - job.network(job.baseline))[0, job.targets[0]]
    gap = float(change.detach() - result.sum())  # the host may keep gradients on for a model that needs it
    share = max(1e-3, torch.finfo(job.network.dtype).eps ** 0.5)
    if abs(gap) > share * float(result.sum(1).abs().sum()):
        raise UsageError(
            f"deeplift has no rule for a layer of {type(job.network.inner).__name__}: its attributions "
            f"miss the change of the score by {gap:.3g}; integrated-gradients works for every model"
        )
    if job.options.noise_tunnel == "none":
        return result
    return job.run(attribution, baselines=job.baseline, nt_samples_batch_size=1)


def _occlusion(job: Job) -> Tensor:
    channels, height, width = job.inputs.shape[1:]
    window = job.options.window or max(1, min(height, width) // 7)
    stride = job.options.stride or max(1, window // 2)
    if window > min(height, width) or stride > window:
        raise OptionError(
            f"window={window} and stride={stride} do not fit {height}x{width} pixels: "
            "the window must fit into the image, and the stride into the window"
        )
    result: Tensor = attr.Occlusion(job.network).attribute(
        job.inputs,
        sliding_window_shapes=(channels, window, window),
        strides=(channels, stride, stride),
        baselines=job.baseline,
        target=job.targets,
        perturbations_per_eval=max(1, job.options.batch_size // len(job.inputs)),
    )
    return result


@dataclass(frozen=True)
class Method:
    """A method of captum: from a job to attributions `[B, C, h, w]`.

    noise: it may go through a noise tunnel, draws noise of its own, or neither.
    layer: it looks at the target layer.
    mean: over the channels, where the sum would say nothing.
    alone: image by image: captum's DeepLIFT lets the images of a batch influence each other.
    stand_ins: the modules that must be prepared for captum's rules.
    """

    compute: Callable[[Job], Tensor]
    note: str
    noise: Literal["tunnel", "own", "none"] = "tunnel"
    layer: bool = False
    mean: bool = False
    alone: bool = False
    stand_ins: StandIns | None = None


PIXELS = "one value per pixel, summed over the channels"
METHODS: dict[str, Method] = {
    "gradcam": Method(
        lambda job: job.run(attr.LayerGradCam(job.network, job.network.view)),
        "signed, at the resolution of the layer",
        layer=True,
    ),
    "guided-gradcam": Method(
        lambda job: job.run(attr.GuidedGradCam(job.network, job.network.view), interpolate_mode="bilinear"),
        f"guided-backprop times the rectified gradcam; {PIXELS}; ReLU must be nn.ReLU or nn.ReLU6",
        layer=True,
        stand_ins=GUIDED,
    ),
    "layer-activation": Method(
        lambda job: attr.LayerActivation(job.network, job.network.view).attribute(job.inputs),
        "at the resolution of the layer, mean over its channels",
        noise="none",
        layer=True,
        mean=True,
    ),
    "integrated-gradients": Method(
        lambda job: job.run(attr.IntegratedGradients(job.network), **job.path),
        f"{PIXELS}; they add up to the change of the score from the baseline",
    ),
    "saliency": Method(
        lambda job: job.run(attr.Saliency(job.network), abs=job.options.absolute),
        f"absolute gradient, {PIXELS}; absolute=false keeps the sign",
    ),
    "input-x-gradient": Method(lambda job: job.run(attr.InputXGradient(job.network)), PIXELS),
    "deeplift": Method(
        _deeplift,
        f"rescale rule; {PIXELS}; refused if a layer has no rule (ReLU functions, GELU, attention)",
        alone=True,
        stand_ins=DEEPLIFT,
    ),
    "gradient-shap": Method(
        lambda job: attr.GradientShap(job.network).attribute(
            job.inputs, job.baseline, job.options.samples, job.stdev, target=job.targets
        ),
        f"gradients between baseline and noisy image, times their difference; {PIXELS}",
        noise="own",
    ),
    "occlusion": Method(
        _occlusion,
        "fall of the score when a window is hidden, one value per pixel",
        noise="none",
        mean=True,
    ),
    "guided-backprop": Method(
        lambda job: job.run(attr.GuidedBackprop(job.network)),
        f"{PIXELS}; ReLU must be nn.ReLU or nn.ReLU6; depends little on the class",
        stand_ins=GUIDED,
    ),
    "layer-integrated-gradients": Method(
        lambda job: job.run(attr.LayerIntegratedGradients(job.network, job.network.view), **job.path),
        "at the resolution of the layer, summed over its channels; class tokens stay as they are",
        layer=True,
    ),
}


class Captum(Explainer):
    """captum works on a stand-in for the model, and where it changes modules on a twin of it."""

    summary = "Integrated gradients, DeepLIFT, occlusion, SmoothGrad and more by captum"
    methods = tuple(METHODS)
    dtypes = ("float32", "float64", "bfloat16", "float16")
    class_agnostic = ("layer-activation",)
    layerless = tuple(name for name, method in METHODS.items() if not method.layer)
    notes: ClassVar[Mapping[str, str]] = {name: method.note for name, method in METHODS.items()}
    thread_safe = True
    Options = CaptumOptions

    def maps(self, query: Query) -> Tensor:
        """Raw maps `[B, h, w]`, at the resolution of the layer or of the input: see `notes`."""
        method, options = METHODS[query.method], self.options
        if options.noise_tunnel != "none" and method.noise != "tunnel":
            fitting = ", ".join(name for name, other in METHODS.items() if other.noise == "tunnel")
            raise OptionError(f"noise_tunnel does not go with {query.method}, but with {fitting}")
        network = Network(query, watched=method.layer, ruled=bool(method.stand_ins))
        if method.stand_ins:
            replace(network, method.stand_ins, query.inputs[:1].clone(), query.method)
        noisy = method.noise == "own" or options.noise_tunnel != "none"
        size = 1 if noisy or method.alone else len(query.inputs)
        attributions = []
        with warnings.catch_warnings():  # of hooks and flags that captum sets: here on a twin and a copy
            warnings.filterwarnings("ignore", module=r"captum\.")
            for start in range(0, len(query.inputs), size):
                x, t = (part[start : start + size] for part in (query.inputs, query.targets))
                job = Job(network, wide(x).clone(), t.clone(), options)
                with _seeded(options.seed, x.device) if noisy else nullcontext():
                    attributions.append(method.compute(job).detach())
        joined = torch.cat(attributions)
        return joined.mean(1) if method.mean else joined.sum(1)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """captum draws from the global generators of torch and numpy: seeded inside, as before afterwards."""
    state = np.random.get_state()
    with random_state_kept(device, seed):
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)
