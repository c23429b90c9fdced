"""What the entry points' tests share: a PostgreSQL, and the image, built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from databases import postgresql, postgresql_url
from deploy.image_kit import ROOT, Network, Root, Stage, image

__all__ = ["postgresql", "postgresql_url"]

STATE = "/var/lib/receiver"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Root, Stage]]:
    """The image as a root, read-only but for its volume and the folder that systemd would make; and what its last stage says."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "hosts").write_text("127.0.0.1 localhost postgres\n")
    with image(ROOT / "deploy/docker/Dockerfile", folder) as (root, stage):
        root.outside("mkdir", "-p", root.top + STATE)
        root.outside("mount", "--bind", f"{folder}/hosts", f"{root.top}/etc/hosts")
        root.seal(stage.last("VOLUME"), STATE)
        yield root, stage


@pytest.fixture
def network() -> Iterator[Network]:
    """One with nothing in it."""
    network = Network()
    yield network
    network.close()
