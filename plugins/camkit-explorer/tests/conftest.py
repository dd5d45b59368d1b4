"""A small model, a session without files of anybody, and the explorer as a server of its own."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from camkit_explorer.app import create_app
from camkit_explorer.jobs import Jobs
from camkit_explorer.models import Models
from camkit_explorer.security import Guard, Policy
from camkit_explorer.server import listening, serving
from camkit_explorer.session import Given, Photographs, Session
from PIL import Image
from torch import Tensor, nn

from camkit import LoadedModel, Preprocess
from camkit.plugin import photo_reader, sample_image

SIZE = (64, 64)
CLASSES = (
    "Abyssinian",
    "tiger cat",
    "Deutsch Kurzhaariger Vorstehhund mit außergewöhnlich langem Namen",
    "阿比西尼亚猫与孟加拉豹猫的混种小猫",
    "<img src=x onerror=alert(1)>",
    "dog",
)
SPECS = ("pets", "other.pth")


class Net(nn.Module):
    """Convolutions, a global mean and a linear layer: a gradcam sums up to the score less the bias."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1))
        self.rest = nn.Sequential(nn.Identity())
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.rest(self.high(self.middle(self.low(x)))).mean((2, 3)))
        return scores


def small_model(spec: str = "pets") -> LoadedModel:
    """The same for the same specification."""
    torch.manual_seed(len(spec))
    net = Net(len(CLASSES)).eval()
    with torch.no_grad():
        net.head.weight *= 20  # so that the classes differ
    names = CLASSES if spec == "pets" else tuple(f"{spec} {i}" for i in range(len(CLASSES)))
    return LoadedModel(net, names, Preprocess(SIZE), spec, default_layer="high")


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Makes a picture as a file."""

    def made(size: tuple[int, int] = (90, 60), colour: str = "orange") -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, "PNG")
        return buffer.getvalue()

    return made


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def read() -> Iterator[Callable[..., Any]]:
    """The reader of photographs, with its process."""
    with photo_reader() as made:
        yield made


@pytest.fixture(scope="session")
def small() -> Callable[..., LoadedModel]:
    """Makes a model of a specification."""
    return small_model


@pytest.fixture(scope="session")
def models() -> Models:
    """Two, of which the first is loaded; nothing that is asked of them changes them."""
    made = Models(SPECS, small_model)
    assert made[0].model.name == "pets"
    return made


@pytest.fixture
def session(models: Models, read: Callable[..., Any]) -> Session:
    """The two models and the bundled photograph."""
    return Session(models, Photographs([Given("chelsea.png", sample_image())], read))


@pytest.fixture
def policy() -> Policy:
    return Policy(port=80)


@pytest.fixture
def app(session: Session, policy: Policy) -> Guard:
    return create_app(session, policy)


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[str]]:
    """Runs a server."""
    return running


@contextmanager
def running(session: Session, jobs: Jobs | None = None) -> Iterator[str]:
    """The address, with its token, of a server in a thread."""
    bound = listening("127.0.0.1", 0)
    policy = Policy(bound.getsockname()[1])
    jobs = jobs or Jobs()
    server = serving(create_app(session, policy, jobs))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server does not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{policy.port}/?token={policy.token}"
    finally:
        server.should_exit = True
        thread.join(10)
        jobs.end()
        assert not thread.is_alive()
