"""Launchers carried out by stand-ins of the cloud's tools, which run four hosts on this machine and give each the variables of the real thing."""

import ast
import contextlib
import http.client
import http.server
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import pytest
import runs
from test_launch import ROOT, end_session, run, tool

from videomae_jax import cluster
from videomae_jax.errors import UserError

HOSTS = 4


@pytest.fixture
def bin_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder for stand-ins."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def environment(tmp_path: pathlib.Path, **more: str) -> dict[str, str]:
    """PATH with the stand-ins first, this Python for the runs, a home that is nobody's, and a machine whose settings are files below `tmp_path`."""
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIDEOMAE_PYTHON": sys.executable, "HOME": str(tmp_path), "TMPDIR": str(tmp_path),
            "STAND_IN": str(tmp_path), "MACHINE": str(tmp_path), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), **more}


# A process that leaves its variables behind, then does what it is told.
NOTING = '#!/usr/bin/env bash\nmkdir -p "$STAND_IN/env"\nenv -0 >"$(mktemp "$STAND_IN/env/XXXXXX")"\n'


def noted(tmp_path: pathlib.Path) -> list[dict[str, str]]:
    """The variables of every process that a stand-in of Python was."""
    return [dict(item.split("=", 1) for item in file.read_text().split("\0") if item) for file in (tmp_path / "env").iterdir()]


def joined(variables: Mapping[str, str], *, chips: bool) -> tuple[str | None, int, int, str]:
    """What jax.distributed makes of these variables, on a machine with TPU chips or without: coordinator, processes, process, visible GPUs ("" = all)."""
    from jax._src import distributed
    from jax._src.clusters import cloud_tpu_cluster, cluster

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, variables, clear=True))
        for module in (cloud_tpu_cluster, cluster):
            stack.enter_context(mock.patch.object(module, "running_in_cloud_tpu_vm", chips))
        stack.enter_context(mock.patch.object(distributed, "_jax"))
        settings = stack.enter_context(mock.patch.object(distributed, "config"))
        state = distributed.State()
        state.initialize(initialization_timeout=10)
    changed = dict(call.args for call in settings.update.call_args_list)
    return state.coordinator_address, state.num_processes, state.process_id, changed.get("jax_cuda_visible_devices", "")


# -- Cloud TPU --------------------------------------------------------------------------------------------------------------


GCLOUD = f"#!{sys.executable}" + '''
"""Hosts are folders: scp copies, ssh and start-up scripts run on all of them at once, and gs://X is the folder X of what all buckets hold."""
import glob, os, pathlib, shutil, subprocess, sys, time

home, hosts = pathlib.Path(os.environ["STAND_IN"]), range(4)
words = [w for w in sys.argv[1:] if not w.startswith("--")]
options = dict(w[2:].split("=", 1) for w in sys.argv[1:] if w.startswith("--") and "=" in w)

def host(n):
    folder = home / "hosts" / str(n)
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    return folder

def everywhere(script):
    os.environ.pop("TPU_SKIP_MDS_QUERY", None)  # of the process of the tests, where JAX found no chips
    running = []
    for n in hosts:
        mine = {"WORKER": str(n), "HOME": str(host(n)), "PATH": f"{host(n)}/bin:{os.environ['PATH']}", "GCE_METADATA_IP": f"{os.environ.get('METADATA')}/{n}"}
        start = lambda: subprocess.Popen(["bash", "-c", script.replace("@HOST@", str(host(n)))], cwd=host(n), env=os.environ | mine)
        running.append(start())
        if os.environ.get("BREAKS", "").startswith(f"{n} ") and "launch/host.sh" in script and not (home / "broke").exists():
            (home / "broke").touch()  # the connection, of which gcloud knows no code: it sends the same again, while the run lives or after its end
            while not (home / f"begun.{n}").exists() and running[-1].poll() is None:
                time.sleep(0.05)
            if os.environ["BREAKS"].endswith("after"):
                (home / "end").touch()
                running[-1].wait()
            running[-1] = start()
    sys.exit(max(process.wait() for process in running))

def missed():
    """Whether this host's read is one of the first that fail."""
    with (home / f"reads.{os.environ['WORKER']}").open("a+") as reads:
        reads.write("x")
        return reads.tell() <= int(os.environ["MISSES"])

def place(word):
    path = home / "buckets" / word.removeprefix("gs://") if word.startswith("gs://") else pathlib.Path(word)
    (path if word.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
    return path

match words:
    case ["compute", "tpus", "tpu-vm", "describe", _]:
        assert options["format"] == "value(networkEndpoints.len(), networkConfigs.len())"
        print(f"{len(hosts)}\\t0")
    case ["compute", "tpus", "tpu-vm", "scp", source, target] if ":" in source:
        if not options["worker"].isdigit():
            sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.scp) Invalid value for [--worker]: cannot target multiple workers while copying files to client.")
        for file in glob.glob(str(host(int(options["worker"])) / source.split(":")[1])):
            shutil.copy(file, target)
    case ["compute", "tpus", "tpu-vm", "scp", source, target]:
        assert options["worker"] == "all"
        for n in hosts:
            shutil.copy(source, host(n) / target.split(":")[1])
            if os.environ.get("BROKEN") == str(n):
                os.truncate(host(n) / target.split(":")[1], 1000)
    case ["compute", "tpus", "tpu-vm", "ssh", _]:
        assert options["worker"] == "all"
        everywhere(options["command"])
    case ["compute", "tpus", "queued-resources", "create", _]:
        script = pathlib.Path(options["metadata-from-file"].split("=", 1)[1]).read_text()
        for there in ("/opt/videomae_jax", "/usr/share/keyrings", "/etc/apt/sources.list.d", "/root"):
            script = script.replace(there, "@HOST@" + there)
        everywhere('mkdir -p "@HOST@/usr/share/keyrings" "@HOST@/etc/apt/sources.list.d"\\n' + script)
    case ["compute", "tpus", "queued-resources", "delete", _]:
        with (home / "deleted").open("a") as file:
            file.write(" ".join(sys.argv[1:]) + "\\n")
        sys.exit(os.environ.get("RIGHTS"))
    case ["compute", "tpus", "queued-resources", "list"]:
        pass
    case ["storage", "cp", source, "-"] if os.environ.get("WORKER") in os.environ.get("UNREAD", "").split() and missed():
        sys.exit(1)
    case ["storage", "cp", source, "-"]:
        sys.stdout.buffer.write(place(source).read_bytes())
    case ["storage", "cp", *sources, target]:
        for source in sources:
            shutil.copy(place(source), place(target))
    case _:
        sys.exit(f"ERROR: {words}")
'''


@pytest.fixture
def metadata() -> Iterator[str]:
    """Address of a metadata server, whose path /N is that of host N of four."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            worker, key = re.fullmatch(r"/(\d)/computeMetadata/v1/instance/attributes/([a-z-]+)", self.path).groups()
            values = {"agent-worker-number": worker, "worker-network-endpoints": ",".join(["unknown:unknown:127.0.0.1"] * HOSTS),
                      "tpu-env": f"ACCELERATOR_TYPE: 'v5litepod-16'\nWORKER_ID: '{worker}'\n"}
            self.send_response(200 if key in values else 404)
            self.end_headers()
            self.wfile.write(values.get(key, "").encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_address[1]}"
        server.shutdown()


def cloud_tpu(tmp_path: pathlib.Path, bin_folder: pathlib.Path, **more: str) -> dict[str, str]:
    """A Cloud TPU of four hosts."""
    tool(bin_folder, "gcloud", GCLOUD)
    tool(bin_folder, "hostname", '#!/bin/sh\necho "t1v-w-$WORKER"\n')
    return environment(tmp_path, VIDEOMAE_PYTHON=str(bin_folder / "python"), **more)


def test_a_tpu_vm_gets_the_source_runs_on_all_workers_and_returns_logs(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str) -> None:
    """Four hosts: the committed tree unpacked, the command run on all, one log each brought back; a failure is passed on, a stop started again."""
    tool(bin_folder, "python", NOTING + 'echo "$WORKER got $*, proxy ${http_proxy:-none}, flags $LIBTPU_INIT_ARGS"\n[ "$3" != broken ]\n')
    env = cloud_tpu(tmp_path, bin_folder, METADATA=metadata, http_proxy="http://nowhere")
    call = ("tpu_vm.sh", "--name=pod", "--zone=z", f"--logs={tmp_path}/logs")
    done = run(*call, "--chip=v5e", "--", "train", "--workdir=a b", env=env, timeout=300)
    assert done.returncode == 0 and "no logs" not in done.stderr, done.stderr
    for n in range(HOSTS):
        log = (tmp_path / "logs" / "pod" / f"host_t1v-w-{n}.log").read_text()
        assert log.startswith(f"{n} got -m videomae_jax train --coordinator=auto --init-timeout=600 --workdir=a b, proxy none, flags --xla_tpu")
        assert (tmp_path / "hosts" / str(n) / "videomae_jax" / "videomae_jax" / "step.py").is_file()
    assert {joined(variables, chips=True) for variables in noted(tmp_path)} == {("127.0.0.1:8482", HOSTS, n, "") for n in range(HOSTS)}
    assert run(*call, "--max-restarts=0", "--", "broken", env=env, timeout=300).returncode != 0
    tool(bin_folder, "python", f'#!/usr/bin/env bash\n[ -f {tmp_path}/$WORKER ] || {{ touch {tmp_path}/$WORKER; exit 75; }}\necho again\n')
    assert run(*call, "--", "train", env=env | {"PAUSE": "0"}, timeout=300).returncode == 0
    assert [(tmp_path / "logs" / "pod" / f"host_t1v-w-{n}.log").read_text().splitlines()[-1] for n in range(HOSTS)] == ["again"] * HOSTS


def test_a_tpu_vm_says_that_its_source_arrived_broken(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Which is no run under way; nothing starts."""
    tool(bin_folder, "python", NOTING)
    done = run("tpu_vm.sh", "--name=pod", "--zone=z", "--", "train", env=cloud_tpu(tmp_path, bin_folder, BROKEN="2"), timeout=300)
    assert not [*tmp_path.glob("tmp.*"), *tmp_path.glob("*.tar.gz")]  # a place of its own for each launch, which goes away
    assert done.returncode == 1 and "the source that arrived on this host cannot be unpacked (exit code 2)" in done.stderr
    assert "under way" not in done.stderr and not (tmp_path / "env").exists()


def test_a_tpu_vm_refuses_a_second_run(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """A run goes on when the connection breaks, and its log too; the same command again says so, and leaves its source alone."""
    tool(bin_folder, "python", f'#!/usr/bin/env bash\necho begun\nwhile [ ! -f {tmp_path}/end ]; do sleep 0.1; done\necho done\n')
    env = cloud_tpu(tmp_path, bin_folder)
    words = ["bash", str(ROOT / "launch" / "tpu_vm.sh"), "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--", "train"]
    with subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        for _ in range(HOSTS):
            first.stdout.readline()
        first.stdout.close()  # the connection is gone
        second = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        (tmp_path / "end").touch()
        assert second.returncode == 2 and "error: a run is under way on this host" in second.stderr
        assert first.wait(timeout=120) == 0
    for n in range(HOSTS):
        assert (tmp_path / "logs" / "pod" / f"host_t1v-w-{n}.log").read_text().splitlines() == ["begun", "done"]


# Ends a host's own processes alone: they have their folders below the host's.
PKILL = f"#!{sys.executable}" + """
import os, pathlib, signal, sys
assert sys.argv[1:3] == ["-TERM", "-f"]
for process in pathlib.Path("/proc").iterdir():
    if not process.name.isdecimal() or int(process.name) == os.getpid():
        continue
    try:
        if pathlib.Path(os.readlink(process / "cwd")).is_relative_to(os.environ["HOME"]):
            if sys.argv[3] in (process / "cmdline").read_bytes().replace(b"\\0", b" ").decode():
                os.kill(int(process.name), signal.SIGTERM)
    except OSError:
        pass  # it ended meanwhile, or is somebody else's
"""


def test_the_command_of_the_refusal_ends_the_run_on_every_host(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """As it is printed; each saves, and nothing starts again."""
    tool(bin_folder, "pkill", PKILL)
    tool(bin_folder, "python", "#!/usr/bin/env bash\ntrap 'echo saved; exit 75' TERM\necho begun\nfor ((i = 0; i < 600; i++)); do sleep 0.1; done\n")
    env = cloud_tpu(tmp_path, bin_folder, PAUSE="0")
    words = ["bash", str(ROOT / "launch" / "tpu_vm.sh"), "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--", "train"]
    with subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        for _ in range(HOSTS):
            first.stdout.readline()
        second = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        line, *_ = (line for line in second.stderr.splitlines() if line.startswith("error: a run is under way on this host"))
        subprocess.run(["bash", "-c", line.partition("this saves and ends it: ")[2]], env=env, cwd=tmp_path, check=True, timeout=120)
        first.stdout.read()
        assert first.wait(timeout=120) == 75
    for n in range(HOSTS):
        assert (tmp_path / "logs" / "pod" / f"host_t1v-w-{n}.log").read_text().splitlines() == ["begun", "saved"]


@pytest.mark.parametrize("when", ["during", "after"])
@pytest.mark.parametrize("code", [0, 2])
def test_a_run_is_started_once_however_often_gcloud_asks(tmp_path: pathlib.Path, bin_folder: pathlib.Path, when: str, code: int) -> None:
    """It repeats the command where the connection to a host breaks; the run's own code comes back, of a grid at its end, and the next cell starts."""
    tool(bin_folder, "python", f"""#!/usr/bin/env bash
[ "$3" != plan ] || {{ printf '# 2 cells\\na\\ttrain --x=1\\nb\\ttrain --x=2\\n'; exit; }}
echo "${{!#}}" >>"$STAND_IN/starts.$WORKER"
touch "$STAND_IN/begun.$WORKER"
for ((i = 0; i < 600; i++)); do [ ! -e "$STAND_IN/end" ] || break; sleep 0.05; done
[ "$WORKER ${{!#}}" != "2 --x=1" ] || exit {code}
""")
    env = cloud_tpu(tmp_path, bin_folder, BREAKS=f"2 {when}")
    words = ["bash", str(ROOT / "launch" / "tpu_vm.sh"), "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--grid=g.py", "--root=r"]
    with subprocess.Popen(words, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True) as launcher:
        said = ""
        for line in launcher.stderr:
            said += line
            if "is under way on this host; its end is waited for" in line:
                (tmp_path / "end").touch()
        assert launcher.wait(timeout=120) == code, said
    assert ("its end is waited for" in said) == (when == "during") and f"has ended on this host (exit code {code})" in said
    assert ("error: pod-a failed (exit code 2)" in said) == bool(code)
    assert [(tmp_path / f"starts.{n}").read_text().split() for n in range(HOSTS)] == [["--x=1", "--x=2"]] * HOSTS


def test_a_launch_is_refused_while_another_one_runs(tmp_path: pathlib.Path) -> None:
    """With its message and code 2, nothing is started; afterwards it is."""
    once = ["bash", str(ROOT / "launch" / "once.sh")]
    waits = "touch begun; for ((i = 0; i < 600; i++)); do [ ! -e end ] || break; sleep 0.05; done; exit 7"
    with subprocess.Popen([*once, "first", "busy", "bash", "-c", waits], cwd=tmp_path) as first:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        second = subprocess.run([*once, "second", "busy", "touch", "started"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        (tmp_path / "end").touch()
        assert (second.returncode, second.stderr, (tmp_path / "started").exists()) == (2, "busy\n", False)
        assert first.wait(timeout=60) == 7
    assert subprocess.run([*once, "second", "busy", "touch", "started"], cwd=tmp_path, check=False, timeout=60).returncode == 0 and (tmp_path / "started").exists()


def test_a_grid_ends_where_somebody_stops_a_cell(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """With the code of a run that saved."""
    tool(bin_folder, "python", f"""#!/usr/bin/env bash
[ "$3" != plan ] || {{ printf '# 2 cells\\na\\ttrain --x=1\\nb\\ttrain --x=2\\n'; exit; }}
echo "${{!#}}" >>"$STAND_IN/starts.$WORKER"
{STOPPED.replace("$(up $(up $PPID))", "$(up $PPID)")}
""")
    done = run("tpu_vm.sh", "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--grid=g.py", "--root=r", env=cloud_tpu(tmp_path, bin_folder), timeout=300)
    assert done.returncode == 75, done.stderr
    assert [(tmp_path / f"starts.{n}").read_text() for n in range(HOSTS)] == ["--x=1\n"] * HOSTS


# Machines that have nothing yet: apt brings the file system, a file says that it is mounted.
NEW_MACHINE = {
    "curl": f"#!{sys.executable}\n" + '''import os, sys, urllib.request
address = os.environ["GCE_METADATA_IP"]
url = sys.argv[-1].replace("metadata.google.internal", address)
print(urllib.request.urlopen(url).read().decode() if address in url else "key")
''',
    "apt-get": '#!/bin/bash\n[[ $* != *install* ]] || ln -sf "$STAND_IN/installed/${!#}" "$STAND_IN/hosts/$WORKER/bin/"\n',
    "lsb_release": "#!/bin/sh\necho jammy\n",
    "mountpoint": '#!/bin/sh\n[ -f "$STAND_IN/mounted.$WORKER" ]\n',
    "mount": '#!/bin/bash\ncommand -v nfs-common mount.nfs >/dev/null && exec "$STAND_IN/installed/gcsfuse" "$@"\n',
}


@pytest.mark.parametrize(("mount", "words"), [
    ("gs://shared", "--implicit-dirs --rename-dir-limit=200000 shared"), ("10.0.0.2:/share", "-t nfs 10.0.0.2:/share")])
def test_a_queued_resource_mounts_what_all_hosts_share(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str, mount: str, words: str) -> None:
    """The start-up script on four new machines: source from the bucket, the folder mounted at the second try, the run, a log each in the bucket."""
    for name, text in NEW_MACHINE.items():
        tool(bin_folder, name, text)
    (tmp_path / "installed").mkdir()
    tool(tmp_path / "installed", "gcsfuse", '#!/bin/sh\ncd "$STAND_IN"\necho "$*" >>tries.$WORKER\n[ $(wc -l <tries.$WORKER) = 2 ] && touch mounted.$WORKER\n')
    tool(tmp_path / "installed", "nfs-common", "#!/bin/sh\n")
    tool(bin_folder, "python", NOTING + 'mountpoint && echo "$WORKER got $*, flags $LIBTPU_INIT_ARGS"\n')
    done = run("queued_resource.sh", "--name=big", "--zone=z", "--accelerator-type=v5litepod-16", "--bucket=gs://own", f"--mount={mount}:{tmp_path}/mnt",
               "--", "train", "--x=a b", env=cloud_tpu(tmp_path, bin_folder, METADATA=metadata, PAUSE="0"), timeout=300)
    assert done.returncode == 0, done.stderr
    for n in range(HOSTS):
        assert (tmp_path / f"tries.{n}").read_text().splitlines() == [f"{words} {tmp_path}/mnt"] * 2
        log = (tmp_path / "buckets" / "own" / "big" / "logs" / f"host_{n}.log").read_text()
        assert log.startswith(f"{n} got -m videomae_jax train --coordinator=auto --init-timeout=1800 --x=a b, flags --xla_tpu")
    assert {joined(variables, chips=True) for variables in noted(tmp_path)} == {("127.0.0.1:8482", HOSTS, n, "") for n in range(HOSTS)}
    repository = tmp_path / "hosts" / "0" / "etc" / "apt" / "sources.list.d" / "gcsfuse.list"
    assert repository.exists() == mount.startswith("gs://") and (not repository.exists() or "gcsfuse-jammy main" in repository.read_text())


def test_a_queued_resource_without_its_folder_trains_nothing(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str) -> None:
    """After as many tries as fit into the time that others wait each host says so where its logs go, and the machines are given back."""
    for name, text in NEW_MACHINE.items():
        tool(bin_folder, name, text)
    tool(bin_folder, "gcsfuse", '#!/bin/sh\necho x >>"$STAND_IN/tries.$WORKER"\nexit 1\n')
    tool(bin_folder, "python", NOTING)
    done = run("queued_resource.sh", "--name=big", "--zone=z", "--accelerator-type=t", "--bucket=gs://own", f"--mount=gs://shared:{tmp_path}/mnt",
               "--init-timeout=60", "--", "train", f"--workdir={tmp_path}/mnt/x", env=cloud_tpu(tmp_path, bin_folder, METADATA=metadata, PAUSE="0"), timeout=300)
    assert len(given_back(tmp_path)) == 1
    assert done.returncode == 1 and not (tmp_path / "env").exists()
    said, = (tmp_path / "buckets" / "own" / "big" / "logs").iterdir()
    assert said.name.startswith("mount_") and said.read_text() == f"error: gs://shared cannot be mounted as {tmp_path}/mnt\n"
    assert (tmp_path / "tries.3").read_text().splitlines() == ["x"] * 7  # 30 seconds apart, and five more


def queued(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str, text: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A queued resource whose four machines have the shared folder, and train below it with a stand-in of Python."""
    for name, stand_in in NEW_MACHINE.items():
        tool(bin_folder, name, stand_in)
    for n in range(HOSTS):
        (tmp_path / f"mounted.{n}").touch()
    tool(bin_folder, "python", f"#!/usr/bin/env bash\n{text}\n")
    return run("queued_resource.sh", "--name=big", "--zone=z", "--accelerator-type=t", "--bucket=gs://own", f"--mount=gs://shared:{tmp_path}/mnt", *options,
               "--", "train", f"--workdir={tmp_path}/mnt/x", env=cloud_tpu(tmp_path, bin_folder, METADATA=metadata, PAUSE="0", **more), timeout=300)


def given_back(tmp_path: pathlib.Path) -> list[str]:
    """The deletions that were asked for."""
    return (tmp_path / "deleted").read_text().splitlines() if (tmp_path / "deleted").exists() else []


DELETE = "compute tpus queued-resources delete big --zone=z --force --quiet"
STOPPED = """trap 'exit 75' TERM
up() { sed -n 's/^PPid:[[:space:]]*//p' /proc/$1/status; }
kill -TERM $(up $(up $PPID)) # launch/supervise.sh, above the shell and launch/host.sh
for ((i = 0; i < 600; i++)); do sleep 0.1; done"""
# Somebody stops every run that is within a pause.
PAUSING = f"""#!/usr/bin/env bash
[[ $(tr '\\0' ' ' </proc/$PPID/cmdline) != "bash launch/supervise.sh "* ]] || kill -TERM $PPID
exec {shutil.which("sleep")} "$@"
"""


@pytest.mark.parametrize(("text", "options", "wanted"), [
    ("exit 0", (), True), ("exit 2", (), True), ("exit 1", ("--max-restarts=0",), True), ("exit 0", ("--keep=1",), False), (STOPPED, (), False),
    (STOPPED.replace("75", "74"), (), False), ("exit 1", (), False)],
    ids=["done", "mistake", "last crash", "kept", "stopped", "stopped without saving", "stopped within a pause"])
def test_a_queued_resource_is_given_back_at_its_end(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str,
                                                    text: str, options: tuple[str, ...], wanted: bool) -> None:
    """Once, by its first machine: after the run, a mistake or the last crash; not where it is to be kept, nor where somebody stopped the run."""
    tool(bin_folder, "sleep", PAUSING)
    done = queued(tmp_path, bin_folder, metadata, text, *options)
    assert given_back(tmp_path) == [f"{DELETE} --async"] * wanted, done.stderr


def test_a_source_that_cannot_be_read_is_asked_for_again(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str) -> None:
    """The first machine's, too, which deletes nothing for it: the others wait meanwhile, and all of them train."""
    done = queued(tmp_path, bin_folder, metadata, f'touch "$STAND_IN/ran.$TPU_WORKER_ID"\n{STOPPED}', UNREAD="0 3", MISSES="6")
    assert sorted(path.name for path in tmp_path.glob("ran.*")) == [f"ran.{n}" for n in range(HOSTS)], done.stderr
    assert given_back(tmp_path) == [] and len((tmp_path / "reads.3").read_text()) == 7


def test_a_source_that_is_not_there_is_told_in_the_bucket(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str) -> None:
    """By each machine, when the others wait no longer; nothing starts, and the machines, which nothing can use, are given back."""
    done = queued(tmp_path, bin_folder, metadata, 'touch "$STAND_IN/ran"', "--init-timeout=60", UNREAD="0 1 2 3", MISSES="1000")
    assert done.returncode == 1 and not (tmp_path / "ran").exists()
    said, = (tmp_path / "buckets" / "own" / "big" / "logs").iterdir()
    assert said.name.startswith("fetch_")
    assert re.fullmatch(r"error: the source cannot be fetched from gs://own/big/source_[0-9a-f]{40}\.tar\.gz\n", said.read_text())
    assert len((tmp_path / "reads.0").read_text()) == 7 and given_back(tmp_path) == [f"{DELETE} --async"]


def test_machines_that_have_the_only_copy_of_the_run_stay() -> None:
    """Which is said when they are asked for, with the command that gives them back."""
    words = ("queued_resource.sh", "--name=big", "--zone=z", "--accelerator-type=t", "--bucket=gs://own", "--dry-run")
    shared = "--mount=gs://shared:/mnt/a"
    for mount, *workdir in ((shared, "--workdir=runs/x"), (shared, "--workdir", "/mnt/ab/x"), ("--mount=", "--workdir=/mnt/a")):
        done = run(*words, mount, "--", "train", *workdir)
        assert f"big: --workdir is not below the folder of --mount, so the machines stay after the run, to be paid for until: gcloud {DELETE}" in done.stderr
        assert "give_back() { :; }" in done.stdout
    done = run(*words, shared, "--", "train", "--workdir", "/mnt/a/x")
    assert "the machines stay" not in done.stderr and f"gcloud {DELETE} --async" in done.stdout


def test_machines_without_the_right_to_go_say_what_gives_them_back(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str) -> None:
    """Beside the logs of the run, whose code stays."""
    done = queued(tmp_path, bin_folder, metadata, "exit 2", RIGHTS="PERMISSION_DENIED")
    said = tmp_path / "buckets" / "own" / "big" / "logs" / "give_back.log"
    assert done.returncode == 2 and said.read_text() == f"error: big cannot be given back by its own machine; this does it: gcloud {DELETE}\n"
    assert len(given_back(tmp_path)) == 1


CELLS = "#!/usr/bin/env bash\nprintf '# 3 cells\\na\\ttrain --x=1\\nb\\ttrain --x=2\\nc\\ttrain --x=3\\n'\n"
# Of the cells of a grid, a is under way, b has ended and c is new.
TAKEN_QUEUED = """#!/usr/bin/env bash
echo "$*" >>"$STAND_IN/calls"
case "$*" in *" list "*big-a*) echo ACTIVE ;; *" list "*big-b*) echo FAILED ;; esac
"""
TAKEN_XPK = """#!/usr/bin/env bash
echo "$*" >>"$STAND_IN/calls"
[ "$2" != list ] || printf '[XPK] Workload List Output:\\nJobset Name Status\\nbig-a2 Finished\\n'
case "$*" in
  *" list "*=FINISHED*) echo "big-b Finished" ;;
  *" list "*) printf 'big-a Admitted\\nbig-b Finished\\n' ;;
esac
"""


@pytest.mark.parametrize(("name", "text", "words", "making", "said"), [
    ("gcloud", TAKEN_QUEUED, ("queued_resource.sh", "--name=big", "--zone=z", "--accelerator-type=t", "--bucket=gs://own"), "queued-resources {} big-{} --",
     "the queued resource big-a is there and ACTIVE; gcloud compute tpus queued-resources delete big-a --zone=z --force --quiet ends it"),
    ("xpk", TAKEN_XPK, ("xpk.sh", "--name=big", "--cluster=c", "--image=i", "--tpu-type=t"), "workload {} .*--workload=big-{} ",
     "the workload big-a is under way; xpk workload delete --cluster=c --workload=big-a saves and ends it")], ids=["queued resource", "xpk"])
def test_a_grid_goes_past_a_name_that_is_taken(tmp_path: pathlib.Path, bin_folder: pathlib.Path, name: str,
                                               text: str, words: tuple[str, ...], making: str, said: str) -> None:
    """What is under way is left alone, what has ended makes room, and the rest is submitted; alone it is an error of one line."""
    tool(bin_folder, name, text)
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(tool(bin_folder, "python", CELLS)))
    done = run(*words, "--grid=g.py", "--root=r", env=env)
    assert done.returncode == 0 and said in done.stderr, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert [(verb, cell) for verb in ("create", "delete") for cell in "abc" if re.search(making.format(verb, cell), f"{calls} ".replace("\n", " \n"))] == [
        ("create", "b"), ("create", "c"), ("delete", "b")]
    alone = run(words[0], "--name=big-a", *words[2:], "--", "train", env=env)
    assert alone.returncode == 2 and f"error: {said}" in alone.stderr
    assert (tmp_path / "calls").read_text().count(" create ") == 2


# Two cells, of which the first fails.
KUBECTL_OF_TWO = """#!/usr/bin/env bash
echo "$2 $3" >>"$STAND_IN/calls"
case "$2 $3 $4" in
  "create -f -") cat >/dev/null ;;
  *--ignore-not-found) ;;
  "get jobset/job-a "*) echo Failed ;;
  "get jobset/job-b "*) echo Completed ;;
  "get pods "*) echo "pod/of-${4##*=}" ;;
  "logs "*) echo "log of $4" ;;
esac
"""


# The first of three cells is refused, as by a quota.
REFUSES = """#!/usr/bin/env bash
echo "$*" >>"$STAND_IN/calls"
case "$*" in *" create -f -"*) if grep -q big-a; then echo "error: exceeded quota" >&2; exit 3; fi ;;
  *" get "*|*" list "*) ;;
  *big-a*) echo "error: exceeded quota" >&2; exit 3 ;; esac
"""


@pytest.mark.parametrize(("name", "words"), [
    ("gcloud", ("queued_resource.sh", "--zone=z", "--accelerator-type=t", "--bucket=gs://own")),
    ("xpk", ("xpk.sh", "--cluster=c", "--image=i", "--tpu-type=t")), ("sbatch", ("slurm.sh", "--nodes=1")),
    ("kubectl", ("gke.sh", "--image=i", "--accelerator=a", "--torus=2x2", "--hosts=1"))], ids=["queued resource", "xpk", "slurm", "gke"])
def test_a_grid_goes_past_a_cell_that_is_refused(tmp_path: pathlib.Path, bin_folder: pathlib.Path, name: str, words: tuple[str, ...]) -> None:
    """The others are submitted, and its code is the launcher's; alone it is the code, without a second line."""
    tool(bin_folder, name, REFUSES)
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(tool(bin_folder, "python", CELLS)))
    done = run(words[0], "--name=big", *words[1:], "--grid=g.py", "--root=r", env=env)
    assert done.returncode == 3 and "error: big-a is not submitted (exit code 3)" in done.stderr, done.stderr
    assert done.stderr.count("not submitted") == 1
    made = (tmp_path / "calls").read_text()
    assert made.count(" create -f -") == 3 if name == "kubectl" else all(f"big-{cell}" in made for cell in "bc")
    alone = run(words[0], "--name=big-a", *words[1:], "--", "train", env=env)
    assert alone.returncode == 3 and "not submitted" not in alone.stderr, alone.stderr


def test_what_is_refused_is_not_followed(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Nobody would ever end the wait for it; the others are."""
    tool(bin_folder, "kubectl", KUBECTL_OF_TWO.replace('"create -f -") cat >/dev/null ;;', '"create -f -") ! grep -q job-a ;;'))
    python = tool(bin_folder, "python", "#!/usr/bin/env bash\nprintf '# 2 cells\\na\\ttrain --x=1\\nb\\ttrain --x=2\\n'\n")
    done = run("gke.sh", "--name=job", "--image=i", "--accelerator=a", "--torus=2x4", "--hosts=2", "--follow=1", f"--logs={tmp_path}/logs",
               "--grid=g.py", "--root=r", env=environment(tmp_path, VIDEOMAE_PYTHON=str(python), POLL="0"))
    assert done.returncode == 1 and "error: job-a is not submitted (exit code 1)" in done.stderr, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "get jobset/job-a", "create -f", "get jobset/job-b", "create -f", "get jobset/job-b", "get pods", "logs --container=trainer"]


def test_ctrl_c_ends_the_submission_of_a_grid(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Also where the tool has an answer of its own to the signal: what follows is not submitted, and not paid for."""
    tool(bin_folder, "sbatch", """#!/usr/bin/env bash
echo "$*" >>"$STAND_IN/calls"
trap 'exit 1' INT
for ((i = 0; i < 600; i++)); do sleep 0.1; done
""")
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(tool(bin_folder, "python", CELLS)))
    words = ["bash", str(ROOT / "launch" / "slurm.sh"), "--name=big", "--nodes=1", "--grid=g.py", "--root=r"]
    with subprocess.Popen(words, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as launcher:
        while not (tmp_path / "calls").exists():
            time.sleep(0.02)
        time.sleep(0.3)  # for the trap, which stands behind the line that was seen
        os.killpg(launcher.pid, signal.SIGINT)
        assert launcher.wait(timeout=60) == 130
    assert (tmp_path / "calls").read_text().count("\n") == 1


def test_a_job_of_slurm_waits_for_one_of_its_name(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """The cell that is submitted again, not the runs that nobody gave a name."""
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(tool(bin_folder, "python", CELLS)))
    cells = run("slurm.sh", "--nodes=1", "--grid=g.py", "--root=r", "--dry-run", env=env).stdout.splitlines()
    assert len(cells) == 3 and all("--dependency=singleton" in line for line in cells)
    assert "singleton" not in run("slurm.sh", "--nodes=1", "--dry-run", "--", "train", env=env).stdout
    assert "singleton" in run("slurm.sh", "--nodes=1", "--name=mine", "--dry-run", "--", "train", env=env).stdout


def test_a_name_that_is_taken_leaves_the_source_of_the_job_alone(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Its machines fetch the archive of their own commit whenever they are started again, whatever was launched in vain since."""
    tool(bin_folder, "gcloud", """#!/usr/bin/env bash
case "$1 $2" in
  "compute tpus") [ "$4" != list ] || exit 0 ;;&
  "storage cp") mkdir -p "$STAND_IN/$(dirname "${4#gs://}")" && cp "$3" "$STAND_IN/${4#gs://}" ;;
  *) [ -z "${TAKEN:-}" ] || { echo "ERROR: ALREADY_EXISTS" >&2; exit 1; }; cp "${!##*=startup-script=}" "$STAND_IN/startup" ;;
esac
""")
    home = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", home / "launch")
    words = ["bash", str(home / "launch" / "queued_resource.sh"), "--name=big", "--zone=z", "--accelerator-type=t", "--bucket=gs://own", "--", "train"]
    def launch(**more: str) -> subprocess.CompletedProcess[str]:
        for git in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run(["git", "-C", str(home), *git], check=True)
        return subprocess.run(words, env=os.environ | environment(tmp_path, **more), capture_output=True, text=True, timeout=60)
    first = launch()
    assert first.returncode == 0, first.stderr
    archive, = (tmp_path / "own" / "big").iterdir()
    assert f"gs://own/big/{archive.name} - | tar" in (tmp_path / "startup").read_text()
    before = archive.read_bytes()
    (home / "later").touch()
    again = launch(TAKEN="1")
    assert again.returncode == 1 and "ALREADY_EXISTS" in again.stderr
    assert archive.read_bytes() == before and len(list(archive.parent.iterdir())) == 2


# -- xpk --------------------------------------------------------------------------------------------------------------------


XPK = """#!/usr/bin/env bash
# Pods of GPUs are processes on this machine, with the variables that xpk gives them: the coordinator's port is one of its own.
for word in "$@"; do case "$word" in --command=*) command=${word#*=} ;; --num-nodes=*) nodes=${word#*=} ;; esac; done
pids=() code=0
for ((i = 0; i < nodes; i++)); do
  (cd "$CHECKOUT" && KUBERNETES_SERVICE_HOST=10.0.0.1 JOB_COMPLETION_INDEX=$i JAX_COORDINATOR_ADDRESS=localhost JAX_COORDINATOR_PORT=$PORT NNODES=$nodes \
    NODE_RANK=$i bash -c "$command") & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""


def xpk(tmp_path: pathlib.Path, bin_folder: pathlib.Path, *command: str, timeout: int = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """xpk.sh over four nodes with GPUs."""
    tool(bin_folder, "xpk", XPK)
    env = environment(tmp_path, CHECKOUT=str(ROOT), LOGS=str(tmp_path / "logs"), **more)
    return run("xpk.sh", "--name=g", "--cluster=c", "--image=i", "--device-type=h100-80gb-8", f"--num-nodes={HOSTS}", "--init-timeout=400", "--", *command,
               env=env, timeout=timeout)


def test_xpk_joins_host_and_port_that_its_pods_have_apart(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """JAX, which would take the host for both, gets the whole address and the pod's place; other commands get none."""
    python = tool(bin_folder, "python", NOTING + 'printf "%q " "$NODE_RANK" "$@"\n')
    done = xpk(tmp_path, bin_folder, "train", "--x=a b", VIDEOMAE_PYTHON=str(python), PORT="6002")
    assert done.returncode == 0, done.stderr
    for n in range(HOSTS):
        assert shlex.split((tmp_path / "logs" / f"host_{n}.log").read_text()) == [
            str(n), "-m", "videomae_jax", "train", "--coordinator=localhost:6002", f"--processes={HOSTS}", f"--process={n}", "--init-timeout=400", "--x=a b"]
    done = xpk(tmp_path, bin_folder, "report", VIDEOMAE_PYTHON=str(python), PORT="6002")
    assert done.returncode == 0 and "coordinator" not in (tmp_path / "logs" / "host_0.log").read_text().rpartition("report")[2]


@pytest.mark.parametrize(("error", "kind", "message"), [
    (ValueError("coordinator_address\nshould be defined."), UserError, "--coordinator=auto: coordinator_address should be defined.; give --coordinator="),
    (RuntimeError("Kubernetes API Error: 403 - Forbidden\n  rights"), UserError, "--coordinator=auto: Kubernetes API Error: 403 - Forbidden rights; give"),
    (RuntimeError("pod g-0 does not have a controller."), UserError, "--coordinator=auto: pod g-0 does not have a controller.; give"),
    (RuntimeError("Failed to recognize coordinator address g-0.g"), RuntimeError, "Failed to recognize"),
    (jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED"), jax.errors.JaxRuntimeError, "DEADLINE_EXCEEDED")])
def test_a_cluster_that_tells_too_little_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str) -> None:
    """Processes that are late are no mistake, nor is the first one of a slice whose name is not known yet: the command is started again."""
    monkeypatch.setattr(jax.distributed, "initialize", mock.Mock(side_effect=error))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)  # with which the collectives of this process would be changed
    with pytest.raises(kind, match=re.escape(message)) as found:
        cluster.initialize(coordinator="auto", processes=1, process=0)
    assert "\n" not in str(found.value)


# What JAX's own detection says; another version may say it otherwise.
SAYS = ["Kubernetes API Error: {e.status} - {e.reason}", "does not have a controller.",
        "Pods within a job need a headless service in order to communicate with each other.", "cluster automatic bootstrap only supports Job/JobSet.",
        "jobs must be indexed by setting `completionMode: \"Indexed\"`.", "expected HOSTNAME env variable to be defined",
        "Could not parse coordinator IP address from Open MPI environment.", "Open MPI 5 or newer requires mpi4py for distributed initialization."]
LATER = {SAYS[-1]: (0, 12)}  # the first version that says it


@pytest.mark.parametrize(("pattern", "text"), list(zip(cluster.MISTAKES.split("|"), SAYS, strict=True)))
def test_mistakes_are_known_by_what_jax_says(monkeypatch: pytest.MonkeyPatch, pattern: str, text: str) -> None:
    """Each text is in the installed version, if that is new enough, and a mistake, wherever its lines are broken."""
    folder = pathlib.Path(jax.__file__).parent / "_src" / "clusters"
    later = jax.__version_info__ < LATER.get(text, ())
    assert later or any(text in ast.unparse(ast.parse(file.read_text())) for file in folder.glob("*.py"))
    said = text.format(e=mock.Mock(status=403, reason="Forbidden"))
    assert re.search(pattern, said)
    monkeypatch.setattr(jax.distributed, "initialize", mock.Mock(side_effect=RuntimeError("\n".join(said.split()))))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(UserError, match="^--coordinator=auto: "):
        cluster.initialize(coordinator="auto", processes=1, process=0)


def test_a_fault_of_the_cluster_that_passes_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server is asked again by the next start; an address without a port is refused before JAX takes it for both."""
    error = RuntimeError("Kubernetes API Error: 500 - Internal Server Error")
    error.__cause__ = urllib.error.HTTPError("http://server", 500, "Internal Server Error", http.client.HTTPMessage(), None)
    monkeypatch.setattr(jax.distributed, "initialize", mock.Mock(side_effect=error))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(RuntimeError, match="500"):
        cluster.initialize(coordinator="auto", processes=1, process=0)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host")
    with pytest.raises(UserError, match="^JAX_COORDINATOR_ADDRESS=host; allowed are HOST:PORT"):
        cluster.initialize(coordinator="auto", processes=1, process=0)


# -- Kubernetes -------------------------------------------------------------------------------------------------------------


KUBECTL = f"#!{sys.executable}" + '''
"""A cluster with JobSets: `create` runs the pods to their end, all anew after a failure that no rule matches; two looks tell nothing, the third the end."""
import os, pathlib, re, subprocess, sys, yaml

home, words = pathlib.Path(os.environ["STAND_IN"]), [w for w in sys.argv[1:] if not w.startswith("--")]
FIRST = '--output=jsonpath={.metadata.name} {.status.conditions[?(@.status=="True")].type}'
LOOK = '--output=jsonpath={.status.conditions[?(@.status=="True")].type}'

def expanded(word, env):
    return re.sub(r"\\$(?:\\$|\\(([^)]*)\\))", lambda m: "$" if m[1] is None else env.get(m[1], m[0]), word)

def start(job):
    spec, slices = job["template"]["spec"], job["replicas"]
    container, pods = spec["template"]["spec"]["containers"][0], []
    for place in range(slices * spec["completions"]):
        i, n = divmod(place, spec["completions"])
        own = {e["name"]: e["value"] for e in container["env"]}
        own |= {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": str(n), "TPU_WORKER_ID": str(n)}
        own |= {"TPU_SKIP_MDS_QUERY": "true", "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * spec["completions"])}
        if slices > 1:
            own |= {"MEGASCALE_SLICE_ID": str(i), "MEGASCALE_NUM_SLICES": str(slices), "MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
        env = os.environ | own | {"LOGS": str(home / "container" / f"{i}-{n}")}
        command = [expanded(word, own) for word in [*container["command"], *container["args"]]]
        pods.append(subprocess.Popen(command, cwd=HERE, env=env, stdout=(home / f"slice-{i}-{n}").open("w")))
    return [p.wait() for p in pods]

def outcome(spec):
    job = spec["replicatedJobs"][0]
    final = {c for rule in job["template"]["spec"]["podFailurePolicy"]["rules"] for c in rule["onExitCodes"]["values"]}
    for _ in range(spec["failurePolicy"]["maxRestarts"] + 1):
        codes = start(job)
        if not any(codes):
            return "Completed"
        if final & set(codes) and {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]} in spec["failurePolicy"]["rules"]:
            return "Failed"
    return "Failed"

if words == ["create", "-f", "-"]:
    if (home / "status").exists():
        sys.exit('Error from server (AlreadyExists): jobsets.jobset.x-k8s.io "job" already exists')
    (home / "status").write_text(outcome(yaml.safe_load(sys.stdin)["spec"]))
elif words[:1] == ["get"] and FIRST in sys.argv and "--ignore-not-found" in sys.argv:
    status = home / "status"
    print("job " + status.read_text() if status.exists() else "", end="")
elif words == ["delete", "jobset/job"] and "--wait" in sys.argv:
    (home / "status").unlink()
elif words == ["get", "jobset/job"]:
    assert LOOK in sys.argv
    with (home / "looks").open("a+") as looks:
        looks.write("x")
        looks.seek(0)
        count = len(looks.read())
    if count == 1:
        sys.exit("Unable to connect to the server")
    print("StartupPolicyCompleted", *[(home / "status").read_text()] * (count > 2), end="")
elif words == ["get", "pods"]:
    print(*(f"pod/{file.name}" for file in home.glob("slice-*")), sep="\\n")
elif words[0] == "logs" and "--container=trainer" in sys.argv:
    print((home / words[1].split("/")[1]).read_text(), end="")
else:
    sys.exit(f"error: {sys.argv}")
'''.replace("cwd=HERE", f"cwd={str(ROOT)!r}")
PODS = [(i, n) for i in range(2) for n in range(2)]


def gke(tmp_path: pathlib.Path, bin_folder: pathlib.Path, *command: str, timeout: int = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """gke.sh over two slices of two hosts, followed to the end."""
    pytest.importorskip("yaml")
    tool(bin_folder, "kubectl", KUBECTL)
    return run("gke.sh", "--name=job", "--image=i", "--accelerator=a", "--torus=2x4", "--hosts=2", "--slices=2", "--max-restarts=2", "--follow=1",
               f"--logs={tmp_path}/logs", "--init-timeout=400", "--", *command, env=environment(tmp_path, POLL="0.01", **more), timeout=timeout)


def test_kubectl_gets_the_manifest_and_returns_a_log_for_each_pod(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """The container's command runs once for each pod; its words arrive as they were given, whatever Kubernetes makes of a $."""
    python = tool(bin_folder, "python", NOTING + "printf '%q ' \"$MEGASCALE_SLICE_ID-$JOB_COMPLETION_INDEX\" \"$@\"\n")
    words = ["train", "--x=a b", "a$$b $(CHIP) $$(X)", 'new\nline\ttab "quoted" \\n']
    done = gke(tmp_path, bin_folder, *words, VIDEOMAE_PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    for i, n in PODS:
        log = (tmp_path / "logs" / "job" / f"slice-{i}-{n}.log").read_text()
        said = subprocess.run(["bash", "-c", f"printf '%s\\0' {log}"], capture_output=True, text=True, check=True)
        assert said.stdout.split("\0")[:-1] == [f"{i}-{n}", "-m", "videomae_jax", "train", "--coordinator=auto", "--init-timeout=400", *words[1:]]
    assert {joined(variables, chips=True) for variables in noted(tmp_path)} == {("localhost:8482", HOSTS, n, "") for n in range(HOSTS)}


@pytest.mark.parametrize(("codes", "starts", "wanted"), [((2, 0), 1, 1), ((75, 0), 2, 0), ((75, 1, 1), 3, 1)])
def test_a_jobset_restarts_all_but_mistakes(tmp_path: pathlib.Path, bin_folder: pathlib.Path, codes: tuple[int, ...], starts: int, wanted: int) -> None:
    """One pod ends with these codes in turn: a mistake fails at once, a stop goes on, three failures are too many. Logs come in any case."""
    python = tool(bin_folder, "python", f'''#!/usr/bin/env bash
codes=({" ".join(map(str, codes))})
echo x >>"$STAND_IN/starts.$MEGASCALE_SLICE_ID-$JOB_COMPLETION_INDEX"
start=$(wc -l <"$STAND_IN/starts.$MEGASCALE_SLICE_ID-$JOB_COMPLETION_INDEX")
echo "start $start"
[ "$MEGASCALE_SLICE_ID-$JOB_COMPLETION_INDEX" != 1-1 ] || exit ${{codes[start - 1]}}
''')
    done = gke(tmp_path, bin_folder, "train", VIDEOMAE_PYTHON=str(python))
    assert done.returncode == wanted and ("error: the JobSet job failed" in done.stderr) == bool(wanted), done.stderr
    for i, n in PODS:
        assert (tmp_path / "logs" / "job" / f"slice-{i}-{n}.log").read_text() == f"start {starts}\n"


def test_a_jobset_that_has_ended_makes_room(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """The same command resumes a failed run, with other words too: Kubernetes would leave the old one as it is."""
    python = tool(bin_folder, "python", '#!/usr/bin/env bash\n[ "${!#}" = --right ] || exit 2\n')
    assert gke(tmp_path, bin_folder, "train", "--wrong", VIDEOMAE_PYTHON=str(python)).returncode == 1
    (tmp_path / "looks").unlink()
    assert gke(tmp_path, bin_folder, "train", "--right", VIDEOMAE_PYTHON=str(python)).returncode == 0
    assert (tmp_path / "status").read_text() == "Completed"


def test_a_jobset_under_way_is_left_alone(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """One line; of a grid it is passed over, and the rest is submitted."""
    tool(bin_folder, "python", "#!/usr/bin/env bash\n[[ $* != *plan* ]] || printf '# 2 cells\\na\\ttrain --x=1\\n'\n")
    (tmp_path / "status").write_text("")
    python = {"VIDEOMAE_PYTHON": str(bin_folder / "python")}
    done = gke(tmp_path, bin_folder, "train", **python)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "error: the JobSet job is under way; kubectl --namespace=default delete jobset/job" in done.stderr
    words = ["gke.sh", "--name=job", "--image=i", "--accelerator=a", "--torus=2x4", "--hosts=2", "--grid=g.py", "--root=r"]
    done = run(*words, env=environment(tmp_path, **python))
    assert done.returncode == 0 and "the JobSet job-a is under way" in done.stderr, done.stderr
    assert (tmp_path / "status").read_text() == ""


def test_a_grid_is_submitted_before_it_is_followed(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Every cell, so that they run together; one that fails is told at the end, and the logs of all are there."""
    tool(bin_folder, "kubectl", KUBECTL_OF_TWO)
    python = tool(bin_folder, "python", "#!/usr/bin/env bash\nprintf '# 2 cells\\na\\ttrain --x=1\\nb\\ttrain --x=2\\n'\n")
    done = run("gke.sh", "--name=job", "--image=i", "--accelerator=a", "--torus=2x4", "--hosts=2", "--follow=1", f"--logs={tmp_path}/logs",
               "--grid=g.py", "--root=r", env=environment(tmp_path, VIDEOMAE_PYTHON=str(python), POLL="0"))
    assert done.returncode == 1 and "error: the JobSet job-a failed" in done.stderr and "job-b" not in done.stderr, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "get jobset/job-a", "create -f", "get jobset/job-b", "create -f",
        "get jobset/job-a", "get pods", "logs --container=trainer", "get jobset/job-b", "get pods", "logs --container=trainer"]
    assert [(tmp_path / "logs" / f"job-{cell}" / f"of-job-{cell}.log").read_text() for cell in "ab"] == [f"log of pod/of-job-{cell}\n" for cell in "ab"]
    # A launcher that was interrupted: the same command follows what is under way.
    (tmp_path / "calls").unlink()
    tool(bin_folder, "kubectl", KUBECTL_OF_TWO.replace("*--ignore-not-found) ;;", "*--ignore-not-found) echo under-way ;;"))
    again = run("gke.sh", "--name=job", "--image=i", "--accelerator=a", "--torus=2x4", "--hosts=2", "--follow=1", f"--logs={tmp_path}/more",
                "--grid=g.py", "--root=r", env=environment(tmp_path, VIDEOMAE_PYTHON=str(python), POLL="0"))
    assert again.returncode == 1 and "error: the JobSet job-a failed" in again.stderr and "create -f" not in (tmp_path / "calls").read_text()
    assert (tmp_path / "more" / "job-b" / "of-job-b.log").exists()


# -- SLURM ------------------------------------------------------------------------------------------------------------------


SRUN = """#!/usr/bin/env bash
# Tasks are processes on this machine, with the variables that SLURM gives them. The CPUs of a task are what srun itself is told, since 22.05.
# A task that fails ends the others only where it is told so; the highest code of all tasks comes back, and KILLED (137) for one that is killed:
# newer ones answer 253 where memory was wanting, older ones what a later task ends with.
words=() cpus=${SRUN_CPUS_PER_TASK:-1} kill=
for word in "$@"; do
  case "$word" in
    --cpus-per-task=*) [ ${#words[@]} -gt 0 ] && words+=("$word") || cpus=${word#*=} ;;
    --kill-on-bad-exit=1) [ ${#words[@]} -gt 0 ] && words+=("$word") || kill=1 ;;
    --*) [ ${#words[@]} -gt 0 ] && words+=("$word") ;;
    *) words+=("$word") ;;
  esac
done
pids=()
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$((i % SLURM_NTASKS_PER_NODE)) SLURM_STEP_NODELIST=localhost SLURM_CPUS_PER_TASK=$cpus "${words[@]}" & pids+=($!)
done
echo "${pids[*]}" >"$STAND_IN/tasks"
code=0
for pid in "${pids[@]}"; do
  wait -n || { ended=$?; [ $ended -ne 137 ] || ended=${KILLED:-137}; [ $code -ne 0 ] || [ -z "$kill" ] || kill -TERM "${pids[@]}" 2>/dev/null; [ $code -gt $ended ] || code=$ended; }
done
exit $code
"""
SBATCH = """#!/usr/bin/env bash
# Runs the script to its end, with the options that its own lines give. ENDING says that the time is over once every task has begun.
words=() output=/dev/null
for word in "$@"; do
  if [ ${#words[@]} -gt 0 ]; then words+=("$word"); continue; fi
  case "$word" in
    --export=*) IFS=, read -ra pairs <<<"${word#--export=ALL,}"; export "${pairs[@]}" ;;
    --nodes=*) nodes=${word#*=} ;;
    --ntasks-per-node=*) export SLURM_NTASKS_PER_NODE=${word#*=} ;;
    --cpus-per-task=*) export SLURM_CPUS_PER_TASK=${word#*=} ;;
    --output=*) output=$STAND_IN/${word#*=} output=${output//%j/$SLURM_JOB_ID} ;;
    --*) ;;
    *) words+=("$word") ;;
  esac
done
asked() { sed -n "s/^#SBATCH --$1//p" "${words[0]}"; } # the values of an option
export SLURM_NTASKS=$((nodes * SLURM_NTASKS_PER_NODE)) REQUEUE=$(asked "requeue$" | wc -l)
[ "$(asked open-mode=)" = append ] || : >"$output"
bash "${words[@]}" >>"$output" 2>&1 & job=$!
if [ -n "${ENDING:-}" ] && [[ $(asked signal=) =~ ^([A-Z]+)@([0-9]+)$ ]] && [ ${BASH_REMATCH[2]} -ge 60 ]; then
  while [ "$(ls "$STAND_IN" | grep -c '^begun')" -lt $SLURM_NTASKS ] && kill -0 $job 2>/dev/null; do sleep 0.1; done
  while [ ! -s "$STAND_IN/tasks" ] && kill -0 $job 2>/dev/null; do sleep 0.1; done # srun is a process like them
  kill -${BASH_REMATCH[1]} $(cat "$STAND_IN/tasks") # without B: the steps get it, not the script
fi
wait $job
"""


def slurm(tmp_path: pathlib.Path, bin_folder: pathlib.Path, **more: str) -> dict[str, str]:
    """SLURM whose nodes are this machine."""
    tool(bin_folder, "srun", SRUN)
    tool(bin_folder, "sbatch", SBATCH)
    tool(bin_folder, "scontrol", f'#!/usr/bin/env bash\n[ "$REQUEUE" = 1 ] || {{ echo "Requested operation is presently disabled" >&2; exit 1; }}\n'
         f'echo "$*" >>"{tmp_path}/requeued"\n')
    with socket.socket() as found:  # JAX's coordinator listens on job % 4096 + 61440
        found.bind(("localhost", 0))
        job = found.getsockname()[1] % 4096
    return environment(tmp_path, SLURM_JOB_ID=str(job), LOGS=str(tmp_path / "logs"), **more)


@pytest.mark.parametrize(("words", "cpus", "visible"), [
    (["--nodes=2", "--gpus=2", "--cpus=12"], "12", ["0", "1", "0", "1"]), (["--nodes=4", "--per=node", "--gpus=4", "--cpus=12"], "48", ["0,1,2,3"] * 4)])
def test_slurm_gives_each_process_its_gpus_and_cpus(tmp_path: pathlib.Path, bin_folder: pathlib.Path, words: list[str], cpus: str, visible: list[str]) -> None:
    """One process a GPU sees that GPU, one a node all of the node; both have the CPUs of the job, and find each other."""
    python = tool(bin_folder, "python", NOTING)
    env = slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(python))
    done = run("slurm.sh", *words, "--", "train", env=env)
    assert done.returncode == 0, done.stderr
    address = f"localhost:{int(env['SLURM_JOB_ID']) + 61440}"
    assert {joined(variables, chips=False) for variables in noted(tmp_path)} == {(address, HOSTS, n, visible[n]) for n in range(HOSTS)}
    assert [variables["SLURM_CPUS_PER_TASK"] for variables in noted(tmp_path)] == [cpus] * HOSTS
    assert all(("JAX_LOCAL_DEVICE_IDS" in variables) == ("--per=node" in words) for variables in noted(tmp_path))


def test_a_stopped_job_is_queued_again(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Exit code 75 says that the state is saved; a stuck run, a storage fault and a crash go on too, up to a limit; mistakes and Ctrl-C do not."""
    tool(bin_folder, "python", '#!/usr/bin/env bash\nexit "${CODE}"\n')
    env = slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(bin_folder / "python"))
    call = ("slurm.sh", "--nodes=1", "--gpus=2", "--", "train")
    assert run(*call, env=env | {"CODE": "75"}).returncode == 0
    assert (tmp_path / "requeued").read_text() == f"requeue {env['SLURM_JOB_ID']}\n"
    for code in ("2", "126", "127", "130"):
        assert run(*call, env=env | {"CODE": code}).returncode == int(code)
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1
    crashes = [("42", 0), ("74", 0), ("75", 0), ("1", 0), ("3", 0), ("1", 1)]  # 75 begins the row anew, and the third crash of a row is the last
    for code, wanted in crashes:
        assert run(*call, env=env | {"CODE": code, "CRASHES": "3", "SLURM_RESTART_COUNT": "99"}).returncode == wanted
    assert len((tmp_path / "requeued").read_text().splitlines()) == 6
    assert run(*call, env=env | {"CODE": "3", "CRASHES": "3", "STEADY": "0"}).returncode == 0, "a start that lasted began the row anew"


@pytest.mark.parametrize("place", ["shell", "environment"])
def test_a_task_that_is_ended_before_it_begins_is_no_crash(tmp_path: pathlib.Path, bin_folder: pathlib.Path, place: str) -> None:
    """The others saved, and SLURM ends what has not begun: in the start of its shell, which has no trap yet, or in its look at the chips."""
    turns = 600 if place == "shell" else 50  # the trap of launch/host.sh waits for its look to end
    waiting = f'[ "${{SLURM_PROCID:-}}" != 1 ] || {{ touch "$STAND_IN/waits"; for ((i = 0; i < {turns}; i++)); do sleep 0.1; done; }}\n'
    tool(bin_folder, "python", '#!/usr/bin/env bash\nuntil [ -e "$STAND_IN/waits" ]; do sleep 0.1; done\nexit 75\n')
    env = slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(bin_folder / "python"), CRASHES="1")
    if place == "shell":
        (tmp_path / "start.sh").write_text(f'if [[ $0 = *host.sh ]]; then\n{waiting}fi\n')
        env["BASH_ENV"] = str(tmp_path / "start.sh")
        tool(bin_folder, "nvidia-smi", "#!/bin/sh\nexit 1\n")
    else:
        tool(bin_folder, "nvidia-smi", f"#!/usr/bin/env bash\ntrap 'exit 1' TERM\n{waiting}")
    done = run("slurm.sh", "--nodes=1", "--gpus=2", "--", "train", env=env, timeout=120)
    assert done.returncode == 0 and (tmp_path / "requeued").exists()
    assert codes(tmp_path, env) == ({"0": "75\n"} if place == "shell" else {"0": "75\n", "1": "75\n"})


def codes(tmp_path: pathlib.Path, env: Mapping[str, str]) -> dict[str, str]:
    """What each task has left."""
    return {file.name: file.read_text() for file in (tmp_path / "logs" / f"codes.{env['SLURM_JOB_ID']}").iterdir()}


# A task whose code is the first, and ends with the signal, which it has no handler for yet; the others save after it.
IMPORTING = """#!/usr/bin/env bash
[ "$SLURM_PROCID" = 1 ] || trap 'until [ -s "$CODES/1" ]; do sleep 0.1; done; exit 75' TERM
touch "$STAND_IN/begun.$SLURM_PROCID"
for ((i = 0; i < 600; i++)); do sleep 0.1; done
"""


def test_a_task_that_is_ended_before_it_listens_is_no_crash(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """At the end of the time one is still at its imports, or waits for the others: nothing of it is lost."""
    env = slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(tool(bin_folder, "python", IMPORTING)), CRASHES="1", ENDING="1")
    done = run("slurm.sh", "--nodes=1", "--gpus=2", "--", "train", env=env, timeout=120)
    assert codes(tmp_path, env) == {"0": "75\n", "1": "75\n"}
    assert done.returncode == 0 and (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("times", "code"), [((2, 1), 1), ((1, 2), 75), ((1, 1), 1)])
def test_the_code_that_is_the_first_decides(times: tuple[int, int], code: int, tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """By the clock of the file system; where it cannot tell a failure from a stop that saved, the failure."""
    srun = "#!/usr/bin/env bash\n" + "".join(f'echo {left} >"$CODES/{n}"; touch -d @{at} "$CODES/{n}"\n' for n, (left, at) in enumerate(zip((75, 1), times)))
    env = slurm(tmp_path, bin_folder, CRASHES="1")
    before = tmp_path / "logs" / f"codes.{env['SLURM_JOB_ID']}"
    before.mkdir(parents=True)
    (before / "7").write_text("2\n")  # of the start before
    tool(bin_folder, "srun", f"{srun}exit 75\n")
    done = run("slurm.sh", "--nodes=1", "--gpus=2", "--", "train", env=env)
    assert done.returncode == (0 if code == 75 else code) and (tmp_path / "requeued").exists() == (code == 75)


def test_a_job_of_before_has_one_file_of_codes(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """SLURM keeps the script of a job through every start, while host.sh is that of the checkout."""
    codes = tmp_path / "codes"
    codes.write_text("75\n")
    python = tool(bin_folder, "python", "#!/usr/bin/env bash\nexit 3\n")
    assert run("host.sh", "train", env=environment(tmp_path, VIDEOMAE_PYTHON=str(python), LOGS=str(tmp_path), CODES=str(codes))).returncode == 3
    assert codes.read_text() == "75\n3\n"


SAVING = """#!/usr/bin/env bash
trap 'echo saved; exit 75' TERM
echo begun
touch "$STAND_IN/begun.$SLURM_PROCID"
for ((i = 0; i < ${TURNS:-600}; i++)); do sleep 0.1; done
"""


def test_the_end_of_the_time_is_a_stop_that_saves(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Every task gets the signal minutes before and saves; the job is queued again, once, and its log goes on where it was."""
    env = slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(tool(bin_folder, "python", SAVING)))
    log = tmp_path / f"run-{env['SLURM_JOB_ID']}.log"
    log.write_text("of the start before\n")
    done = run("slurm.sh", "--nodes=2", "--gpus=2", "--", "train", env=env | {"ENDING": "1"})
    assert done.returncode == 0, log.read_text()
    assert (tmp_path / "requeued").read_text() == f"requeue {env['SLURM_JOB_ID']}\n"
    assert [(tmp_path / "logs" / f"host_{n}.log").read_text() for n in range(HOSTS)] == ["begun\nsaved\n"] * HOSTS
    assert log.read_text().startswith("of the start before\nbegun\n")


def failing(command: str) -> str:
    """The text of a stand-in whose second task carries out `command` once the others have begun."""
    waiting = 'until [ "$(ls "$STAND_IN" | grep -c "^begun")" = 3 ]; do sleep 0.1; done'
    return SAVING.replace("echo begun", f'[ "$SLURM_PROCID" != 1 ] || {{ {waiting}; {command}; }}')


@pytest.mark.parametrize("code", [2, 1])
def test_a_task_that_fails_ends_the_others(tmp_path: pathlib.Path, bin_folder: pathlib.Path, code: int) -> None:
    """They would wait for it, and the job with them until its time is over; its own code decides, of a mistake or a crash, though the others save."""
    env = slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(tool(bin_folder, "python", failing(f"exit {code}"))), TURNS="300", CRASHES="1")
    done = run("slurm.sh", "--nodes=2", "--gpus=2", "--", "train", env=env, timeout=120)
    assert done.returncode == code and not (tmp_path / "requeued").exists()
    assert (tmp_path / "logs" / "host_0.log").read_text() == "saved\n"


@pytest.mark.parametrize(("killed", "code"), [(137, 137), (253, 253), (75, 137)])
def test_a_task_that_leaves_no_code_is_a_crash(killed: int, code: int, tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """It was killed with the shell that would have noted it, for want of memory; the others save, and yet the job would be started for ever."""
    python = tool(bin_folder, "python", failing("kill -KILL $PPID; exit"))
    done = run("slurm.sh", "--nodes=2", "--gpus=2", "--", "train", env=slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(python), CRASHES="1", KILLED=str(killed)), timeout=120)
    assert done.returncode == code and not (tmp_path / "requeued").exists()


# -- one host ---------------------------------------------------------------------------------------------------------------


# As a trainer: the first signal is noted, then a second SIGINT ends it, and so does a line that cannot be written.
STOPPING = f"#!{sys.executable} -S" + """
import os, signal, sys, time

asked = []

def note(number, _):
    asked.append(number)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

if sys.argv[1] == "-c":
    sys.exit(print(4567))
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
os.write(1, b"ready\\n")
while not asked:
    time.sleep(0.02)
time.sleep(0.6 if "--process=1" in sys.argv else 0.3)
os.write(1, b"saved\\n")
sys.exit(130 if asked[0] == signal.SIGINT else 75)
"""


def stopped(words: list[str], env: dict[str, str], *, number: int, group: bool, ready: int = 1) -> int:
    """The code of a launcher in a group of its own, of whose signals none is ignored, after a signal to it or to all of the group."""
    before = signal.signal(number, lambda *_: None)  # one that this process ignores the launcher could not hear
    try:
        process = subprocess.Popen(words, env=os.environ | env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    finally:
        signal.signal(number, before)
    with process:
        try:
            assert [process.stdout.readline() for _ in range(ready)] == ["ready\n"] * ready
            (os.killpg if group else os.kill)(process.pid, number)
            return process.wait(timeout=60)
        finally:
            end_session(process.pid)


@pytest.mark.parametrize("group", [False, True], ids=["alone", "group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 75)])
def test_host_waits_for_a_run_that_saves_on_a_signal(tmp_path: pathlib.Path, number: int, code: int, group: bool) -> None:
    """The signal reaches the run, once, whose own exit code comes back; a terminal and a batch system send it to the whole group, whose logs go on."""
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(tool(tmp_path, "python", STOPPING)), LOGS=str(tmp_path), SLURM_PROCID="0", CHIP="cpu")
    assert stopped(["bash", str(ROOT / "launch" / "host.sh"), "train"], env, number=number, group=group) == code
    assert (tmp_path / "host_0.log").read_text() == "ready\nsaved\n"


def test_a_run_that_somebody_else_ends_on_a_host_is_a_crash(tmp_path: pathlib.Path) -> None:
    """By SIGTERM to it alone: nobody told the launcher to stop. As a stop that saved it would be started again without end."""
    (tmp_path / "codes").mkdir()
    python = tool(tmp_path, "python", '#!/usr/bin/env bash\nkill -TERM $$\nsleep 60\n')
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(python), LOGS=str(tmp_path), CODES=str(tmp_path / "codes"), SLURM_PROCID="0", CHIP="cpu")
    assert run("host.sh", "train", env=env).returncode == 143
    assert (tmp_path / "codes" / "0").read_text() == "143\n"


def test_the_words_of_the_user_count_on_a_host(tmp_path: pathlib.Path) -> None:
    """Of options given twice the last counts, and that is the user's; COORDINATOR=none gives none, and other commands get nothing."""
    python = tool(tmp_path, "python", '#!/usr/bin/env bash\necho "$*"\n')
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(python), LOGS=str(tmp_path), CHIP="cpu")
    assert run("host.sh", "train", "--coordinator=mine:1", "--x=1", env=env).stdout == (
        "-m videomae_jax train --coordinator=auto --init-timeout=300 --coordinator=mine:1 --x=1\n")
    assert run("host.sh", "train", "--x=1", env=env | {"COORDINATOR": "none"}).stdout == "-m videomae_jax train --init-timeout=300 --x=1\n"
    assert run("host.sh", "report", "r", env=env).stdout == "-m videomae_jax report r\n"


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["-h"], 0), (["--dry-run", "--help"], 0), ([], 2), (["--dry-run"], 2)])
def test_the_usage_of_a_host_starts_nothing(tmp_path: pathlib.Path, words: list[str], code: int) -> None:
    """No environment is made, no setting of the machine changed, no lock of another program removed; without a command it says that one is missing."""
    lock, pages = tmp_path / "tmp" / "libtpu_lockfile", tmp_path / "sys" / "kernel" / "mm" / "transparent_hugepage" / "enabled"
    for path in (lock, pages):
        path.parent.mkdir(parents=True)
        path.write_text("never")
    env = environment(tmp_path, VIDEOMAE_PYTHON="", PYTHON="/bin/false", VENV=str(tmp_path / "none" / "venv"), LOGS=str(tmp_path / "logs"),
                      JAX_EXTRA="cpu")
    done = run("host.sh", *words, env=env)
    assert done.returncode == code and done.stdout == "" and "bash launch/host.sh [--dry-run] train --config=FILE --workdir=DIR" in done.stderr
    assert done.stderr.endswith("error: no command; e.g. train --config=FILE --workdir=DIR\n") == (code == 2)
    assert lock.read_text() == pages.read_text() == "never" and {path.name for path in tmp_path.iterdir()} == {"tmp", "sys"}


@pytest.mark.parametrize("words", [["trian", "--config=c.py"], ["--dry-run", "trian"]])
def test_a_misspelt_command_of_a_host_installs_nothing(tmp_path: pathlib.Path, words: list[str]) -> None:
    """One line at once: an environment takes minutes."""
    done = run("host.sh", *words, env=environment(tmp_path, VIDEOMAE_PYTHON="", PYTHON="/bin/false", VENV=str(tmp_path / "none" / "venv"), JAX_EXTRA="cpu"))
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr == "error: unknown command 'trian'; allowed are those of `python -m videomae_jax`, e.g. train --config=FILE --workdir=DIR\n"


ONE_MACHINE = """#!/usr/bin/env bash
# Is its own environment, sees a GPU, has one cell to train, and leaves the variables of a training behind.
[ "$1" != -c ] || { echo gpu; exit; }
[ "$2" != venv ] || { mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; exit; }
[ "$3" != plan ] || printf '# 1 of 1 cells\\na\\ttrain\\n'
[ "$3" = train ] || exit 0
"""


@pytest.mark.parametrize(("gpu", "words"), [
    *(("NVIDIA H100 80GB HBM3", words) for words in (
        ("local.sh", "RUN"), ("sweep.sh", "--grid=g.py", "--root=RUN"), ("progressive.sh", "RUN"), ("host.sh", "train"))),
    ("NVIDIA L4", ("host.sh", "train")), ("", ("host.sh", "train"))])
def test_one_machine_sets_the_flags_of_its_gpu(tmp_path: pathlib.Path, bin_folder: pathlib.Path, gpu: str, words: tuple[str, ...]) -> None:
    """Without a cluster, too: flags, the share of the memory, and a folder for compiled programs. One without flags of its own, and a TPU of before, get the rest."""
    if gpu:
        tool(bin_folder, "nvidia-smi", f'#!/usr/bin/env bash\ncase "$*" in *driver*) echo 580.1 ;; *) echo "GPU 0: {gpu}" ;; esac\n')
    else:
        tool(bin_folder, "nvidia-smi", "#!/usr/bin/env bash\nexit 1\n")
        device = tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:00:05.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x1ae0\n")
        (device / "device").write_text("0x005e\n")
    python = str(tool(bin_folder, "python", ONE_MACHINE + NOTING.partition("\n")[2]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").touch()
    env = environment(tmp_path, VIDEOMAE_PYTHON=python, PYTHON=python, VENV=str(tmp_path / "venv"), LOGS=str(tmp_path), COORDINATOR="none", PRETRAIN="--x=1",
                      JAX_COMPILATION_CACHE_DIR="", XLA_PYTHON_CLIENT_MEM_FRACTION="", CHIP="", DETERMINISTIC="1", TPU_SKIP_MDS_QUERY="1")
    done = run(words[0], *(word.replace("RUN", str(tmp_path / "run")) for word in words[1:]), env=env)
    assert done.returncode == 0 and noted(tmp_path), done.stderr
    for variables in noted(tmp_path):
        assert variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9" * bool(gpu)
        assert variables["JAX_COMPILATION_CACHE_DIR"] == f"{tmp_path}/.cache/videomae_jax"
        flags = variables["XLA_FLAGS"].split()
        assert flags[-1:] == ["--xla_gpu_deterministic_ops=true"] * bool(gpu) and (len(flags) > 1) == ("H100" in gpu)


def test_a_gpu_without_its_tools_is_an_error(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """It would run without its flags, or not at all. The image looks where GKE puts them; CHIP and JAX_EXTRA=cpu say what is meant."""
    for name in ("dirname", "head", "hostname", "mkdir", "tee"):
        (bin_folder / name).symlink_to(shutil.which(name))
    python = tool(bin_folder, "python", f"#!{shutil.which('bash')}\necho ran\n")
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(python), LOGS=str(tmp_path), PATH=str(bin_folder))
    def host(**more: str) -> subprocess.CompletedProcess[str]:
        words = [shutil.which("bash"), str(ROOT / "launch" / "host.sh"), "report"]
        return subprocess.run(words, env=env | more, capture_output=True, text=True, timeout=60)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert host().stdout == "ran\n"
    (tmp_path / "dev" / "nvidia3").touch()
    done = host()
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "error: this machine has a GPU, but no nvidia-smi in PATH tells which; add its folder to PATH (on GKE /usr/local/nvidia/bin" in done.stderr
    assert host(CHIP="h100").stdout == host(JAX_EXTRA="cpu").stdout == "ran\n"
    tool(bin_folder, "nvidia-smi", f"#!{shutil.which('bash')}\necho GPU 0: RTX\n")
    assert host().stdout == "ran\n"
    image = (ROOT / "launch" / "Dockerfile").read_text()
    assert "ENV PATH=/usr/local/nvidia/bin:$PATH LD_LIBRARY_PATH=/usr/local/nvidia/lib64\n" in image


@pytest.mark.parametrize("running", [False, True])
def test_a_lock_that_a_killed_process_left_is_taken_away(tmp_path: pathlib.Path, bin_folder: pathlib.Path, running: bool) -> None:
    """libtpu's own, which stops the next process; not where one trains."""
    tool(bin_folder, "pgrep", f"#!/usr/bin/env bash\nexit {int(not running)}\n")
    (tmp_path / "tmp").mkdir()
    lock = tmp_path / "tmp" / "libtpu_lockfile"
    lock.touch()
    python = tool(bin_folder, "python", "#!/usr/bin/env bash\n")
    done = run("host.sh", "train", env=environment(tmp_path, VIDEOMAE_PYTHON=str(python), LOGS=str(tmp_path)))
    assert done.returncode == 0 and lock.exists() == running, done.stderr


def test_simulated_processes_leave_a_log_each(tmp_path: pathlib.Path) -> None:
    """Of both streams, without the lines of an earlier run."""
    fake = tmp_path / "python"
    fake.write_text("#!/usr/bin/env bash\n[ \"$1\" = -c ] && { echo 4567; exit; }\necho \"got $*\"\necho problem >&2\n")
    fake.chmod(0o755)
    for _ in range(2):
        done = run("simulate.sh", f"--logs={tmp_path}", "--", "train", "--x=a b", env=environment(tmp_path, VIDEOMAE_PYTHON=str(fake)), timeout=30)
        assert done.returncode == 0, done.stderr
    for n in (0, 1):
        lines = (tmp_path / f"host_{n}.log").read_text().splitlines()
        assert sorted(lines) == [f"got -m videomae_jax train --x=a b --coordinator=localhost:4567 --processes=2 --process={n} --init-timeout=120", "problem"]


def test_a_simulated_grid_leaves_the_logs_of_every_cell(tmp_path: pathlib.Path) -> None:
    """Whose options behind -- are those of each."""
    fake = tool(tmp_path, "python", """#!/usr/bin/env bash
[ "$1" != -c ] || { echo 4567; exit; }
[ "$3" != plan ] || { printf "# 2 cells, $*\\na\\ttrain --x=1\\nb\\ttrain --x=2\\n"; exit; }
echo "got $3 $4"
""")
    done = run("simulate.sh", f"--logs={tmp_path}/logs", "--grid=g.py", "--root=r", "--", "--config.seed=1",
               env=environment(tmp_path, VIDEOMAE_PYTHON=str(fake)), timeout=30)
    assert done.returncode == 0 and "--root=r --config.seed=1" in done.stderr, done.stderr
    assert {str(log.relative_to(tmp_path / "logs")): log.read_text() for log in (tmp_path / "logs").rglob("*.log")} == {
        f"run-{cell}/host_{n}.log": f"got train --x={x}\n" for cell, x in (("a", 1), ("b", 2)) for n in (0, 1)}


@pytest.mark.parametrize(("number", "group", "code"), [(signal.SIGTERM, False, 75), (signal.SIGTERM, True, 75), (signal.SIGINT, False, 75), (signal.SIGINT, True, 130)])
def test_simulate_waits_for_processes_that_save_on_a_signal(tmp_path: pathlib.Path, number: int, group: bool, code: int) -> None:
    """It reaches all of them, as SIGTERM where it does not come from a terminal to the whole group; each saves in its own time, and their code comes back."""
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(tool(tmp_path, "python", STOPPING)))
    words = ["bash", str(ROOT / "launch" / "simulate.sh"), f"--logs={tmp_path}", "--", "train"]
    assert stopped(words, env, number=number, group=group, ready=2) == code
    assert [(tmp_path / f"host_{n}.log").read_text() for n in (0, 1)] == ["ready\nsaved\n"] * 2


def test_simulate_hears_a_signal_from_the_first_process_on(tmp_path: pathlib.Path) -> None:
    """On a busy machine all of them may be at work before the shell goes on behind their start."""
    late = {"BASH_FUNC_trap%%": '() { [ "$1" != stop ] || command sleep 1; builtin trap "$@"; }'}
    env = environment(tmp_path, VIDEOMAE_PYTHON=str(tool(tmp_path, "python", STOPPING))) | late
    words = ["bash", str(ROOT / "launch" / "simulate.sh"), f"--logs={tmp_path}", "--", "train"]
    assert stopped(words, env, number=signal.SIGTERM, group=False, ready=2) == 75
    assert [(tmp_path / f"host_{n}.log").read_text() for n in (0, 1)] == ["ready\nsaved\n"] * 2


def test_simulate_ends_all_when_one_fails(tmp_path: pathlib.Path) -> None:
    """The others would wait for ever."""
    fake = tmp_path / "python"
    fake.write_text('#!/usr/bin/env bash\n[ "$1" = -c ] && { echo 4567; exit; }\ncase "$*" in *--process=1*) exit 3 ;; esac\nexec sleep 60\n')
    fake.chmod(0o755)
    done = run("simulate.sh", f"--logs={tmp_path}", "--", "train", env=environment(tmp_path, VIDEOMAE_PYTHON=str(fake)), timeout=30)
    assert done.returncode == 3


# -- four real processes ----------------------------------------------------------------------------------------------------


NOISE = """from videomae_jax.config import spec
from videomae_jax.data import sources
from configs import tiny

def get_config():
    config = tiny.get_config()
    config.data = spec(sources.NoiseClips, frames=8, size=32, length=8)
    config.eval_data, config.evaluators = {}, {}
    return config
"""
SMALL = ["--config.objective.encoder.width=32", "--config.objective.encoder.hidden=64", "--config.objective.encoder.depth=1",
         "--config.objective.decoder.width=32", "--config.objective.decoder.hidden=64", "--step-limit=0",  # the watchdog's limits are for machines of one's own
         "--config.objective.encoder.size=32", "--config.total=2", "--config.batch_size=4"]
ONE_DEVICE = "--xla_force_host_platform_device_count=1"


# On a machine without TPU chips JAX notes at its import that there is nobody to ask about them.
CHIPS = f"""#!/usr/bin/env bash
exec {shlex.quote(sys.executable)} -c '
import os, runpy, sys, jax
del os.environ["TPU_SKIP_MDS_QUERY"]
sys.argv = sys.argv[2:]
runpy.run_module("videomae_jax", run_name="__main__")
' "$@"
"""


def trained(tmp_path: pathlib.Path, logs: list[pathlib.Path]) -> None:
    """Four processes with a device each took part and said so, and the first wrote the run."""
    for n, log in enumerate(logs):
        assert f"process {n}/{HOSTS}, 1 of {HOSTS} devices" in log.read_text()
    assert (tmp_path / "run" / "summary.json").is_file()


def training(tmp_path: pathlib.Path) -> list[str]:
    """The command of a run over noise."""
    (tmp_path / "noise.py").write_text(NOISE)
    return ["train", f"--config={tmp_path}/noise.py", f"--workdir={tmp_path}/run", *SMALL]


@pytest.mark.slow
def test_jax_finds_the_processes_of_slurm(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Through --coordinator=auto: JAX reads the variables of SLURM."""
    done = run("slurm.sh", "--nodes=2", "--gpus=2", "--init-timeout=400", "--", *training(tmp_path),
               env=slurm(tmp_path, bin_folder, XLA_FLAGS=ONE_DEVICE), timeout=600)
    assert done.returncode == 0, done.stderr
    trained(tmp_path, [tmp_path / "logs" / f"host_{n}.log" for n in range(HOSTS)])


@pytest.mark.slow
def test_the_processes_of_xpk_train_together(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """With the coordinator that its pods are told."""
    done = xpk(tmp_path, bin_folder, *training(tmp_path), XLA_FLAGS=ONE_DEVICE, PORT=str(runs.free_port()), timeout=600)
    assert done.returncode == 0, done.stderr
    trained(tmp_path, [tmp_path / "logs" / f"host_{n}.log" for n in range(HOSTS)])


@pytest.mark.slow
def test_jax_finds_the_processes_of_two_slices_on_gke(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Through --coordinator=auto: JAX reads the variables that GKE gives the pods of a TPU."""
    done = gke(tmp_path, bin_folder, *training(tmp_path), XLA_FLAGS=ONE_DEVICE, JAX_FORCE_TPU_INIT="1", JAX_COORDINATOR_PORT=str(runs.free_port()), timeout=600)
    assert done.returncode == 0, done.stderr
    trained(tmp_path, [tmp_path / "container" / f"{i}-{n}" / f"host_{i}_{n}.log" for i, n in PODS])


@pytest.mark.slow
def test_jax_finds_the_processes_of_a_tpu_vm(tmp_path: pathlib.Path, bin_folder: pathlib.Path, metadata: str) -> None:
    """Through --coordinator=auto: JAX asks the metadata server of each host."""
    tool(bin_folder, "python", CHIPS)
    env = cloud_tpu(tmp_path, bin_folder, METADATA=metadata, XLA_FLAGS=ONE_DEVICE, JAX_FORCE_TPU_INIT="1", JAX_COORDINATOR_PORT=str(runs.free_port()))
    done = run("tpu_vm.sh", "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--init-timeout=400", "--max-restarts=0",
               "--", *training(tmp_path), env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    trained(tmp_path, [tmp_path / "logs" / "pod" / f"host_t1v-w-{n}.log" for n in range(HOSTS)])


@pytest.mark.slow
def test_simulated_processes_train_together(tmp_path: pathlib.Path) -> None:
    """The same train command, two processes of two devices, given by hand."""
    done = run("simulate.sh", "--processes=2", "--devices=2", f"--logs={tmp_path}/logs", "--", *training(tmp_path), env=environment(tmp_path), timeout=600)
    assert done.returncode == 0, done.stderr
    assert "process 1/2, 2 of 4 devices" in (tmp_path / "logs" / "host_1.log").read_text()
    assert (tmp_path / "run" / "summary.json").is_file()
