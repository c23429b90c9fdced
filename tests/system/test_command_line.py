"""The command line as a whole: what it says of itself, and how soon."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from system_kit import RECEIVER, environment

from receiver.cli import COMMANDS, load


@pytest.mark.parametrize(("name", "sentence"), [(name, sentence) for name, _, _, sentence in COMMANDS])
def test_what_help_says_of_a_command_is_what_the_command_says_first(name: str, sentence: str) -> None:
    command = load(name)
    told = " ".join(inspect.cleandoc(command.help).partition("\n\n")[0].split())
    assert told == sentence


def test_help_names_every_command(tmp_path: Path) -> None:
    ended = subprocess.run([RECEIVER, "--help"], env=environment(tmp_path), capture_output=True, text=True, check=True)
    for name, *_ in COMMANDS:
        assert f" {name} " in ended.stdout


_HELP = """
import json, sys
sys.argv = ["receiver", "--help"]
from receiver.cli import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_help_waits_for_nothing_that_only_a_command_needs(tmp_path: Path) -> None:
    """So that it is there at once; it is what completion starts, too."""
    ended = subprocess.run([sys.executable, "-c", _HELP], env=environment(tmp_path), capture_output=True, text=True, check=True)
    loaded = set(json.loads(ended.stderr))
    assert {"typer", "receiver.errors"} <= loaded
    assert not loaded & {"sqlalchemy", "pydantic", "httpx", "starlette", "cryptography", "uvicorn", "receiver.app"}


@pytest.mark.parametrize("args", [["nosuch"], ["jobs", "--nosuch"], ["job"], []])
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, args: list[str]) -> None:
    ended = subprocess.run([RECEIVER, *args], env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    if args:
        (line,) = ended.stderr.splitlines()
        assert "--help" in line


def test_a_command_is_loaded_whole_by_its_name() -> None:
    assert [parameter.name for parameter in load("sign").params] == ["file", "event", "as_json"]
    assert isinstance(load("jobs"), typer.core.TyperCommand)
