"""The Dockerfile's own steps, run without Docker: each stage in a root of its own, this machine's files with a layer over them.

What a `docker build` does that is not done here: fetching the base image. This machine's files, with the Python that runs the tests
at /usr/local, stand for it. The container is a process of the image's user in a root that is read-only but for its volumes, with a
network of its own. Needs root, and Linux.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_numbers = itertools.count()
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """A stage's lines in order, and what they leave behind."""

    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str:
        return [rest for word, rest in self.lines if word == keyword][-1]

    def words(self, keyword: str) -> list[str]:
        """Of an ENTRYPOINT, a CMD or a HEALTHCHECK in its JSON form."""
        listed: list[str] = json.loads(re.sub(r"^(--\S+ )*(CMD )?", "", self.last(keyword)))
        return listed


def stages(dockerfile: Path) -> list[Stage]:
    """What it says, its continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            found.append(Stage(rest.rpartition(" AS ")[2]))
        elif keyword and found:
            found[-1].lines.append((keyword, rest.strip()))
    return found


class Root:
    """A root to change into, in a mount namespace of its own that lasts until `close`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "root"
        self.path.mkdir(parents=True)
        script = f"""
            mount --make-rprivate /
            mount -t tmpfs layers {folder}/root
            mkdir {folder}/root/upper {folder}/root/work {folder}/root/top
            mount -t overlay root -o lowerdir=/,upperdir={folder}/root/upper,workdir={folder}/root/work {folder}/root/top
            mount --bind {sys.base_prefix} {folder}/root/top/usr/local
            mount -o remount,ro,bind {folder}/root/top/usr/local
            mount --bind /dev {folder}/root/top/dev
            mount -t proc proc {folder}/root/top/proc
            mount -t tmpfs tmp {folder}/root/top/tmp
            echo ready; read _
        """
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.top = f"{folder}/root/top"
        # The stand-in's Python may look for its library where it was built, which others than root need not be able to read.
        self.environment: dict[str, str] = {"PATH": _PATH, "HOME": "/root", "LD_LIBRARY_PATH": "/usr/local/lib"}
        self.workdir = "/"
        self.user = "0:0"

    def outside(self, *command: str) -> None:
        """Run, in the namespace, without changing into the root."""
        subprocess.run([*self.enter, *command], check=True)

    def inside(self, *command: str, network: str | None = None, **environment: str) -> list[str]:
        """The command line that runs `command` in the root, as its user, where it works, with nothing else in its environment."""
        pairs = [f"{name}={value}" for name, value in (self.environment | environment).items()]
        enter = [*self.enter, *([f"--net={network}"] if network else [])]
        cd = ["sh", "-c", 'cd "$0" && exec "$@"', self.workdir]
        return [*enter, "chroot", f"--userspec={self.user}", "--groups=", self.top, "env", "-i", *pairs, *cd, *command]

    def build(self, stage: Stage, before: Mapping[str, Root]) -> None:
        """Do what the stage says, line by line."""
        for keyword, rest in stage.lines:
            if keyword == "RUN":
                network = {name: value for name, value in os.environ.items() if name.lower().startswith(("pip_", "http", "ssl_"))}
                subprocess.run(self.inside("sh", "-c", rest, **network), check=True)
            elif keyword == "COPY":
                self._copy(shlex.split(rest), before)
            elif keyword == "ENV":
                for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
                    self.environment[name] = value.replace("$PATH", self.environment["PATH"])
            elif keyword == "WORKDIR":
                self.workdir = rest
                self.outside("mkdir", "-p", f"{self.top}{rest}")
            elif keyword == "USER":
                self.user = rest

    def _copy(self, words: list[str], before: Mapping[str, Root]) -> None:
        source = before[words.pop(0).partition("=")[2]] if words[0].startswith("--from=") else None
        *files, target = words
        place = target if target.startswith("/") else f"{self.workdir}/{target}"
        for file in files:
            to = f"{self.top}{place}{Path(file).name}" if place.endswith("/") else f"{self.top}{place}"
            self.outside("mkdir", "-p", str(Path(to).parent))
            if source is None:
                self.outside("cp", "-r", f"{ROOT}/{file}", to)
            else:
                # Through a pipe: each has mounts that the other does not see.
                packed = [*source.enter, "tar", "-C", source.top, "-c", file.lstrip("/")]
                with subprocess.Popen(packed, stdout=subprocess.PIPE) as take:
                    subprocess.run([*self.enter, "tar", "-C", self.top, "-x"], stdin=take.stdout, check=True)
                assert take.returncode == 0

    @property
    def enter(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]

    def seal(self, *volumes: str) -> None:
        """Read-only from here on, but for the volumes: they begin empty, and belong to the image's user."""
        user, _, group = self.user.partition(":")
        for volume in volumes:
            self.outside("mount", "-t", "tmpfs", "-o", f"uid={user},gid={group},mode=0700", "volume", f"{self.top}{volume}")
        self.outside("mount", "-o", "remount,ro,bind", self.top)
        self.outside("mount", "-o", "remount,ro", f"{self.top}/tmp")

    def close(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()


@contextmanager
def image(dockerfile: Path, folder: Path) -> Iterator[tuple[Root, Stage]]:
    """Build it; the last stage's root, unsealed, and what that stage says."""
    roots: dict[str, Root] = {}
    said = stages(dockerfile)
    try:
        for stage in said:
            roots[stage.name] = root = Root(folder / f"stage-{len(roots)}")
            root.build(stage, roots)
        yield root, said[-1]
    finally:
        for each in roots.values():
            each.close()


class Network:
    """A network namespace with a loopback of its own, and nothing else unless it is plugged in."""

    def __init__(self) -> None:
        self.name = name = f"receiver-{os.getpid()}-{next(_numbers)}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    def close(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


class Container:
    """A process in a root and a network; its log as it comes."""

    def __init__(self, root: Root, network: Network, command: Sequence[str], **environment: str) -> None:
        self.log: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            root.inside(*command, network=network.path, **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._news:
                    self.log.append(line)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def says(self, words: str, within: float = 30.0) -> None:
        """Wait until a line of its log has these words."""
        with self._news:
            self._news.wait_for(lambda: self._ended or any(words in line for line in self.log), within)
            if any(words in line for line in self.log):
                return
        self.kill()
        raise AssertionError("".join(self.log))

    def stop(self, within: float = 15.0) -> int:
        """SIGTERM; how it ended."""
        self.process.terminate()
        return self.process.wait(within)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
