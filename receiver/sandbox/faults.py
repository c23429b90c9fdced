"""The settings of the switches as they stand, and whether a fault strikes now."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from receiver.sandbox.draws import draw
from receiver.sandbox.switches import SWITCHES, Switch

_KEYS: Final = frozenset({"rate", "value", "times", "after", "match"})
_MOST: Final = 1e9
"""The largest number a setting may hold: beyond it lie only overflows."""


class FaultError(ValueError):
    """A setting can't be had; the message says which, and what it takes."""


@dataclass(slots=True)
class _Setting:
    given: Any
    """As it was set, for whoever asks."""
    rate: float = 1.0
    value: float | str | None = None
    times: int | None = None
    after: int = 0
    match: str = ""


class Faults(MutableMapping[str, Any]):
    """Name → setting. Assigning switches at once; deleting, or assigning None, switches back.

    A setting is a number, a bool, a string, or for finer work a dict:
    `{"rate": 1, "times": 2, "after": 1, "match": "/v1/jobs", "value": …}` strikes twice, after letting one
    pass, and only where the text is part of what it is about: "GET /v1/jobs/job_1?limit=20" for a request,
    "job.completed job_1" for a delivery, the job's id for what a job's answer says.
    Unknown names and impossible settings raise `FaultError`.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._set: dict[str, _Setting] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._runs: dict[str, dict[str, int]] = {}

    def __getitem__(self, name: str) -> Any:
        setting = self._set.get(name)
        return setting.given if setting is not None else _switch(name).default

    def __setitem__(self, name: str, given: Any) -> None:
        switch = _switch(name)
        if given is None or given is False or (switch.kind == "rate" and given == 0):
            del self[name]
        else:
            self._set[name] = _read(switch, given)
            self._runs.pop(name, None)

    def __delitem__(self, name: str) -> None:
        self._set.pop(_switch(name).name, None)
        self._runs.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(SWITCHES)

    def __len__(self) -> int:
        return len(SWITCHES)

    def clear(self) -> None:
        """Switch everything back."""
        self._set.clear()
        self._counts.clear()
        self._runs.clear()

    def replace(self, settings: MutableMapping[str, Any] | dict[str, Any]) -> None:
        """Exactly these, or, when one of them can't be had, no change at all."""
        read = {name: _read(_switch(name), given) for name, given in settings.items() if given is not None}
        self.clear()
        self._set.update(read)

    def merge(self, settings: dict[str, Any]) -> None:
        """These as well, or, when one of them can't be had, no change at all. An empty dict clears all."""
        if not settings:
            self.clear()
            return
        trial = Faults(self._seed)
        for name, given in settings.items():
            trial[name] = given
        for name, given in settings.items():
            self[name] = given

    @property
    def active(self) -> dict[str, Any]:
        """What has been set."""
        return {name: setting.given for name, setting in self._set.items()}

    def choice(self, name: str) -> str:
        """A choice or text as it stands; empty for a text that is not set."""
        setting = self._set.get(name)
        return str(setting.value if setting is not None else _switch(name).default or "")

    def strikes(self, name: str, *about: object, subject: str = "") -> Hit | None:
        """Whether the fault strikes, drawn from what it is about: asked again, it answers the same."""
        setting = self._set.get(name)
        if setting is None or setting.match not in subject or setting.times == 0:
            return None
        if setting.after > 0:
            setting.after -= 1
            return None
        if draw(self._seed, name, *about) >= setting.rate:
            return None
        if setting.times is not None:
            setting.times -= 1
        return Hit(name, setting.value if setting.value is not None else SWITCHES[name].value)

    def begin_run(self, name: str, about: str, times: int) -> None:
        """The fault strikes so many times more, whatever is drawn: until it is set anew or switched back."""
        self._runs.setdefault(name, {})[about] = times

    def in_run(self, name: str, about: str) -> bool:
        """Whether the fault strikes because a run of it is not over; counts this time."""
        runs = self._runs.get(name, {})
        left = runs.pop(about, 0)
        if left > 1:
            runs[about] = left - 1
        return left > 0

    def next_strikes(self, name: str, about: str, *, subject: str = "") -> Hit | None:
        """The same for what happens again and again: drawn for the n-th time it is asked about this."""
        if name not in self._set:
            return None
        n = self._counts[name, about] = self._counts.get((name, about), 0) + 1
        return self.strikes(name, about, n, subject=subject)


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that strikes."""

    name: str
    value: float | str | None

    def number(self) -> float:
        """Its value where that must be a number; 0 when it is none."""
        return float(self.value) if isinstance(self.value, int | float) else 0.0


def _switch(name: str) -> Switch:
    try:
        return SWITCHES[name]
    except KeyError:
        raise FaultError(f"there is no fault {name!r}; there are: {', '.join(SWITCHES)}") from None


def _read(switch: Switch, given: Any) -> _Setting:
    if isinstance(given, str) and switch.kind in {"rate", "seconds"}:
        given = _from_text(given)
    if isinstance(given, dict):
        return _read_dict(switch, given)
    setting = _Setting(given)
    if switch.kind == "rate":
        setting.rate = _rate(switch, given)
    else:
        setting.value = _value(switch, given)
    return setting


def _read_dict(switch: Switch, given: dict[str, Any]) -> _Setting:
    odd = given.keys() - _KEYS
    if odd or switch.kind not in {"rate", "seconds"}:
        raise FaultError(f"{switch.name}: {_takes(switch)}, not {given!r}")
    setting = _Setting(given, rate=_rate(switch, given.get("rate", 1)), match=str(given.get("match", "")))
    for name in ("times", "after"):
        count = given.get(name)
        if count is None:
            continue
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise FaultError(f"{switch.name}: {name!r} is a count, not {count!r}")
        setattr(setting, name, count)
    value = given.get("value")
    if value is not None and switch.allowed and (isinstance(value, bool) or value not in switch.allowed):
        raise FaultError(f"{switch.name}: 'value' is one of {', '.join(map(str, switch.allowed))}, not {value!r}")
    if isinstance(switch.value, int | float) and value is not None:
        value = _amount(switch, value)
    elif value is not None and (isinstance(value, bool) or not isinstance(value, int | float | str)):
        raise FaultError(f"{switch.name}: 'value' is a number or text, not {value!r}")
    setting.value = _value(switch, value) if switch.kind == "seconds" else value
    return setting


def _from_text(text: str) -> Any:
    """What a flag or the environment holds: a number, true, false, a JSON object, or a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _value(switch: Switch, given: Any) -> float | str:
    if switch.kind == "seconds":
        return _amount(switch, given)
    if switch.kind == "choice":
        given = str(given)
        if given not in switch.values:
            raise FaultError(f"{switch.name}: {_takes(switch)}, not {given!r}")
        return str(given)
    if not isinstance(given, str):
        raise FaultError(f"{switch.name}: {_takes(switch)}, not {given!r}")
    return given


def _rate(switch: Switch, given: Any) -> float:
    if isinstance(given, int | float) and 0 <= given <= 1:
        return float(given)
    raise FaultError(f"{switch.name}: {_takes(switch)}, not {given!r}")


def _amount(switch: Switch, given: Any) -> float:
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= _MOST:
        return float(given)
    raise FaultError(f"{switch.name}: {_takes(switch)}, not {given!r}")


def _takes(switch: Switch) -> str:
    return {
        "rate": "a rate from 0 to 1, or an object with 'rate', 'times', 'after', 'match', 'value'",
        "seconds": "seconds, 0 or more, or an object with 'value', 'rate', 'times', 'after', 'match'",
        "choice": f"one of {', '.join(switch.values)}",
        "text": "a text",
    }[switch.kind]
