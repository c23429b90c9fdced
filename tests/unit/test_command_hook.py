"""An event to a command: what it finds, what its end means, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from receiver.errors import HookError, ResultsPrunedError, StoreError
from receiver.hooks.command import CommandTarget
from receiver.hooks.target import EXCERPT, Answer, Delivery

pytestmark = pytest.mark.anyio

DATA = {"job": {"id": "job_1", "status": "completed"}, "generation": 2}
EVENT = {"type": "job.completed", "timestamp": "2024-04-05T00:00:00.000Z", "data": DATA}
PAYLOAD = json.dumps(EVENT)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """What the server runs on, and what others mount us in."""
    return "asyncio", {"use_uvloop": request.param}


def of(results: Iterable[bytes]) -> Callable[[int], AsyncIterator[list[bytes]]]:
    async def batches(most: int) -> AsyncIterator[list[bytes]]:
        rest = list(results)
        while rest:
            yield rest[:most]
            rest = rest[most:]

    return batches


def delivery(*results: bytes, attempt: int = 1) -> Delivery:
    return Delivery("evt_1", PAYLOAD, attempt, of(results))


def command(*args: str, timeout: float = 20.0, cwd: Path | None = None, **env: str) -> CommandTarget:
    return CommandTarget("index", args, timeout=timeout, cwd=None if cwd is None else str(cwd), env=env)


async def run(*args: str, results: Iterable[bytes] = (), attempt: int = 1, **how: Any) -> Answer:
    return await command(*args, **how).deliver(delivery(*results, attempt=attempt))


async def failure(*args: str, **how: Any) -> HookError:
    with pytest.raises(HookError) as caught:
        await run(*args, **how)
    return caught.value


def sh(script: str) -> tuple[str, str, str]:
    return "sh", "-c", script


def python(script: str, *args: str) -> tuple[str, ...]:
    return sys.executable, "-c", script, *args


async def until(condition: Callable[[], Any]) -> None:
    def look() -> None:
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end, "did not come true"
            time.sleep(0.01)

    await asyncio.to_thread(look)


async def gone(pid: int) -> None:
    """Until there is no such process, or but its grave."""
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


async def written(path: Path) -> None:
    await until(lambda: path.exists() and path.read_text().endswith("\n"))


# -- what it finds -----------------------------------------------------------------------------------------------------------


async def test_the_event_is_on_stdin_as_one_line_of_json_with_its_id(tmp_path: Path) -> None:
    await run(*sh("cat > stdin"), cwd=tmp_path)
    text = (tmp_path / "stdin").read_text()
    assert json.loads(text) == {"id": "evt_1", **EVENT}
    assert text.endswith("\n")
    assert text.count("\n") == 1


async def test_what_it_is_about_is_in_the_environment_too(tmp_path: Path) -> None:
    await run(*sh("env > env"), cwd=tmp_path, attempt=3)
    told = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if line.startswith("RECEIVER_"))
    assert told == {
        "RECEIVER_EVENT_ID": "evt_1",
        "RECEIVER_EVENT_TYPE": "job.completed",
        "RECEIVER_JOB_ID": "job_1",
        "RECEIVER_GENERATION": "2",
        "RECEIVER_HOOK": "index",
        "RECEIVER_ATTEMPT": "3",
        "RECEIVER_RESULTS_FD": "3",
    }


async def test_nothing_that_is_set_for_receiver_itself_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys, its secrets, where its database is. What a command needs of these is given to it by name."""
    ours = {
        "READER_API_KEY",
        "READER_KEY",
        "READER_WEBHOOK_SECRET_FILE",
        "RECEIVER_API_KEYS",
        "RECEIVER_DATABASE_URL",
        "PGPASSWORD",
    }
    for name in ours:
        monkeypatch.setenv(name, "the-secret")
    monkeypatch.setenv("THEIRS", "kept")
    await run(*sh("env > env"), cwd=tmp_path, READER_KEY="given", MORE="x")
    env = (tmp_path / "env").read_text()
    assert "the-secret" not in env
    assert {"THEIRS=kept", "READER_KEY=given", "MORE=x"} <= set(env.splitlines())


RESULTS = (b'{"url": "https://a.example/1"}', '{"url": "https://a.example/ż", "markdown": "a\\nb"}'.encode())


async def test_results_are_lines_of_json_at_descriptor_3(tmp_path: Path) -> None:
    await run(*sh("cat <&3 > got"), cwd=tmp_path, results=RESULTS)
    assert (tmp_path / "got").read_bytes().splitlines() == list(RESULTS)


async def test_a_result_that_came_over_several_lines_is_one_line(tmp_path: Path) -> None:
    await run(*sh("cat <&3 > got"), cwd=tmp_path, results=[b'{\r\n  "url":\n"https://a.example/1"\n}', b"{}"])
    first, second = (tmp_path / "got").read_bytes().splitlines()
    assert (json.loads(first), second) == ({"url": "https://a.example/1"}, b"{}")


@pytest.mark.parametrize("args", [("--results-file",), ("--in={results_file}", "--quick")], ids=["option", "placeholder"])
async def test_or_in_a_file_for_nobody_else_whose_path_is_among_the_arguments(tmp_path: Path, args: tuple[str, ...]) -> None:
    script = 'for last in "$@"; do case $last in /*) path=$last;; --in=*) path=${last#--in=};; esac; done; '
    script += 'cp -p "$path" got; dirname "$path" > folder; echo "$path $RECEIVER_RESULTS_FILE $RECEIVER_RESULTS_FD" > paths'
    await run(*sh(script), "index", *args, cwd=tmp_path, results=RESULTS)
    assert (tmp_path / "got").read_bytes().splitlines() == list(RESULTS)
    told, in_the_environment = (tmp_path / "paths").read_text().split()
    assert told == in_the_environment
    await until(lambda: not Path((tmp_path / "folder").read_text().strip()).exists())


async def test_arguments_are_passed_as_they_are_and_never_through_a_shell(tmp_path: Path) -> None:
    odd = ["$HOME", "a b", "; touch owned", "`id`", "*", "", "żółw"]
    await run(*python("import json, sys; open('args', 'w').write(json.dumps(sys.argv[1:]))", *odd), cwd=tmp_path)
    assert json.loads((tmp_path / "args").read_text()) == odd
    assert not (tmp_path / "owned").exists()


async def test_it_runs_in_its_folder_with_three_descriptors_and_a_pipe_and_nothing_else_of_ours_open(tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)  # as a careless library leaves it
        await run(*python("import os; open('got', 'w').write(' '.join(sorted(os.listdir('/proc/self/fd'))))"), cwd=tmp_path)
    assert (tmp_path / "got").read_text() == "0 1 2 3 4 5", "4 is what it writes to, 5 the list it reads"


async def test_signals_do_to_it_what_they_do_to_any_other_program(tmp_path: Path) -> None:
    """Python ignores SIGPIPE; a pipeline whose reader left would then run on for ever."""
    await run(*sh("grep -E '^Sig(Ign|Blk)' /proc/self/status > got"), cwd=tmp_path)
    masks = [int(line.split()[1], 16) for line in (tmp_path / "got").read_text().splitlines()]
    assert not any(mask & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGTERM - 1) for mask in masks)


# -- what it may leave -------------------------------------------------------------------------------------------------------


async def test_it_need_not_read_anything() -> None:
    """More than any pipe holds, on both of them: it closes them, or ends without a look."""
    many = [b'{"url": "https://a.example/1", "markdown": "%s"}' % (b"x" * 100_000)] * 20
    for script in ("exec 3<&- 0<&-; sleep 0.2", "head -c 10 <&3 > /dev/null; sleep 0.1", ":"):
        big = json.dumps({**EVENT, "note": "x" * 300_000})
        assert await command(*sh(script)).deliver(Delivery("evt_1", big, 1, of(many))) == Answer()


async def test_what_it_prints_is_no_part_of_what_we_print(capfd: pytest.CaptureFixture[str]) -> None:
    """`receiver tick` prints JSON."""
    await run(*sh("echo hello; echo there >&2"))
    assert capfd.readouterr() == ("", "")


async def test_what_it_left_running_is_not_waited_for(tmp_path: Path) -> None:
    """It may even hold on to the pipes. It was started on purpose: it lives."""
    async with asyncio.timeout(5):
        await run(*sh("sleep 30 & echo $! > pid"), cwd=tmp_path)
    pid = int((tmp_path / "pid").read_text())
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)


# -- what its end means ------------------------------------------------------------------------------------------------------


async def test_exit_code_0_is_a_success_and_its_last_words_are_kept() -> None:
    assert await run(*sh("echo said >&2")) == Answer(None, "said")


@pytest.mark.parametrize("code", [1, 2, 64, 126, 127, 255])
async def test_any_other_is_a_failure_that_tells_it(code: int) -> None:
    """And the last line it said, which with most programs is the reason."""
    error = await failure(*sh(f"printf 'Traceback:\\n  line 1\\nBoom: no\\n' >&2; exit {code}"))
    assert str(error) == f"exit code {code}: Boom: no"
    assert (error.excerpt, error.final, error.again_in) == ("Traceback:\n  line 1\nBoom: no", False, None)
    assert str(await failure(*sh(f"exit {code}"))) == f"exit code {code}"


async def test_65_is_a_dead_letter_at_once() -> None:
    error = await failure(*sh("exit 65"))
    assert (error.final, error.blamed) == (True, False)


async def test_75_is_for_later_and_no_failure() -> None:
    error = await failure(*sh("exit 75"))
    assert (error.final, error.again_in) == (False, 60)


async def test_a_signal_is_a_failure_that_tells_its_name() -> None:
    assert str(await failure(*sh("kill -SEGV $$"))) == "ended by SIGSEGV"


async def test_of_what_it_says_on_stderr_the_last_kilobyte_is_kept() -> None:
    script = "import sys; sys.stderr.buffer.write(b'x' * 3_000_000 + b'\\xff\\nValueError: the reason\\n'); sys.exit(1)"
    error = await failure(*python(script))
    assert len(error.excerpt) <= EXCERPT
    assert error.excerpt.endswith("xx\ufffd\nValueError: the reason")


@pytest.mark.parametrize("name", ["no-such-program", "./no-such-script.sh"])
async def test_a_program_that_is_not_there_is_named_and_may_come(tmp_path: Path, name: str) -> None:
    error = await failure(name, "x", cwd=tmp_path)
    assert (str(error), error.final) == (f"cannot run {name!r}: No such file or directory", False)


async def test_so_is_one_that_cannot_be_run_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "index.py").write_text("print(1)")
    assert str(await failure("./index.py", cwd=tmp_path)) == "cannot run './index.py': Permission denied"
    (tmp_path / "index.py").chmod(0o755)
    assert str(await failure("./index.py", cwd=tmp_path)) == "cannot run './index.py': Exec format error"
    error = await failure("true", cwd=tmp_path / "gone")
    assert str(error) == f"cannot run 'true': No such file or directory: {tmp_path}/gone"


async def test_results_that_are_kept_no_longer_are_a_dead_letter() -> None:
    async def pruned(_: int) -> AsyncIterator[list[bytes]]:
        yield [b"{}"]
        raise ResultsPrunedError.of("job_1")

    with pytest.raises(HookError) as caught:
        await command(*sh("cat <&3; sleep 60")).deliver(Delivery("evt_1", PAYLOAD, 1, pruned))
    assert caught.value.final


async def test_it_never_takes_a_part_of_the_results_for_the_whole(tmp_path: Path) -> None:
    """A database that fails midway ends it before it sees the end of them."""

    async def failing(_: int) -> AsyncIterator[list[bytes]]:
        yield [b"{}"]
        await written(tmp_path / "first")
        raise StoreError("the database is away")

    with pytest.raises(StoreError):
        await command(*sh("read line <&3; echo $line > first; cat <&3; echo whole > whole"), cwd=tmp_path).deliver(
            Delivery("evt_1", PAYLOAD, 1, failing)
        )
    assert not (tmp_path / "whole").exists()


# -- its time ----------------------------------------------------------------------------------------------------------------

STUBBORN = "trap '' TERM; (trap '' TERM; echo $$ > leader; sh -c 'echo $PPID > child'; while :; do sleep 1; done) & wait; wait"


async def test_at_its_timeout_it_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    error = await failure(*sh(f"echo working >&2; {STUBBORN}"), cwd=tmp_path, timeout=0.5)
    assert (str(error), error.excerpt) == ("did not end within 0.5 s, and was killed", "working")
    for name in ("leader", "child"):
        await gone(int((tmp_path / name).read_text()))


async def test_it_may_clean_up_first(tmp_path: Path) -> None:
    await failure(*sh("trap 'echo bye > bye; exit 1' TERM; while :; do sleep 0.01; done"), cwd=tmp_path, timeout=0.3)
    assert (tmp_path / "bye").read_text() == "bye\n"


async def test_when_we_end_it_ends(tmp_path: Path) -> None:
    """However impatiently: a second cancellation comes soon after the first."""
    attempt = asyncio.create_task(run(*sh(STUBBORN), cwd=tmp_path))
    await written(tmp_path / "leader")
    await written(tmp_path / "child")
    attempt.cancel()
    await asyncio.sleep(0.05)
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    for name in ("leader", "child"):
        await gone(int((tmp_path / name).read_text()))


async def test_results_wait_until_they_are_read(tmp_path: Path) -> None:
    """What is in memory is a batch or two, however many there are."""
    taken = 0

    async def endless(_: int) -> AsyncIterator[list[bytes]]:
        nonlocal taken
        while True:
            taken += 1
            yield [b"x" * 100_000]

    wait = "until [ -e {} ]; do sleep 0.01; done"
    script = f"{wait.format('go')}; head -c 1000000 <&3 > /dev/null; echo read > read; {wait.format('end')}"
    attempt = asyncio.create_task(command(*sh(script), cwd=tmp_path).deliver(Delivery("evt_1", PAYLOAD, 1, endless)))
    (tmp_path / "go").touch()
    await written(tmp_path / "read")
    assert 10 <= taken < 15
    (tmp_path / "end").touch()
    await attempt


@pytest.mark.slow
async def test_a_hundred_thousand_results_pass_through_in_little_memory(tmp_path: Path) -> None:
    """400 MB of them. A file costs no more."""
    result = json.dumps({"url": "https://a.example/1", "markdown": "x" * 4000}).encode()
    us, peak = psutil.Process(), 0

    async def batches(most: int) -> AsyncIterator[list[bytes]]:
        nonlocal peak
        for _ in range(0, 100_000, most):
            peak = max(peak, us.memory_info().rss)
            yield [result] * most

    for end in ('open(3, "rb")', 'open(sys.argv[2], "rb")'):
        script = f"import sys; open('count', 'w').write(str(sum(1 for line in {end} if line.endswith(b'\"}}\\n'))))"
        args = python(script, "--results-file") if "argv" in end else python(script)
        before = us.memory_info().rss
        await command(*args, cwd=tmp_path, timeout=60).deliver(Delivery("evt_1", PAYLOAD, 1, batches))
        assert (tmp_path / "count").read_text() == "100000"
        assert peak - before < 16 << 20
