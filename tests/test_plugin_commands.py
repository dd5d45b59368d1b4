"""Commands that packages add to `camkit`: found without being imported, and run as camkit's own are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import Result
from tests.conftest import runner

from camkit.cli import COMMANDS, cli
from camkit.errors import BrokenPlugin
from camkit.registry import discovery, loading

MODULE = '''
import click

from camkit.errors import UsageError

@click.command()
@click.argument("word")
def say(word):
    """Say a word."""
    if word == "nothing":
        raise UsageError("'nothing' is no word: say something")
    click.echo(word)

@click.group()
def talk():
    """Talk about something."""

talk.add_command(say)
number = 7
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "camkit_talk.py").write_text(MODULE)
    info = tmp_path / "camkit_talk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-talk\nVersion: 1.0\n")
    names = {"say": "say", "talk": "talk", "seven": "number", "explain": "say"}
    lines = "".join(f"{name} = camkit_talk:{value}\n" for name, value in names.items())
    (info / "entry_points.txt").write_text(f"[camkit.commands]\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "camkit_talk", raising=False)
    loading.load.cache_clear()


def camkit_(*words: str) -> Result:
    return runner().invoke(cli, list(words))


@pytest.mark.usefixtures("package")
def test_a_command_of_a_package_runs_like_one_of_camkit() -> None:
    assert camkit_("--help").exit_code == 0 and "camkit_talk" not in sys.modules
    listed = camkit_("plugin", "list")
    assert listed.exit_code == 0 and "Say a word." in listed.stdout and "camkit_talk" not in sys.modules
    said = camkit_("say", "hello")
    assert (said.exit_code, said.stdout) == (0, "hello\n")
    assert camkit_("talk", "say", "more").stdout == "more\n"
    assert "--debug" in camkit_("say", "--help").stdout
    wrong = camkit_("say", "nothing")
    assert (wrong.exit_code, wrong.stderr) == (2, "Error: 'nothing' is no word: say something\n")
    assert "'say'" in camkit_("sai", "x").stderr or camkit_("sai", "x").exit_code == 2
    shown = camkit_("plugin", "show", "say")
    assert shown.exit_code == 0 and shown.stdout.startswith(
        "say: Say a word.\ncommand from camkit-talk 1.0"
    )
    held = camkit_("plugin", "check", "say")
    assert held.exit_code == 0, held.stdout
    assert "all checks pass" in held.stdout


@pytest.mark.usefixtures("package")
def test_what_is_no_command_hurts_nobody_and_built_in_names_are_taken() -> None:
    found = {one.name: one for one in discovery.find("command")}
    assert "'explain' is built into camkit" in (found["explain"].problem or "")
    with pytest.raises(BrokenPlugin, match=r"camkit_talk:number .*click\.Command"):
        loading.load(found["seven"])
    broken = camkit_("seven")
    assert broken.exit_code == 1 and broken.stderr.startswith("Error: command 'seven' from camkit-talk 1.0")
    assert camkit_("explain", "--help").stdout.startswith("Usage: cli explain [OPTIONS] [IMAGES]")
    assert set(discovery.COMMANDS) == set(COMMANDS)
