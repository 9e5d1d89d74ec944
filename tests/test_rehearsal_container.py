"Machines as processes: what they see, what they leave, how they end, in both isolations."
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ftnb.foundation.errors import BadInput
from ftnb.rehearsal.container import HARDWARE, Machine, Process, environment, prepare, start
from ftnb.rehearsal.isolation import VARIABLE, isolation, namespaces, try_namespaces
from ftnb.rehearsal.packages import lay_over, parent

ROOT = Path(__file__).resolve().parent.parent
POSSIBLE = try_namespaces()[0]
in_namespaces = pytest.mark.skipif(POSSIBLE == "none", reason=try_namespaces()[1])
linux = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")


@pytest.fixture(params=["namespaces", "rewriting"])
def mode(request, monkeypatch):
    "Both ways of having an /opt/ml."
    if request.param == "namespaces" and POSSIBLE == "none": pytest.skip(try_namespaces()[1])
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


class Machines:
    "Makes machines and starts them."

    def __init__(self, folder):
        self.folder, self.numbers, self.begun = folder, itertools.count(), []

    def __call__(self, *command, name="algo-1", folder=None, port=7799, python=sys.executable,
                 **variables):
        folder = folder or self.folder/f"job{next(self.numbers)}"/name
        (folder/"ml").mkdir(parents=True)
        return Machine(folder, name, ("algo-1", "algo-2"), command, variables, port, python)

    def start(self, *command, **rest) -> Process:
        self.begun.append(start(self(*command, **rest)))
        return self.begun[-1]

    def python(self, code, *words, **rest) -> tuple[str, int]:
        return run(self.start("python3", "-c", code, *words, **rest))


@pytest.fixture
def make(tmp_path):
    "Makes machines, and ends them after the test."
    machines = Machines(tmp_path)
    yield machines
    for process in machines.begun:
        process.kill()
        process.wait(10)
        process.output.close()


def run(process):
    "What a machine says, and its exit code."
    said = process.output.read().decode(errors="replace").strip()
    return said, process.wait(10)


def alive(process: int) -> bool:
    try: state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError: return False
    return state not in "ZX"


def marked(text: str) -> list[int]:
    "Processes with a text in their arguments."
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid(): continue
        try: words = (folder/"cmdline").read_bytes()
        except OSError: continue
        if text.encode() in words and alive(int(folder.name)): found.append(int(folder.name))
    return found


def soon(condition, seconds=5.0):
    "Wait until something is so."
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(.01)


# What a machine sees

def test_its_own_opt_ml(mode, make):
    before = sorted(os.listdir("/opt")) if Path("/opt").exists() else None
    code = "mkdir /opt/ml/model; echo $0 > /opt/ml/model/w; ls /opt/ml"
    first, second = (make("sh", "-c", code, str(n)) for n in (1, 2))
    for number, machine in enumerate((first, second), 1):
        assert run(start(machine)) == ("model", 0)
        assert (machine.folder/"ml"/"model"/"w").read_text() == f"{number}\n"
    assert before == (sorted(os.listdir("/opt")) if Path("/opt").exists() else None)


@in_namespaces
def test_the_rest_of_opt_is_still_there(make):
    said, _ = make.python("import os, json; print(json.dumps(sorted(os.listdir('/opt'))))")
    assert json.loads(said) == sorted({*os.listdir("/opt"), "ml", "machine"})
    assert not list(Path("/opt").glob("ml/*"))


@in_namespaces
def test_names_of_hosts(make):
    code = "import socket; print(socket.gethostname(), socket.gethostbyname('algo-1'), " \
           "socket.gethostbyname('algo-2'))"
    assert make.python(code, name="algo-2") == ("algo-2 127.0.0.1 127.0.0.1", 0)


def test_where_it_stands(mode, make):
    code = "import os, sys; print(os.getcwd(), sys.stdin.read() == '', os.getpgrp() == os.getpid())"
    assert make.python(code) == ("/ True True", 0)
    code = "cd; touch here; test -z $TMPDIR && TMPDIR=$HOME; touch $TMPDIR/there"
    machine = make("sh", "-c", code)
    assert run(start(machine))[1] == 0
    assert (machine.folder/"home"/"here").exists()
    if mode == "namespaces": assert (machine.folder/"tmp"/"there").exists()


@in_namespaces
def test_it_is_process_one_and_root(make):
    assert make.python("import os; print(os.getpid(), os.getuid())") == ("1 0", 0)


@in_namespaces
def test_tmp_and_shared_memory_are_its_own(make, tmp_path):
    made = make("sh", "-c", "touch /tmp/one /dev/shm/two; ls /tmp/one /dev/shm")
    assert run(start(made)) == ("/tmp/one\n\n/dev/shm:\ntwo", 0)
    assert (made.folder/"tmp"/"one").exists()
    assert not Path("/tmp/one").exists() and not Path("/dev/shm/two").exists()


@in_namespaces
@pytest.mark.skipif(os.uname().release.split(".")[:2] < ["5", "12"], reason="needs mount_setattr")
def test_nothing_else_can_be_written(make, tmp_path):
    other = tmp_path/"other job"; other.mkdir(); (other/"model").write_text("weights")
    outside = Path.home() if os.access(Path.home(), os.W_OK) else ROOT
    for target in (other/"model", ROOT/"x", outside/"x", Path("/x"), Path("/etc/x")):
        said, code = make.python("import sys; open(sys.argv[1], 'w')", str(target))
        assert code == 1 and ("Read-only" in said or "No such file" in said), (target, said)
        assert target == other/"model" or not target.exists()
    assert (other/"model").read_text() == "weights"


@in_namespaces
def test_etc_environment_is_a_copy(make):
    "The SDK's MPI driver appends to it."
    if not Path("/etc/environment").exists(): pytest.skip("there is none")
    before = Path("/etc/environment").read_bytes()
    assert make.python("open('/etc/environment', 'a').write('X=1\\n')")[1] == 0
    assert Path("/etc/environment").read_bytes() == before


@in_namespaces
def test_python_that_lives_in_tmp(make, tmp_path, monkeypatch):
    "Then /tmp stays the system's, and everything else works."
    if not tmp_path.is_relative_to("/tmp"): pytest.skip("temporary files are elsewhere")
    python = lay_over(tmp_path/"parent", sys.executable).binaries/"python"
    code = "import numpy, tempfile; open('/opt/ml/x', 'w'); open('/tmp/x', 'w').close(); " \
           "print(tempfile.gettempdir())"
    assert make.python(code.replace("/tmp/x", f"{tmp_path}/x"), python=str(python)) == \
           ("/opt/machine/tmp", 0)
    assert (tmp_path/"x").exists()


# Variables and arguments

def test_nothing_leaks(mode, make, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-server")
    monkeypatch.setenv("PYTHONPATH", "/of/the/server")
    code = "import os; print(os.path.exists('/proc') and open('/proc/self/environ').read(), " \
           "dict(os.environ), os.listdir('/proc/self/fd'))"
    said, exit_code = make.python(code, TRAINING_JOB_NAME="mine")
    assert exit_code == 0 and "TRAINING_JOB_NAME" in said and "of-the-server" not in said
    assert "/of/the/server" not in said
    names = make.python("import os; print(*sorted(os.environ))")[0].split()
    assert set(names) <= set(environment(make("true"))) | {"LC_CTYPE"}
    assert not {*os.environ} & {*names} - {"HOME", "LANG", "PATH", "TMPDIR", *HARDWARE,
                                           "AWS_EC2_METADATA_DISABLED", "PYTHONUNBUFFERED"}


@linux
def test_no_open_file_of_the_server(mode, make):
    with open(__file__) as f:
        os.set_inheritable(f.fileno(), True)
        assert make.python("import os; print(len(os.listdir('/proc/self/fd')))") == ("4", 0)


NASTY = ["", " ", "it's", '"q"', "$HOME `id` $(id)", "a\nb\n", "\\ \\n \\0", "終 λ \U0001f600",
         "*", "~", "'; rm -rf /", "-i", "--help", "=", "\x01\x7f\x1b[31m", "é" * 5000, "\t"]


def test_any_text_survives(mode, make):
    variables = {f"V{i}": text for i, text in enumerate(NASTY)}
    code = "import os, json, sys; " \
           "json.dump([sys.argv[1:], dict(os.environ)], open('/opt/ml/out', 'w'))"
    machine = make("python3", "-c", code, *NASTY, **variables)
    assert run(start(machine)) == ("", 0)
    words, seen = json.loads((machine.folder/"ml"/"out").read_text())
    assert words == NASTY and {k: seen[k] for k in variables} == variables


@pytest.mark.parametrize("name", ["with space", "it's", 'a"b', "$HOME;x", "終", "a\nb", "-n",
                                  "[a]*", "x" * 120 + "/" + "y" * 100])
def test_a_folder_of_any_name(mode, make, tmp_path, small, name):
    code = "cd /opt/ml && $(command -v pip3) --version && python3 -c 'open(\"/opt/ml/x\", \"w\")'"
    machine = make("sh", "-c", code, folder=tmp_path/name/"algo-1", python=small)
    if mode == "rewriting" and name[0] not in "x終-":
        with pytest.raises(BadInput, match="take the name of this folder apart"): start(machine)
        return
    said, code = run(start(machine))
    assert code == 0 and (machine.folder/"ml"/"x").exists(), (name, said)


def test_large_variables(mode, make):
    code = "import os; print(sum(len(v) for k, v in os.environ.items() if k[0] == 'V'))"
    variables = {f"V{i}": "x" * 100_000 for i in range(10)}
    assert make.python(code, **variables) == ("1000000", 0)


# Exit codes

@pytest.mark.parametrize("code,expected", [
    ("raise SystemExit(0)", 0), ("raise SystemExit(3)", 3), ("raise SystemExit(255)", 255),
    ("raise ValueError", 1), ("import ctypes; ctypes.string_at(0)", 139)])
def test_exit_codes(mode, make, code, expected):
    assert make.python(code)[1] == expected


def test_exit_code_of_a_signal(mode, make):
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = make.start("python3", "-c", "import time; print(1, flush=True); time.sleep(60)")
        process.output.readline()
        if number == signal.SIGTERM: process.terminate()
        else: os.kill(process.pid, number)
        if number == signal.SIGTERM: process.kill()   # no handler: process 1 never saw it
        assert process.wait(5) == 137


def test_commands_that_cannot_be(mode, make):
    said, code = run(make.start("no-such-program", "x"))
    assert code == 127 and "no-such-program: No such file" in said
    machine = make("/opt/ml/text")
    (machine.folder/"ml"/"text").write_text("no program")
    said, code = run(start(machine))
    assert code == 126 and "Permission denied" in said
    said, code = run(make.start("python3", "-c", "pass", X="a\0b"))
    assert code == 126 and "null byte" in said


def test_a_machine_that_cannot_be(make, tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(OSError): start(replace(make("true"), folder=tmp_path/"file"/"algo-1"))
    with pytest.raises(BadInput, match="no Python runs"): start(make("true", python="/no/python"))


def test_wait_and_poll(mode, make):
    process = make.start("sleep", "60")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired): process.wait(.05)
    process.kill()
    assert process.wait(5) == 137 == process.poll() == process.wait(0)
    process.kill(); process.terminate()   # of no effect, no error


# Signals

CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
print("ready", flush=True); time.sleep(60)
"""


@pytest.mark.parametrize("command,heard", [
    (("python3", "-c", CHILD), True),
    (("bash", "-c", 'python3 -c "$0"; exit $?', CHILD), False),
    (("bash", "-c", 'exec python3 -c "$0"', CHILD), True),
    (("bash", "-c", "trap 'kill $!; wait $!' TERM; python3 -c \"$0\" & wait; wait", CHILD), True),
    (("bash", "-c", "trap '' TERM; python3 -c \"$0\" & wait $!", CHILD), False),
])
def test_who_hears_sigterm(mode, make, command, heard):
    process = make.start(*command)
    assert process.output.readline() == b"ready\n"
    process.terminate()
    if heard: assert run(process)[0] == "saved" and process.wait() in (0, 143)
    else:
        with pytest.raises(subprocess.TimeoutExpired): process.wait(.3)
        process.kill()
        assert run(process) == ("", 137)


def test_signals_are_as_new(mode, make, monkeypatch):
    "A server that ignores or blocks signals passes nothing of that on."
    code = "from signal import *; print([getsignal(s).name for s in (SIGHUP, SIGUSR1, SIGTERM)], " \
           "list(pthread_sigmask(SIG_BLOCK, [])))"
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try: said, exit_code = make.python(code)
    finally:
        signal.signal(signal.SIGHUP, old)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert (said, exit_code) == ("['SIG_DFL', 'SIG_DFL', 'SIG_DFL'] []", 0)


# Ends

DAEMON = """
import os, sys, time
if not os.fork():
    os.setsid()
    if os.fork(): os._exit(0)
    while True:
        with open(sys.argv[1], "a") as f: f.write(".")
        time.sleep(.01)
os.wait()
print("up", flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(5)
"""


def beats(machine):
    "Does the daemon's heart still beat?"
    file = machine.folder/"ml"/"beat"
    before = file.stat().st_size; time.sleep(.15)
    return file.stat().st_size > before


@pytest.mark.parametrize("end", ["kill", "exit", "forget"])
def test_daemons_end_with_the_machine(mode, make, end):
    "Forked twice, in a session of their own, deaf to the group's signals."
    machine = make("python3", "-c", DAEMON, "/opt/ml/beat", ".3" if end == "exit" else "60")
    process = start(machine)
    assert process.output.readline() == b"up\n"
    soon((machine.folder/"ml"/"beat").exists)
    if end == "kill": assert beats(machine); process.kill(); assert process.wait(5) == 137
    elif end == "exit": assert process.wait(5) == 5
    else:
        process._launched.channel.close(); process.wait(5)
    assert not beats(machine)


SERVER = """
import sys, time, threading
from pathlib import Path
from ftnb.rehearsal.container import Machine, start
kept = []
shell = '''(setsid sh -c 'sleep 1000; exit 1' MARK &)
python3 -c 'import time; print(1, flush=True); time.sleep(1000)' MARK; exit 1'''
def begin(n):
    kept.append(start(Machine(Path(sys.argv[1])/str(n)/"algo-1", "algo-1", ("algo-1",),
                ("sh", "-c", shell.replace("MARK", sys.argv[2])), {}, 7777, sys.executable)))
threads = [threading.Thread(target=begin, args=(n,)) for n in range(2)]
print("go", flush=True)
for t in threads: t.start()
for t in threads: t.join()
for process in kept: process.output.readline()
print("up", flush=True)
time.sleep(1000)
"""


def serve(folder, mark):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SERVER, str(folder), mark], env=env,
                            stdout=subprocess.PIPE)


@linux
def test_nothing_outlives_the_server(mode, tmp_path):
    "Which is killed with -9, while its machines run."
    mark = f"mark{random.getrandbits(64)}"
    server = serve(tmp_path, mark)
    assert [server.stdout.readline() for _ in range(2)] == [b"go\n", b"up\n"]
    assert len(marked(mark)) >= 7   # the server, two shells, Pythons, daemons
    time.sleep(.3)
    assert len(marked(mark)) >= 7   # the threads that started them have ended, they haven't
    holders = marked(str(tmp_path))
    server.kill(); server.wait()
    soon(lambda: not marked(mark) and not any(alive(p) for p in holders), 5)
    assert not [p for p in holders if alive(p)]


@linux
@pytest.mark.parametrize("delay", [0, .01, .03, .06, .1, .15])
def test_nothing_outlives_a_server_that_dies_while_it_starts_machines(mode, tmp_path, delay):
    mark = f"mark{random.getrandbits(64)}"
    server = serve(tmp_path, mark)
    server.stdout.readline()
    time.sleep(delay)
    server.kill(); server.wait()
    soon(lambda: not marked(mark) and not marked(str(tmp_path)), 5)
    time.sleep(.2)
    assert not marked(mark) and not marked(str(tmp_path))


@linux
@in_namespaces
def test_nothing_outlives_the_launcher(make, monkeypatch):
    monkeypatch.setenv(VARIABLE, "namespaces")
    if namespaces() != "all": pytest.skip("no process namespace")
    machine = make("python3", "-c", DAEMON, "/opt/ml/beat", "60")
    process = start(machine)
    process.output.readline()
    soon((machine.folder/"ml"/"beat").exists)
    process._launched.popen.kill()
    soon(lambda: not alive(process.pid))
    assert process.wait(5) == 137 and not beats(machine)


def test_a_machine_outlives_the_thread_that_started_it(mode, make):
    kept = []
    code = ("sh", "-c", "sleep .3; echo there")
    thread = threading.Thread(target=lambda: kept.append(make.start(*code)))
    thread.start(); thread.join()
    assert run(kept[0]) == ("there", 0)


def test_many_at_once(mode, make):
    code = "open('/opt/ml/n', 'w').write('{}')"
    machines = [make("python3", "-c", code.format(n), name=f"algo-{n}") for n in range(6)]
    codes: list = []
    end = lambda machine: codes.append(run(start(machine))[1])
    threads = [threading.Thread(target=end, args=(m,)) for m in machines]
    for t in threads: t.start()
    for t in threads: t.join()
    assert codes == [0]*6
    assert [(m.folder/"ml"/"n").read_text() for m in machines] == [str(n) for n in range(6)]


# Output

def test_large_output_of_any_bytes(mode, make):
    size = 8_000_000
    process = make.start("python3", "-c", f"import os, sys; b = bytes(range(256))*{size//256}; "
                         "sys.stdout.buffer.write(b); sys.stderr.buffer.write(b'end')")
    said = process.output.read()
    assert len(said) == size//256*256 + 3
    assert said[:256] == bytes(range(256)) and said[-3:] == b"end"
    assert process.wait(5) == 0


def test_both_streams_in_order(mode, make):
    code = "import sys\nfor i in range(100): print(i, file=[sys.stdout, sys.stderr][i % 2])"
    said, _ = make.python(code)
    assert said.split() == [str(i) for i in range(100)]


def test_kill_though_nobody_reads(mode, make):
    process = make.start("sh", "-c", "yes")
    time.sleep(.2)
    process.kill()
    assert process.wait(5) == 137


# Packages

def wheel(folder, name, version):
    "A package that knows its version, with a command."
    file = folder/f"{name}-{version}-py3-none-any.whl"; info = f"{name}-{version}.dist-info"
    command = f"[console_scripts]\nrun-{name} = {name}:main\n"
    with zipfile.ZipFile(file, "w") as z:
        z.writestr(f"{name}.py", f"version = {version!r}\ndef main(): print({name!r}, version)\n")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        z.writestr(f"{info}/entry_points.txt", command)
        z.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n")
    return file


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    "An environment with pip and one package: pip takes seconds in one with hundreds."
    folder = tmp_path_factory.mktemp("small")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder/"bin"/"python")
    site = Path(parent(python).folders[0])
    import pip
    for source in Path(pip.__file__).parent.parent.glob("pip*"):
        (site/source.name).symlink_to(source)
    package = str(wheel(folder, "have", "1"))
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", package], check=True)
    parent.cache_clear()
    return python


def contents(folder):
    "Names and times of everything in an environment."
    files = {str(p): p.lstat().st_mtime_ns for p in Path(folder).rglob("*")}
    return {name: time for name, time in files.items() if "__pycache__" not in name}


def test_requirements_go_over_the_parent(mode, make, small):
    machine = make("sh", "-ec", """
        cd /opt/ml
        pip3 install --no-index -r requirements.txt
        $(command -v python3) -m pip install --no-index have
        python3 -c 'import have, new; print("got", have.version, new.version)'
        run-new
        run-have
        pip uninstall -y have
        python3 -c 'import have; print("parent", have.version)'
        pip uninstall -y have
        python3 -c 'import have; print("still", have.version)'
    """, python=small)
    ml, before = machine.folder/"ml", contents(Path(small).parent.parent)
    for name in ("have", "new"): wheel(ml, name, "99")
    (ml/"requirements.txt").write_text("./have-99-py3-none-any.whl\n./new-99-py3-none-any.whl\n")
    said, code = run(start(machine))
    assert code == 0, said
    for line in ("got 99 99", "new 99", "have 99", "parent 1", "still 1"):
        assert line in said.splitlines(), said
    assert said.count("outside environment") == 2, said
    assert "Requirement already satisfied: have" in said
    assert contents(Path(small).parent.parent) == before


def test_an_environment_without_pip(make, tmp_path):
    "As uv makes them: Python's own wheel of pip stands in."
    bare = tmp_path/"bare"; python = str(bare/"bin"/"python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    assert len(parent(python).pip) == 1
    said, code = run(make.start("pip3", "--version", python=python))
    assert code == 0 and said.startswith("pip ") and ".whl" in said, said


def test_the_parents_commands_see_what_the_job_installed(mode, make, small):
    "As torchrun must."
    assert subprocess.check_output([Path(small).with_name("run-have")]) == b"have 1\n"
    machine = make("sh", "-ec", "cp /opt/ml/have.py $(python3 -c 'import sysconfig; "
                   "print(sysconfig.get_path(\"purelib\"))'); run-have", python=small)
    (machine.folder/"ml"/"have.py").write_text("def main(): print('mine')\n")
    assert run(start(machine)) == ("mine", 0)


def test_overlays_upon_overlays(make, small, tmp_path):
    below = lay_over(tmp_path/"below", small)
    (below.site/"middle.py").write_text("x = 'middle'\n")
    code = "import have, middle, pip; print(have.version, middle.x)"
    assert make.python(code, python=str(below.binaries/"python")) == ("1 middle", 0)


@in_namespaces
def test_packages_that_nobody_compiled_are_compiled(make, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path/"e")], check=True)
    python = str(tmp_path/"e"/"bin"/"python")
    site = Path(parent(python).folders[0])
    (site/"fresh").mkdir(); (site/"fresh"/"__init__.py").write_text("x = 1\n")
    parent.cache_clear()
    assert not parent(python).compiled
    assert make.python("import fresh; print(fresh.x)", python=python) == ("1", 0)
    assert list((site/"fresh"/"__pycache__").glob("*.pyc"))
    parent.cache_clear()
    assert parent(python).compiled


# What was sent

def lay_out(machine, command=None, script="", distributed=None, hyperparameters=None, count=1):
    "Channels and configuration, as the SDK and SageMaker lay them out."
    train = pytest.importorskip("sagemaker.train", reason="the SDK isn't installed")
    from sagemaker.train import templates
    ml = machine.folder/"ml"; drivers = ml/"input"/"data"/"sm_drivers"; config = ml/"input"/"config"
    shutil.copytree(Path(train.__file__).parent/"container_drivers", drivers)
    for folder in (config, ml/"input"/"data"/"code", ml/"model", ml/"output"/"data"):
        folder.mkdir(parents=True, exist_ok=True)
    (ml/"input"/"data"/"code"/"train.py").write_text(script)
    hosts = [f"algo-{n+1}" for n in range(count)]
    (config/"resourceconfig.json").write_text(json.dumps({
        "current_host": machine.name, "hosts": hosts, "current_instance_type": "ml.m5.large",
        "network_interface_name": "lo"}))
    (config/"inputdataconfig.json").write_text(json.dumps({"train": {}}))
    (config/"hyperparameters.json").write_text(json.dumps(hyperparameters or {}))
    (drivers/"sourcecode.json").write_text(json.dumps({"entry_script": "train.py"}))
    (drivers/"distributed.json").write_text(json.dumps(distributed or {}))
    how = "torchrun" if distributed is not None else "basic_script"
    if distributed and distributed.get("mpi"): how = "mpi"
    driver = templates.EXEUCTE_DISTRIBUTED_DRIVER.format(
        driver_name="a", driver_script=f"{how}_driver.py")
    if command: driver = templates.EXECUTE_BASE_COMMANDS.format(base_command=command)
    (drivers/"sm_train.sh").write_text(templates.TRAIN_SCRIPT_TEMPLATE.format(
        working_dir="cd /opt/ml/input/data/code", install_requirements="", execute_driver=driver))
    prepare(machine)


ENTRY = ("/bin/bash", "-c", "chmod +x /opt/ml/input/data/sm_drivers/sm_train.sh && "
         "/opt/ml/input/data/sm_drivers/sm_train.sh")


def test_the_sdks_drivers(mode, make):
    machine = make(*ENTRY, port=41234, TRAINING_JOB_NAME="mine")
    lay_out(machine, script="import os, sys; open(os.environ['SM_MODEL_DIR'] + '/w', 'w'); "
            "open('/opt/ml/output/data/o', 'w'); "
            "print('GOT', os.environ['SM_MASTER_PORT'], sys.argv[1:])",
            hyperparameters={"lr": "0.1", "folder": "/opt/ml/checkpoints", "text": "a b"})
    said, code = run(start(machine))
    assert code == 0 and "GOT 41234 ['--lr', '0.1', '--folder'" in said, said
    assert (machine.folder/"ml"/"model"/"w").exists()
    assert (machine.folder/"ml"/"output"/"data"/"o").exists()
    shown = "/opt/ml" if mode == "namespaces" else str(machine.folder.resolve()/"ml")
    assert f"'--folder', '{shown}/checkpoints', '--text', 'a b'" in said


def test_the_sdks_drivers_and_sigterm(mode, make):
    "A script never learns of the end, a command that begins with exec does."
    for command, heard in ((None, False), ("python train.py", False),
                           ("exec python train.py", True)):
        machine = make(*ENTRY, TRAINING_JOB_NAME="mine")
        lay_out(machine, command=command, script=CHILD)
        process = start(machine)
        for line in process.output:
            if b"ready" in line: break
        process.terminate()
        try: process.wait(1.0 if heard else .3)
        except subprocess.TimeoutExpired: process.kill()
        said, code = run(process)
        assert ("saved" in said, code) == (heard, 0 if heard else 137), (command, said)


def test_code_that_arrives_late(mode, make):
    "A framework processor's own script unpacks the user's while the job runs."
    machine = make("sh", "-ec", "cd /opt/ml/processing/input/code; tar -xzf sourcedir.tar.gz; "
                   "python3 entry.py --x 1")
    code = machine.folder/"ml"/"processing"/"input"/"code"; code.mkdir(parents=True)
    source = machine.folder/"s"; source.mkdir()
    (source/"entry.py").write_text("import help\nopen('/opt/ml/processing/'+help.NAME, 'w')\n")
    (source/"help.py").write_text("NAME = '/opt/ml/x'[-1]\n")
    subprocess.run(["tar", "-czf", code/"sourcedir.tar.gz", "-C", source, "."], check=True)
    prepare(machine)
    said, exit_code = run(start(machine))
    assert exit_code == 0 and (machine.folder/"ml"/"processing"/"x").exists(), said


REDUCE = """
import os, torch, torch.distributed as d
d.init_process_group("gloo"); t = torch.ones(1)*(d.get_rank()+1); d.all_reduce(t)
print("SUM", t.item(), d.get_world_size(), flush=True)
if d.get_rank() == 0: open("/opt/ml/model/w", "w")
"""


@pytest.mark.slow
def test_torchrun_over_two_machines(mode, make):
    from socket import create_server
    with create_server(("127.0.0.1", 0)) as free: port = free.getsockname()[1]
    machines = [make(*ENTRY, name=f"algo-{n}", port=port, TRAINING_JOB_NAME="two") for n in (1, 2)]
    for machine in machines:
        lay_out(machine, script=REDUCE, distributed={"process_count_per_node": 2}, count=2)
    processes = [start(m) for m in machines]
    for process in processes:
        said = process.output.read().decode()
        assert process.wait(60) == 0 and said.count("SUM 10.0 4") == 2, said


@pytest.mark.slow
def test_two_torchruns_at_once(mode, make):
    "Both would take port 29500."
    machines = [make(*ENTRY, port=port, TRAINING_JOB_NAME="two") for port in (41873, 41874)]
    for machine in machines:
        lay_out(machine, script=REDUCE, distributed={"process_count_per_node": 2})
    processes = [start(m) for m in machines]
    for process in processes:
        said = process.output.read().decode()
        assert process.wait(60) == 0 and said.count("SUM 3.0 2") == 2, said


MPI = {"process_count_per_node": 2, "mpi": True, "mpi_additional_options": None}


@pytest.mark.parametrize("count,expected", [(2, "on one instance only"), (1, "there is no m")])
def test_mpi_says_what_it_lacks(mode, make, count, expected):
    before = Path("/etc/environment").exists() and Path("/etc/environment").read_bytes()
    machine = make(*ENTRY, TRAINING_JOB_NAME="mpi")
    lay_out(machine, distributed=MPI, count=count)
    said, code = run(start(machine))
    if count == 1 and code == 0: pytest.skip("there is an MPI")
    assert code != 0 and "MPI in a rehearsal: " in said and expected in said, said
    assert before == (Path("/etc/environment").exists() and Path("/etc/environment").read_bytes())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("mpirun"), reason="no mpirun")
def test_mpi(mode, make):
    pytest.importorskip("mpi4py")
    machine = make(*ENTRY, TRAINING_JOB_NAME="mpi")
    code = "from mpi4py.MPI import COMM_WORLD as c; print('SUM', c.allreduce(c.rank + 1), c.size)"
    lay_out(machine, distributed=MPI, script=code)
    said, exit_code = run(start(machine))
    assert exit_code == 0 and said.count("SUM 3 2") == 2, said


# Systems that allow less

IN_MACHINE = """
import sys; from pathlib import Path
from ftnb.rehearsal.container import Machine, start
from ftnb.rehearsal.isolation import namespaces
folder = Path(sys.argv[1])/"algo-1"
shell = "(setsid sleep 60 &); echo > /opt/ml/x; id -u; exit 4"
p = start(Machine(folder, "algo-1", ("algo-1",), ("sh", "-c", shell), {}, 7777, sys.executable))
print(namespaces(), p.output.read().split(), p.wait(10), (folder/"ml"/"x").exists())
"""


def under(shell, folder, *flags):
    "Run a machine on a system that allows less than this one."
    words = ["unshare", "--user", *flags, "--mount", "--fork", "sh", "-ec", shell + '\nexec "$@"',
             "sh", sys.executable, "-c", IN_MACHINE, str(folder)]
    answer = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                            text=True, timeout=60)
    return answer.stdout.strip() or answer.stderr


needs_unshare = pytest.mark.skipif(POSSIBLE != "all" or not shutil.which("unshare"),
                                   reason="no namespaces to take away")


@needs_unshare
def test_where_proc_is_masked(tmp_path):
    "As in containers: a fresh /proc can't be mounted, files still can."
    said = under("mount -t tmpfs none /proc/fs", tmp_path, "--map-root-user")
    assert said == "files [b'0'] 4 True"


@needs_unshare
def test_where_namespaces_are_refused(tmp_path):
    said = under("for f in /proc/sys/user/max_*_namespaces; do echo 0 > $f; done", tmp_path,
                 "--map-root-user")
    assert said == "none [b'0'] 4 True"


@needs_unshare
def test_where_only_user_namespaces_are_refused(tmp_path):
    "Root doesn't need one."
    said = under("echo 0 > /proc/sys/user/max_user_namespaces", tmp_path, "--map-root-user")
    assert said == "all [b'0'] 4 True"


@needs_unshare
def test_an_ordinary_user(tmp_path):
    said = under(":", tmp_path, "--map-user=1000", "--map-group=1000")
    assert said == "all [b'0'] 4 True"


def test_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "rewriting")
    assert isolation() == "rewriting"
    monkeypatch.setenv(VARIABLE, "docker")
    with pytest.raises(BadInput, match="docker"): isolation()


def test_links_that_an_earlier_run_left_are_not_written_through(mode, make, tmp_path):
    machine = make("true")
    victim = tmp_path/"victim"; victim.write_text("unharmed")
    (machine.folder/"etc").mkdir()
    (machine.folder/"etc"/"hosts").symlink_to(victim)
    (machine.folder/"home").symlink_to(tmp_path)
    assert run(start(machine)) == ("", 0)
    assert victim.read_text() == "unharmed" and not (machine.folder/"home").is_symlink()
