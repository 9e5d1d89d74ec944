"""Put a fault at the k-th durable operation of anything, for every k.

An operation is run in a forked child whose durable operations are announced by
`ftnb.foundation.files.effects`. For k = 1, 2, … a fault is put at the k-th; afterwards the caller's
`believe` looks at what is left, and the same operation, undisturbed, must then give the same result
as it does when nothing ever went wrong. The loop ends when the operation is done before its k-th.
"""
import errno
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ftnb.foundation.errors import FtnbError
from ftnb.foundation.files import effects

KILL = "kill"      # the process dies; a write's second announcement leaves half of it
EIO = "eio"        # the operation fails, once
FULL = "full"      # the disk is full from here on: nothing new can be made or written
POWER = "power"    # the machine dies: what wasn't forced to the disk is empty afterwards
NAMES = "names"    # the machine dies: names that weren't forced to the disk are gone afterwards
KINDS = (KILL, EIO, FULL, POWER, NAMES)
END = "the end"
TAKES_ROOM = ("mkdir", "create", "write", "link", "fsync")


@dataclass
class Fault:
    "A watcher that puts one fault at the k-th operation."
    kind: str
    k: int
    tell: Callable[[dict], None] = lambda said: None
    n: int = 0
    synced: set[int] = field(default_factory=set)        # inodes whose content is on the disk
    loose: dict[str, str] = field(default_factory=dict)  # new names that aren't → their folder
    forcing: Path | None = None                          # what is being forced to the disk

    def __call__(self, operation: str, path: Path) -> None:
        self.n += 1
        self._note(operation, path)
        if self.n == self.k: self._strike(f"{operation} {path.name}", operation in TAKES_ROOM)
        elif self.n > self.k and self.kind == FULL and operation in TAKES_ROOM:
            raise OSError(errno.ENOSPC, "No space left on device")

    def _note(self, operation: str, path: Path) -> None:
        "Know what would outlive a power cut; an operation is done when the next is announced."
        if self.forcing:
            with_name = os.fspath(self.forcing)
            if self.forcing.exists(): self.synced.add(self.forcing.stat().st_ino)
            self.loose = {n: home for n, home in self.loose.items() if home != with_name}
        self.forcing = path if operation == "fsync" else None
        if operation in ("rename", "link", "create") and not os.path.lexists(path):
            self.loose[os.fspath(path)] = os.fspath(path.parent)

    def _strike(self, at: str, takes_room: bool) -> None:
        self.tell({"at": at, "synced": sorted(self.synced), "loose": sorted(self.loose)})
        if self.kind in (KILL, POWER, NAMES): os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == EIO: raise OSError(errno.EIO, "Input/output error")
        if takes_room: raise OSError(errno.ENOSPC, "No space left on device")

    def at_the_end(self) -> None:
        "A power cut comes at the latest when all is done."
        if self.kind not in (POWER, NAMES): return
        self._note("", Path())
        self._strike(END, False)


@dataclass(frozen=True)
class Ended:
    "How a child ended."
    fired: bool           # whether the fault came before the end
    at: str = ""          # the operation that it struck
    error: str = ""       # what the operation said; empty when it went on regardless
    killed: bool = False
    synced: frozenset[int] = frozenset()
    loose: tuple[str, ...] = ()


def in_child(operate: Callable[[], Any], kind: str = "", k: int = 0) -> Ended:
    "Run an operation in a forked child, with a fault at its k-th durable operation."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        said: dict[str, Any] = {}
        def tell(news: dict) -> None:
            said.update(news)
            os.write(writing, (json.dumps(news) + "\n").encode())
        fault = Fault(kind, k, tell)
        try:
            with effects.watch(fault): operate()
            fault.at_the_end()
        except (FtnbError, OSError) as e: tell({"error": str(e)} if said else {"bug": trace(e)})
        except BaseException as e: tell({"bug": trace(e)})
        finally: os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as f: lines = [json.loads(line) for line in f]
    _, status = os.waitpid(pid, 0)
    facts = {name: value for line in lines for name, value in line.items()}
    assert "bug" not in facts, facts["bug"]
    killed = os.WIFSIGNALED(status)
    assert not killed or os.WTERMSIG(status) == signal.SIGKILL, status
    return Ended("at" in facts, facts.get("at", ""), facts.get("error", ""), killed,
                 frozenset(facts.get("synced", ())), tuple(facts.get("loose", ())))


def trace(e: BaseException) -> str:
    return "".join(traceback.format_exception(e))


def inodes(folder: Path) -> frozenset[int]:
    "The files and folders that are there."
    return frozenset(p.lstat().st_ino for p in folder.rglob("*"))


def cut_power(folder: Path, ended: Ended, before: Iterable[int], kind: str) -> None:
    "Lose what a power cut may lose: content, or names, that weren't forced to the disk."
    if kind == NAMES:
        for name in ended.loose: Path(name).unlink(missing_ok=True)
        return
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file(): continue
        if path.stat().st_ino not in ended.synced | frozenset(before): os.truncate(path, 0)


def every_fault(
    folder: Path,                            # a new folder is made in it for each fault
    prepare: Callable[[Path], Any],          # what there is before; done again after a power cut
    operate: Callable[[Path], Any],          # what is disturbed
    believe: Callable[[Path, Ended], Any],   # asserts what must hold right after the fault
    result: Callable[[Path], Any],           # what the operation must have led to in the end
    durable: str = ".",                      # what was on the disk before, in that folder
    kinds: Iterable[str] = KINDS,
    sample: int | None = None,               # so many kill points a kind, drawn at random
    seed: int = 0,
) -> dict[str, int]:                         # kind → number of faults
    "Disturb an operation at every one of its durable operations, or at a sample of them."
    prepare(folder/"whole")
    total = counted(partial(operate, folder/"whole"))
    expected, done = result(folder/"whole"), {}
    for kind in kinds:
        points: Iterable[int] = count(1)
        if sample is not None and sample < total:
            points = [*sorted(random.Random(seed).sample(range(1, total + 1), sample)), total + 1]
        done[kind] = 0
        for k in points:
            home = folder/f"{kind}-{k}"
            prepare(home)
            before = inodes(home/durable)
            ended = in_child(partial(operate, home), kind, k)
            if not ended.fired: break
            done[kind] += 1
            if kind in (POWER, NAMES):
                cut_power(home, ended, before, kind)
            believe(home, ended)
            if kind in (POWER, NAMES): prepare(home)
            again = in_child(partial(operate, home))
            assert result(home) == expected, f"{kind} at {k}, {ended.at}: {again}"
            if ended.at == END: break
    return done


NEEDS = {"os.rename": "rename", "os.link": "link", "os.remove": "unlink", "os.rmdir": "unlink",
         "os.mkdir": "mkdir", "os.chmod": "chmod", "os.truncate": "write", "os.symlink": "link"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def unannounced(folder: Path, operate: Callable[[], Any]) -> list[str]:
    "What an operation changed in a folder without announcing it, as Python's audit events say."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:        # an audit hook can't be taken back: it ends with the child
        os.close(reading)
        told, found, home = set(), [], os.path.realpath(folder) + os.sep
        def hook(event, args):
            if event == "open" and isinstance(args[0], str | os.PathLike) and args[2] & WRITES:
                kinds, path = {"create", "write"}, os.fspath(args[0])
            elif event in NEEDS:
                kinds = {NEEDS[event]}
                path = os.fspath(args[1 if event in ("os.rename", "os.link", "os.symlink") else 0])
            else: return
            inside = os.path.abspath(path).startswith(home) and not path.endswith("lock")
            if inside and not any((k, os.path.abspath(path)) in told for k in kinds):
                found.append(f"{event} {os.path.abspath(path).removeprefix(home)}")
        try:
            sys.addaudithook(hook)
            with effects.watch(lambda o, p: told.add((o, os.path.abspath(p)))): operate()
        except BaseException as e: found.append(trace(e))
        finally:
            os.write(writing, json.dumps(found).encode()[:60_000])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as f: found = json.loads(f.read())
    os.waitpid(pid, 0)
    return found


@contextmanager
def without_waiting() -> Iterator[None]:
    "Forced writes are announced but not waited for: what a power cut would lose is worked out."
    fsync = os.fsync
    os.fsync = lambda fd: None
    try: yield
    finally: os.fsync = fsync


def counted(operate: Callable[[], Any]) -> int:
    "Do an operation here; how many durable operations it takes."
    n = 0
    def watch(operation, path):
        nonlocal n
        n += 1
    with effects.watch(watch): operate()
    return n
