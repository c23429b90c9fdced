"""What a sandbox can't be made with, it says when it is made."""

from typing import Any

import pytest

from receiver.sandbox import BackgroundSandbox, OptionError, Sandbox


@pytest.mark.parametrize("made", [Sandbox, BackgroundSandbox])
@pytest.mark.parametrize("name", ["secret", "webhook_secret"])
@pytest.mark.parametrize("secret", ["short", "", "x" * 15, "x" * 257])
def test_a_secret_that_reader_would_not_take_is_refused(made: Any, name: str, secret: str) -> None:
    with pytest.raises(OptionError, match=f"^secret: 16 to 256 characters, not {len(secret)}$"):
        made(**{name: secret})


@pytest.mark.parametrize("name", ["secret", "webhook_secret"])
@pytest.mark.parametrize("length", [16, 256])
def test_a_secret_of_any_length_that_reader_takes_is_the_one_that_signs(name: str, length: int) -> None:
    with BackgroundSandbox(**{name: "x" * length}) as reader:
        assert reader.secret == "x" * length


def test_one_secret_under_both_names_is_one_too_many() -> None:
    with pytest.raises(OptionError, match=r"^secret: "):
        Sandbox(secret="x" * 16, webhook_secret="y" * 16)
