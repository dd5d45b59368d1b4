"""The table of architectures by which files of weights are recognised: `python -m tests.signatures`.

Builds every classifier of torchvision and timm without memory for its shapes, and those that share all
shapes in earnest, to see which of them compute the same: half an hour. With `--check` it writes nothing,
but saves networks with random weights as people do, and counts how many are recognised.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import ModelError
from camkit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from camkit.models import recognition, signatures
from camkit.models.checkpoint import Checkpoint
from camkit.models.facts import assumed
from camkit.models.fastai import FastaiSource
from camkit.models.signatures import Signature
from camkit.registry import loading

LARGE = 700_000_000  # parameters, from which on a network is not run


def names() -> list[str]:
    """Every architecture, torchvision's first, and those that fastai makes of these."""
    import timm
    from torchvision import models

    ours = models.list_models(module=models)
    theirs = [f"timm:{name}" for name in timm.list_models()]
    return [*(f"torchvision:{name}" for name in ours), *theirs, *(f"fastai:{name}" for name in ours)]


def made(name: str, classes: int = 3, **options: Any) -> nn.Module:
    """The network called `name`, as its library makes it."""
    import timm
    from torchvision import models

    scheme, _, own = name.partition(":")
    if scheme == "timm":
        return timm.create_model(own, pretrained=False, num_classes=classes, **options)
    if own in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}
    return models.get_model(own, weights=None, num_classes=classes, **options)


def row(name: str) -> Signature | None:
    """The signature of an architecture; none of one that only makes features."""
    import timm

    if name.startswith("fastai:"):
        return _of_fastai(name)
    few, more = (recognition.unfilled(lambda n=n: made(name, n)).state_dict() for n in (3, 5))
    shapes = {key: tuple(tensor.shape) for key, tensor in few.items() if isinstance(tensor, Tensor)}
    heads = [key.rpartition(".")[0] for key in shapes if few[key].shape != more[key].shape]
    main = [head for head in dict.fromkeys(heads) if not recognition.HELPERS.match(f"{head}.")]
    helpers = [head for head in dict.fromkeys(heads) if head not in main]
    published = name.startswith("torchvision:") or bool(timm.list_pretrained(name.partition(":")[2]))
    return signatures.signature(name, shapes, [*main, *helpers], published=published) if main else None


def _of_fastai(name: str) -> Signature | None:
    """The body of a network of torchvision under a head of fastai; none if fastai cannot cut it."""
    backbone = {"source": "torchvision", "name": name.partition(":")[2]}
    architecture = {"backbone": backbone, "num_classes": 3}
    try:
        state = recognition.unfilled(lambda: FastaiSource().build(architecture)).state_dict()
    except ModelError:
        return None
    return signatures.signature(name, {key: tuple(tensor.shape) for key, tensor in state.items()}, ["1"])


def same(rows: Sequence[Signature]) -> list[Signature]:
    """Architectures with the same tensors, each with the first of them that computes the same."""
    first = recognition.unfilled(lambda: made(rows[0].name))
    if sum(parameter.numel() for parameter in first.parameters()) > LARGE:
        return list(rows)
    first = _shaken(made(rows[0].name).eval())
    config: Any = getattr(
        first, "default_cfg", {"input_size": (3, 299 if "inception" in rows[0].name else 224)}
    )
    size = config["input_size"][-1]
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    known: list[tuple[str, Tensor]] = []
    found = []
    for row in rows:
        options = {"img_size": size} if row.positions != rows[0].positions else {}
        scores = _scores(row.name, first, images, options)
        alike = next((name for name, theirs in known if _equal(scores, theirs)), None)
        if alike is None and scores is not None:
            known.append((row.name, scores))
        found.append(replace(row, same_as=alike or row.name))
    return found


def _shaken(module: nn.Module) -> nn.Module:
    """Random norms and biases, so that no branch is switched off by how it begins."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            if name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.1, generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)
    return module


def _scores(name: str, first: nn.Module, images: Tensor, options: dict[str, Any]) -> Tensor | None:
    try:
        module = made(name, **options).eval()
        module.load_state_dict(first.state_dict(), strict=False)
        with torch.no_grad():
            scores = module(images)
    except Exception as error:  # such as another size of the photographs
        print(f"{name}: {error!r:.100}", file=sys.stderr)
        return None
    return scores if bool(scores.isfinite().all()) else None


def _equal(one: Tensor | None, other: Tensor) -> bool:
    if one is None or one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def shown(name: str) -> str:
    """What its library shows an architecture, for people."""
    scheme, _, own = name.partition(":")
    source: Any = loading.make("model", scheme)
    try:
        preprocess = source.preprocess({"source": scheme, "name": own})
    except ModelError:
        return ""
    usual = (preprocess.mean, preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)
    parts = assumed(preprocess, ["mean", "std"] if usual else []).removeprefix("assumed: ")
    return f"{parts.partition(' (')[0]}, {preprocess.interpolation}"


def with_shown(rows: Sequence[Signature]) -> list[Signature]:
    """The rows, with what those are shown that compute the same as others."""
    kinds = Counter(row.same_as for row in rows)
    return [replace(row, shown=shown(row.name)) if kinds[row.same_as] > 1 else row for row in rows]


def write(rows: Sequence[Signature]) -> None:
    """The table, in the order of `rows`."""
    lines = ["name\theads\tbody\thead\tpositions\tsame_as\tpublished\tshown"]
    for r in rows:
        alike = "" if r.same_as == r.name else r.same_as
        published = "yes" if r.published else "no"
        known = [r.name, ",".join(r.heads), r.body, r.head, r.positions, alike, published, r.shown]
        lines.append("\t".join(known))
    signatures.TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table() -> None:
    """Build everything, and write the table."""
    rows = [found for name in names() if (found := row(name)) is not None]
    place = {row.name: number for number, row in enumerate(rows)}

    def key(row: Signature) -> tuple[str, ...]:
        return (row.body, row.head, *row.heads)

    for number, (_, group) in enumerate(groupby(sorted(rows, key=lambda r: (key(r), place[r.name])), key)):
        alike = list(group)
        for found in same(alike) if len(alike) > 1 else ():
            rows[place[found.name]] = found
        if number % 50 == 0:
            print(number, file=sys.stderr)
    write(with_shown(rows))


# --- how many are recognised ------------------------------------------------------------------------


def saved(name: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of a network for three classes as people save it: its own head, others, and prefixes."""
    module = recognition.unfilled(lambda: made(name))
    state = module.state_dict()
    yield "own head", state
    yield "module.", {f"module.{key}": tensor for key, tensor in state.items()}
    yield (
        "Lightning",
        {**{f"model.{key}": t for key, t in state.items()}, "criterion.weight": torch.ones(3)},
    )
    path = signatures.table()[_place(name)].heads[0]
    last = module.get_submodule(path)
    if not isinstance(last, nn.Linear):
        return
    inputs = last.in_features
    deep = (nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 3))
    heads = {"Dropout, Linear": (nn.Dropout(), nn.Linear(inputs, 3)), "small MLP": deep}
    for kind, layers in heads.items():
        module.set_submodule(path, nn.Sequential(*layers))
        yield kind, {f"net.{key}": tensor for key, tensor in module.state_dict().items()}
    module.set_submodule(path, nn.Identity())
    body = {f"backbone.{key}": tensor for key, tensor in module.state_dict().items()}
    yield "head beside", {**body, "head.weight": torch.ones(3, inputs), "head.bias": torch.ones(3)}


def _place(name: str) -> int:
    return next(number for number, row in enumerate(signatures.table()) if row.name == name)


def check(count: int, seed: int) -> int:
    """Print a line for each failure, and the share that is found or among three; the number of failures."""
    from camkit.models.recognition import architecture_of, fit

    every = [row.name for row in signatures.table()]
    chosen = [n for n in every if n.startswith("torchvision:")]
    chosen += random.Random(seed).sample([n for n in every if n.startswith("timm:")], count)
    alike = {row.name: row.same_as for row in signatures.table()}
    total = found = named = wrong = 0
    slowest = 0.0
    for name in chosen:
        for kind, state in saved(name):
            total += 1
            begun = time.perf_counter()
            checkpoint = Checkpoint(Path("weights.pth"), state)
            try:
                found_here = architecture_of(checkpoint)
                got = found_here.name
                fitted = fit(got, checkpoint)
                right = alike[got] == alike[name] and fitted.architecture["num_classes"] == 3
                told = len(found_here.others) < 3 and alike[name] in [alike[n] for n in found_here.others]
                found += right
                named += told and not right
                wrong += not (right or told)
                text = "" if right or told else f"taken for {got}, {fitted.architecture}"
            except ModelError as error:
                text = str(error)
                if f" {name}" in text or f" {alike[name]}" in text:
                    named, text = named + 1, ""
            slowest = max(slowest, time.perf_counter() - begun)
            if text:
                print(f"{name} ({kind}): {text}")
    print(f"{total} files: {found} found, {named} named, {wrong} wrong, slowest {slowest:.2f} s")
    return total - found - named


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=int, metavar="N", help="recognise N models of timm, write nothing")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.check is None:
        table()
    else:
        sys.exit(check(arguments.check, arguments.seed) > 0)
