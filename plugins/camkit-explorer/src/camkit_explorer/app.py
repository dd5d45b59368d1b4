"""The explorer as an ASGI application: addresses, and what each answers."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import unquote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, Router

from camkit.errors import CamkitError, printable, typed_reason
from camkit.plugin import Photo, make, plugin_names
from camkit_explorer import asking, colours, lines
from camkit_explorer.jobs import Busy, Jobs
from camkit_explorer.models import Ready
from camkit_explorer.questions import MAX_CLASSES, SIDE, Question
from camkit_explorer.security import MAX_UPLOAD, Guard, Policy
from camkit_explorer.session import Photograph, Session

T = TypeVar("T")

# What can be asked for below /static/, and its type. Nothing else is ever read from there.
STATIC = {
    "explorer.css": "text/css; charset=utf-8",
    "explorer.js": "text/javascript; charset=utf-8",
    "drawing.js": "text/javascript; charset=utf-8",
    "saving.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
BINARY = "application/octet-stream"

Compute = Callable[[Ready, Photo, Question], bytes | dict[str, Any]]

# What is computed from a photograph, by the last part of its address.
COMPUTED: dict[str, Compute] = {
    "maps": asking.maps,
    "record": asking.record,
    "beside": asking.beside,
    "cover": asking.cover,
    "curves": asking.curves,
    "sanity": asking.sanity,
}


def create_app(session: Session, policy: Policy, jobs: Jobs | None = None) -> Guard:
    """The explorer for those whom `policy` lets in; jobs: who does what the model has to do."""
    return Guard(Router(Explorer(session, jobs or Jobs()).routes(), redirect_slashes=False), policy)


Handler = Callable[[Request], Awaitable[Response]]


def answering(handler: Handler) -> Handler:
    """A handler whose errors become one line for people, as JSON."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except CamkitError as error:
            return as_json({"error": str(error)}, 422)
        except Busy as error:
            return as_json({"error": str(error)}, 503)
        # Whatever a model or a plugin raises: the page says it, and goes on.
        except Exception as error:
            return as_json({"error": f"unexpected {typed_reason(error)}"}, 500)

    return answer


def as_json(data: Any, status: int = 200) -> Response:
    """JSON, in which a lone surrogate of a file's name is escaped."""
    return Response(json.dumps(data, allow_nan=False), status, media_type="application/json")


def as_jpeg(photo: Photo, quality: int) -> Response:
    """What is shown of a photograph."""
    buffer = io.BytesIO()
    photo.image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return Response(buffer.getvalue(), media_type="image/jpeg")


class Explorer:
    """The handlers, with what they share."""

    def __init__(self, session: Session, jobs: Jobs) -> None:
        self._session, self._jobs = session, jobs
        templates = Environment(
            loader=PackageLoader("camkit_explorer"), autoescape=True, undefined=StrictUndefined
        )
        self._page = templates.get_template("page.html").render()
        folder = files("camkit_explorer") / "static"
        self._static = {name: (folder / name).read_bytes() for name in STATIC}

    def routes(self) -> list[Route]:
        """All addresses."""
        photograph = "/photographs/{number:int}"
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/", self.page),
            ("GET", "/static/{name}", self.static),
            ("GET", "/api/session", self.session),
            ("GET", "/api/backends/{name}", self.backend),
            ("GET", f"/api/models/{{model:int}}{photograph}/picture", self.picture),
            ("GET", f"/api{photograph}/thumbnail", self.thumbnail),
            ("POST", "/api/photographs", self.add),
            ("POST", "/api/model", self.model),
            ("POST", "/api/lines", self.lines),
            *(("POST", f"/api/{name}", partial(self.computed, work)) for name, work in COMPUTED.items()),
        ]
        return [Route(path, answering(handler), methods=[method]) for method, path, handler in table]

    async def page(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(self._page)

    async def static(self, request: Request) -> Response:
        """A file of the page."""
        name = request.path_params["name"]
        if name not in STATIC:
            return Response("Not Found", 404)
        return Response(self._static[name], headers={"content-type": STATIC[name]})

    async def session(self, request: Request) -> Response:
        """What there is: models, backends, photographs, colours."""
        photographs = self._session.photographs
        return as_json(
            {
                "models": self._session.models.specs,
                "model": facts(await self._ready(0)),
                "backends": plugin_names("explainer"),
                "photographs": [entry(one) for one in photographs],
                "is_cut": photographs.is_cut,
                "colours": colours.tables(),
                "fills": list(asking.FILLS),
                "limits": {"side": SIDE, "upload": MAX_UPLOAD, "classes": MAX_CLASSES},
            }
        )

    async def model(self, request: Request) -> Response:
        """A model of the list, which is loaded if it is not."""
        return as_json(facts(await self._ready(Question.read(await request.body()).model)))

    async def backend(self, request: Request) -> Response:
        """The methods of a backend."""
        name = request.path_params["name"]
        explainer = await self._jobs.do(lambda: make("explainer", name))
        return as_json(
            {"name": name, "methods": explainer.methods, "notes": dict(explainer.notes)},
        )

    async def add(self, request: Request) -> Response:
        """Take a photograph; its name comes percent-encoded in `x-name`."""
        name = unquote(request.headers.get("x-name", "")).replace("\\", "/").rpartition("/")[2]
        name = printable(name.encode("utf-8", "replace").decode())[-120:] or "pasted.png"
        preprocess = (await self._ready(0)).model.preprocess
        data = await request.body()
        made = await asyncio.to_thread(self._session.photographs.add, name, data, preprocess)
        return as_json(entry(made))

    async def picture(self, request: Request) -> Response:
        """A photograph, upright and at most 1,024 pixels long, as it is shown with the maps of a model."""
        photographs = self._session.photographs
        photograph = photographs[request.path_params["number"]]
        preprocess = (await self._ready(request.path_params["model"])).model.preprocess
        read = await asyncio.to_thread(photographs.read, photograph, preprocess)
        return await asyncio.to_thread(as_jpeg, read, 92)

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of a photograph."""
        photographs = self._session.photographs
        photograph = photographs[request.path_params["number"]]
        read = await asyncio.to_thread(photographs.thumbnail, photograph)
        return await asyncio.to_thread(as_jpeg, read, 80)

    async def computed(self, work: Compute, request: Request) -> Response:
        """What the model has to compute."""
        question = Question.read(await request.body())
        ready = await self._ready(question.model)
        self._check_class(ready, question)
        photographs = self._session.photographs
        photo = await asyncio.to_thread(
            photographs.read, photographs[question.photograph], ready.model.preprocess
        )
        found = await wanted(request, self._jobs.do(lambda: work(ready, photo, question)))
        return Response(found, media_type=BINARY) if isinstance(found, bytes) else as_json(found)

    async def lines(self, request: Request) -> Response:
        """The command and the Python that make what is shown."""
        question = Question.read(await request.body())
        ready = await self._ready(question.model)
        self._check_class(ready, question)
        return as_json(lines.lines(ready, self._session.photographs[question.photograph], question))

    async def _ready(self, number: int) -> Ready:
        models = self._session.models
        loaded = models.loaded(number)
        return await self._jobs.do(lambda: models[number]) if loaded is None else loaded

    @staticmethod
    def _check_class(ready: Ready, question: Question) -> None:
        count = len(ready.model.classes)
        if max(question.target, *(question.classes or (0,))) >= count:
            raise CamkitError(f"the model has {count} classes only")


async def wanted(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """The answer; it is given up, as `Busy`, when the client goes away."""
    working = asyncio.create_task(answer)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Busy("Nobody waits for the answer.")
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def entry(photograph: Photograph) -> dict[str, Any]:
    """A photograph in the list of the page."""
    return {"number": photograph.number, "name": printable(photograph.name)}


def facts(ready: Ready) -> dict[str, Any]:
    """A model for the page."""
    model = ready.model
    return {
        "name": model.name,
        "note": model.note,
        "classes": model.classes,
        "layers": [{"name": layer.name, "grid": layer.grid} for layer in ready.layers],
        "automatic": ready.automatic,
        "size": model.preprocess.seen,
    }
