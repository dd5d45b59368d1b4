"""`camkit explore`: what the command line says, and the start of everything."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from camkit.errors import UsageError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from camkit.plugin import LoadedModel
    from camkit_explorer.security import Policy
    from camkit_explorer.session import Given

# Always in the list of the page, after those that were named.
BUNDLED = ("pets", "imagenet")


@click.command()
@click.argument("photographs", nargs=-1, metavar="[PHOTOS|RUN]...")
@click.option(
    *("--model", "models"),
    multiple=True,
    metavar="SPEC",
    help="As for `camkit explain`: pets, imagenet, a file, a bundle, timm:NAME, ...; repeatable.",
)
@click.option(
    "--classes", metavar="FILE|A,B,C", help="Of CLIP and SigLIP: what each --model tells apart, in words."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="a free one")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--i-know", is_flag=True, help="Listen where others on the network can reach it.")
@click.option("--no-open", is_flag=True, help="Only print the address.")
@click.option("--device", default="auto", show_default=True, help="Where the model runs.")
@click.option("--trust-pickle", is_flag=True, help="Let a model source load pickles. They run code.")
def explore(
    photographs: tuple[str, ...],
    models: tuple[str, ...],
    classes: str | None,
    port: int,
    host: str,
    i_know: bool,
    no_open: bool,
    device: str,
    trust_pickle: bool,
) -> None:
    """Play with the maps of photographs in the browser.

    PHOTOS are files, folders or globs; RUN is a folder that `camkit explain` wrote, whose photographs and
    model are taken. Without any it begins with the bundled photograph. More can be dropped into the page.
    Only this machine, and only who has the printed address, can open it. Ctrl-C ends it.

    \b
    camkit explore
    camkit explore photos/ --model weights.pth --model pets
    camkit explore camkit-out --no-open
    camkit explore photos/ --model hf:openai/clip-vit-base-patch32 --classes cat,dog
    """
    # Nothing of this is needed for --help.
    from camkit_explorer.server import is_loopback, listening

    if not is_loopback(host) and not i_know:
        raise UsageError(
            f"--host {host} lets others on the network reach the explorer, unencrypted; --i-know says that "
            "you want this"
        )
    if classes is not None:
        models = with_classes(models, classes)
    found, of_run = sources(photographs)
    specs = list(dict.fromkeys([*(models or of_run or BUNDLED[:1]), *BUNDLED]))
    bound = listening(host, port)

    import camkit

    def load(spec: str) -> camkit.LoadedModel:
        return camkit.load_model(spec, device=device, trust_pickle=trust_pickle)

    _serve(found, specs, load, bound, host, shown=not no_open)


def _serve(
    found: list[Given],
    specs: list[str],
    load: Callable[[str], LoadedModel],
    bound: socket.socket,
    host: str,
    *,
    shown: bool,
) -> None:
    """Answer until Ctrl-C. shown: whether the page is opened."""
    from camkit.plugin import photo_reader
    from camkit_explorer.app import create_app
    from camkit_explorer.jobs import Jobs, one_arena
    from camkit_explorer.models import Models
    from camkit_explorer.server import address_of, has_display, open_browser, serving
    from camkit_explorer.session import MAX_LISTED, Photographs, Session

    one_arena()
    jobs = Jobs()
    with photo_reader() as read:  # its process starts while the model is loaded
        known = Models(specs, load)
        # In the thread that works with it: a second pool of torch's threads would take half of its time.
        first = jobs.now(lambda: known[0]).model
        if first.note:
            click.echo(f"Note: {first.note}", err=True)
        if len(found) > MAX_LISTED:
            click.echo(f"Note: only the first {MAX_LISTED:,} photographs are listed", err=True)
        policy, address = _policy(bound, host), address_of(bound, host)

        def begun() -> None:
            text = f"Explaining with {first.name}; Ctrl-C ends it. Open this address:"
            click.echo(text, err=True)
            click.echo(f"{address}/?token={policy.token}")
            if shown and has_display():
                open_browser(f"{address}/?token={policy.ticket()}")

        app = create_app(Session(known, Photographs(found, read)), policy, jobs)
        try:
            serving(app, begun).run(sockets=[bound])
        except KeyboardInterrupt:  # which is how it ends
            pass
        finally:
            jobs.end()


def _policy(bound: socket.socket, host: str) -> Policy:
    """Who may ask: where others may, also by the name of this machine."""
    import socket

    from camkit_explorer.security import Policy
    from camkit_explorer.server import is_loopback

    port = bound.getsockname()[1]
    if is_loopback(host):
        return Policy(port)
    return Policy(port, Policy(port).hosts | {host.lower(), socket.gethostname().lower()}, addresses=True)


def with_classes(models: Sequence[str], classes: str) -> tuple[str, ...]:
    """The specifications of models that are told what to tell apart; `UsageError` where they take none."""
    from camkit.plugin import told_classes

    if not models:
        raise UsageError("--classes is for a --model that is told what to tell apart: give one")
    return tuple(told_classes(spec, classes) for spec in models)


def sources(given: Sequence[str]) -> tuple[list[Given], tuple[str, ...]]:
    """The photographs that are meant, and the model of a run if it is one.

    Raises `UsageError` for what is not there, and for a run whose photographs are gone.
    """
    from camkit.plugin import find_images, past_run, sample_image
    from camkit_explorer.session import MAX_LISTED, Given

    if not given:
        return [Given("chelsea.png", sample_image())], ()
    run = past_run(Path(given[0])) if len(given) == 1 else None
    if run is None:
        paths = list(islice(find_images(given), MAX_LISTED + 1))
        return [Given(path.name, path) for path in paths], ()
    if not run.photographs:
        raise UsageError(f"{given[0]} is a run of camkit, but none of its photographs is where it was")
    named = [Given(one.name, one.path, one.sha256) for one in run.photographs]
    return named, (run.model,) if run.model else ()
