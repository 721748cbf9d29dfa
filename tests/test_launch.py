"""Launchers: the exact commands and manifests of --dry-run, and the commands carried out by stand-ins of the cloud's tools."""

import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = pathlib.Path(__file__).parent / "golden" / "launch"
TRAIN = ["--", "train", "--config=configs/pretrain/vit_g.py", "--workdir=/mnt/bucket/runs/a b", "--config.name=it's"]
CASES = {
    "tpu_vm": ["tpu_vm.sh", "--name=pod", "--zone=us-east5-a", "--project=p", "--chip=v5e"],
    "tpu_vm_slices": ["tpu_vm.sh", "--name=pod-0,pod-1", "--zone=us-east5-a", "--init-timeout=900", "--logs=collected"],
    "queued_resource": ["queued_resource.sh", "--name=big", "--zone=us-east5-a", "--accelerator-type=v5p-512", "--bucket=gs://bucket", "--chip=v5p"],
    "queued_resource_slices": ["queued_resource.sh", "--name=big", "--zone=z", "--accelerator-type=v5p-512", "--bucket=gs://bucket", "--slices=2", "--spot=1"],
    "xpk": ["xpk.sh", "--name=g", "--cluster=c", "--image=gcr.io/p/i:1", "--tpu-type=v5litepod-256", "--slices=2", "--zone=us-east5-a"],
    "xpk_gpu": ["xpk.sh", "--name=g", "--cluster=c", "--image=i", "--device-type=h100-80gb-8", "--num-nodes=64", "--chip=h100"],
    "gke": ["gke.sh", "--name=g", "--image=gcr.io/p/i:1", "--accelerator=tpu-v5p-slice", "--torus=4x8x8", "--hosts=64", "--slices=2", "--chip=v5p", "--follow=1"],
    "slurm": ["slurm.sh", "--nodes=64", "--partition=gpu", "--chip=h100", "--name=g"],
    "slurm_per_node": ["slurm.sh", "--nodes=2", "--per=node", "--gpus=4", "--cpus=12", "--time=1:00:00", "--account=a"],
    "simulate": ["simulate.sh", "--processes=2", "--devices=4"],
}


def run(*argv: str, env: dict[str, str] | None = None, cwd: pathlib.Path = ROOT, timeout: int = 60) -> subprocess.CompletedProcess[str]:
    """A launcher in bash, in a process group of its own so that nothing outlives a failure."""
    with subprocess.Popen(["bash", str(ROOT / "launch" / argv[0]), *argv[1:]], cwd=cwd, env=os.environ | {"TMPDIR": "/tmp"} | (env or {}), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


@pytest.mark.parametrize("name", CASES)
def test_dry_run(name: str, request: pytest.FixtureRequest) -> None:
    """Nothing runs; what would is printed exactly."""
    done = run(CASES[name][0], *CASES[name][1:], "--dry-run", *TRAIN)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(str(ROOT), "HERE").replace(sys.prefix, "HERE/.venv")
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("queued_resource", "queued_resource_slices", "gke")])
def test_printed_commands_hold_the_words_of_the_run(name: str) -> None:
    """A shell reads the words behind -- back as they were, through one level of quoting for each machine in between."""
    lines = (GOLDEN / f"{name}.txt").read_text().splitlines()
    wanted = TRAIN[1:]
    for line in (line for line in lines if "vit_g.py" in line):
        words = shlex.split(line)
        inner = [w.partition("=")[2] for w in words if w.startswith("--command=")]
        words = shlex.split(inner[0]) if inner else words
        begin = words.index("train")
        assert words[begin:begin + len(wanted)] == wanted
    assert any("vit_g.py" in line for line in lines)


def test_the_manifest_is_yaml_with_the_words_of_the_run() -> None:
    """No place holder is left, numbers are numbers, arguments are a list."""
    yaml = pytest.importorskip("yaml")
    text = (GOLDEN / "gke.txt").read_text()
    manifest = yaml.safe_load(text[:text.index("# ^")])
    assert "@" not in text.replace("gcr.io/p/i@", "")
    job = manifest["spec"]["replicatedJobs"][0]
    assert job["replicas"] == 2 and job["template"]["spec"]["completions"] == 64 and manifest["spec"]["failurePolicy"]["maxRestarts"] == 50
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == TRAIN[1:] and container["resources"]["limits"]["google.com/tpu"] == 4


@pytest.mark.parametrize(("argv", "message"), [
    (["tpu_vm.sh", "--name=a", *TRAIN], "--zone=VALUE is missing"), (["tpu_vm.sh", "--name=a", "--zone=z"], "no command; write it behind --"),
    (["tpu_vm.sh", "--nme=a", *TRAIN], "unknown option --nme; allowed are .*--name .*--zone"), (["slurm.sh", "--nodes=1", "--per=core", *TRAIN], "--per=core; allowed are gpu and node"),
    *(([*words, *TRAIN], f"{words[-1]}; allowed are whole numbers of 1 and more") for words in (
        ["simulate.sh", "--processes=0"], ["simulate.sh", "--port=abc"], ["slurm.sh", "--nodes=abc"], ["slurm.sh", "--nodes=2", "--per=node", "--cpus=x"],
        ["queued_resource.sh", "--name=a", "--zone=z", "--accelerator-type=t", "--bucket=b", "--slices=two"])),
    (["slurm.sh", "--nodes=2", "--gpus=", *TRAIN], "--gpus=; allowed are whole numbers"),
    (["simulate.sh", "--", "evaluate", "runs/x"], "evaluate runs in one process; allowed behind -- is train"),
    (["slurm.sh", "--nodes=2", "--chip=v4", *TRAIN], "no flags for chip 'v4'; allowed are v5e"), (["local.sh", "--dry-run"], "--dry-run is no run directory"),
    (["xpk.sh", "--name=a", "--cluster=c", "--image=i", *TRAIN], "--tpu-type=TYPE or"),
    (["slurm.sh", "--nodes=1", "nodes", *TRAIN], "nodes is no option"), (["slurm.sh", "--nodes=1", "--grid=g.py", "--root=r", *TRAIN], "nothing may follow --"),
    (["slurm.sh", "--nodes=1", "--grid=g.py"], "--grid needs --root=DIR")])
def test_mistakes_are_one_line(argv: list[str], message: str) -> None:
    """Exit code 2 before anything is sent."""
    done = run(*argv, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and re.search(message, done.stderr), done.stderr


def test_a_grid_submits_its_unfinished_cells(tmp_path: pathlib.Path) -> None:
    """One job for each cell that `plan --grid` lists; comments with the chip-hours come first, on standard error."""
    fake = tmp_path / "python"
    fake.write_text("#!/usr/bin/env bash\necho \"$*\" >&2\necho '# 2 of 3 cells to run: 5 chip-hours'\nprintf 'b-75ep\\ttrain --workdir=r/b --config.name=%s\\n' \"'a b'\" x\n")
    fake.chmod(0o755)
    done = run("slurm.sh", "--nodes=2", "--grid=configs/g.py", "--root=r", "--topology=h100x16", "--dry-run", env={"VIDEOMAE_PYTHON": str(fake)})
    assert done.returncode == 0 and "2 of 3 cells" in done.stderr and "-m videomae_jax plan --grid=configs/g.py --root=r --topology=h100x16" in done.stderr
    first, second = (shlex.split(line) for line in done.stdout.splitlines())
    assert "--job-name=run-b-75ep" in first and first[-3:] == ["train", "--workdir=r/b", "--config.name=a b"] and second[-1] == "--config.name=x"
    fake.write_text("#!/usr/bin/env bash\necho 'error: no such grid' >&2\nexit 2\n")
    assert run("slurm.sh", "--nodes=2", "--grid=g.py", "--root=r", "--dry-run", env={"VIDEOMAE_PYTHON": str(fake)}).returncode == 2


def test_a_sweep_runs_the_unfinished_cells_and_reports(tmp_path: pathlib.Path) -> None:
    """The world where it is missing, each cell in turn with its words, then the law over every run directory, the finished ones too."""
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(f"#!/usr/bin/env bash\n[[ $* == *plan* ]] || printf '<%s>' \"$@\" >>{log}; echo >>{log}\n"
                    "[[ $* != *plan* ]] || printf '# 2 of 3 cells\\na-1\\ttrain --workdir=r/a --config.name=%s\\nb-2\\ttrain --workdir=r/b\\n' \"'a b'\"\n")
    fake.chmod(0o755)
    for name in ("done", "a"):
        (tmp_path / "r" / name).mkdir(parents=True)
    (tmp_path / "r" / "scaling.html").touch()
    argv = ["sweep.sh", "--grid=g.py", f"--root={tmp_path}/r", f"--world={tmp_path}/w", "--metric=x"]
    done = run(*argv, env={"VIDEOMAE_PYTHON": str(fake)})
    assert done.returncode == 0 and "2 of 3 cells" in done.stderr, done.stderr
    index = f"<--config.data.index={tmp_path}/w/index.parquet>"
    assert [line.removeprefix("<-m><videomae_jax>") for line in log.read_text().splitlines() if line] == [
        f"<synthesize><{tmp_path}/w>", f"<train><--workdir=r/a><--config.name=a b>{index}", f"<train><--workdir=r/b>{index}",
        f"<report><--scaling><{tmp_path}/r/a/><{tmp_path}/r/done/><--out={tmp_path}/r/scaling.html><--metric=x>"]
    assert run("sweep.sh", "--grid=g.py", env={"VIDEOMAE_PYTHON": str(fake)}).returncode == 2
    fake.write_text("#!/usr/bin/env bash\n[[ $* != *train* ]] || exit 7\nprintf '# 1 of 1 cells\\na-1\\ttrain\\n'\n")
    assert run(*argv, env={"VIDEOMAE_PYTHON": str(fake)}).returncode == 7  # and no law is fitted to what is left


@pytest.mark.parametrize(("chip", "variable", "flag"), [
    ("v5e", "LIBTPU_INIT_ARGS", "latency_hiding"), ("v5p", "LIBTPU_INIT_ARGS", "async_collective_permute"), ("v6e", "LIBTPU_INIT_ARGS", "vmem_limit_kib=98304"),
    ("tpu7x", "LIBTPU_INIT_ARGS", "fuse_all_gather=false"), ("h100", "XLA_FLAGS", "all_gather_combine"), ("b200", "XLA_FLAGS", "all_gather_combine")])
def test_flags_of_a_chip(chip: str, variable: str, flag: str) -> None:
    """Exported, with the user's own behind them; nothing that makes masks depend on the mesh."""
    script = f"source launch/xla_flags.sh && export_flags {chip} && env"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"], variable: "--mine=1"})
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert flag in values[variable] and values[variable].endswith(" --mine=1") and "rng_bit_generator_unsafe" not in done.stdout
    assert ("CUDA_DEVICE_MAX_CONNECTIONS" in values) == (chip == "h100")  # a B200 gets slower by it


def test_the_same_bits_on_a_gpu_are_asked_for() -> None:
    """DETERMINISTIC=1 adds the flag, which costs time, on GPUs alone."""
    for chip, variables, wanted in (("h100", {"DETERMINISTIC": "1"}, True), ("h100", {}, False), ("v5p", {"DETERMINISTIC": "1"}, False)):
        done = subprocess.run(["bash", "-c", f"source launch/xla_flags.sh && export_flags {chip} && env"], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={"PATH": os.environ["PATH"]} | variables)
        assert ("--xla_gpu_deterministic_ops=true" in done.stdout) == wanted


def test_an_unknown_chip_is_refused() -> None:
    """One line with those that are known."""
    done = subprocess.run(["bash", "-c", "source launch/xla_flags.sh; flags_of v4"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "allowed are v5e, v5p" in done.stderr


# -- the commands carried out -----------------------------------------------------------------------------------------------


def tool(folder: pathlib.Path, name: str, text: str) -> None:
    """A stand-in on PATH."""
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)


def environment(tmp_path: pathlib.Path, **more: str) -> dict[str, str]:
    """PATH with the stand-ins first, this Python for the runs, and a home that is nobody's."""
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIDEOMAE_PYTHON": sys.executable, "HOME": str(tmp_path), "TMPDIR": str(tmp_path),
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), **more}


GCLOUD = """#!/usr/bin/env bash
# Hosts are folders: scp copies, ssh runs the command in each of two, at once, as Cloud TPU does with --worker=all.
hosts="$STAND_IN/hosts"
echo "$*" >>"$STAND_IN/calls"
command=""
for word in "$@"; do case "$word" in --command=*) command=${word#--command=} ;; esac; done
shift 3
case "$1" in
  scp)
    for n in 0 1; do
      mkdir -p "$hosts/$n"
      case "$3" in *:*) cp "$2" "$hosts/$n/${3#*:}" ;; *) cp "$hosts/$n/"${2#*:} "$3" ;; esac
    done ;;
  ssh)
    pids=()
    for n in 0 1; do (cd "$hosts/$n" && TPU_WORKER_ID=$n bash -c "$command") & pids+=($!); done
    code=0
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    exit $code ;;
esac
"""


@pytest.fixture
def bin_folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder for stand-ins."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def test_a_tpu_vm_gets_the_source_runs_on_all_workers_and_returns_logs(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Two hosts: the committed tree unpacked, the command run on both, one log each brought back; a failure is passed on, a stop started again."""
    tool(bin_folder, "gcloud", GCLOUD)
    fake = bin_folder / "python"
    tool(bin_folder, "python", '#!/usr/bin/env bash\necho "$TPU_WORKER_ID got $*, proxy ${http_proxy:-none}, flags $LIBTPU_INIT_ARGS"\n[ "$3" != broken ]\n')
    env = environment(tmp_path, STAND_IN=str(tmp_path), VIDEOMAE_PYTHON=str(fake), http_proxy="http://nowhere")
    done = run("tpu_vm.sh", "--name=pod", "--zone=z", "--chip=v5e", f"--logs={tmp_path}/logs", "--", "train", "--workdir=a b", env=env)
    assert done.returncode == 0, done.stderr
    for n in (0, 1):
        log = (tmp_path / "logs" / "pod" / f"host_{n}.log").read_text()
        assert log.startswith(f"{n} got -m videomae_jax train --workdir=a b --coordinator=auto --init-timeout=600, proxy none, flags --xla_tpu")
        assert (tmp_path / "hosts" / str(n) / "videomae_jax" / "videomae_jax" / "step.py").is_file()
    assert run("tpu_vm.sh", "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--max-restarts=0", "--", "broken", env=env).returncode != 0
    tool(bin_folder, "python", f'#!/usr/bin/env bash\n[ -f {tmp_path}/$TPU_WORKER_ID ] || {{ touch {tmp_path}/$TPU_WORKER_ID; exit 75; }}\necho again\n')
    assert run("tpu_vm.sh", "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--", "train", env=env | {"PAUSE": "0"}).returncode == 0
    assert [(tmp_path / "logs" / "pod" / f"host_{n}.log").read_text().splitlines()[-1] for n in (0, 1)] == ["again", "again"]


def test_a_tpu_vm_refuses_a_second_run(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """A run goes on when the connection breaks, and its log too; the same command again says so, and leaves its source alone."""
    tool(bin_folder, "gcloud", GCLOUD)
    tool(bin_folder, "python", f'#!/usr/bin/env bash\necho begun\nwhile [ ! -f {tmp_path}/end ]; do sleep 0.1; done\necho done\n')
    env = environment(tmp_path, STAND_IN=str(tmp_path), VIDEOMAE_PYTHON=str(bin_folder / "python"))
    words = ["bash", str(ROOT / "launch" / "tpu_vm.sh"), "--name=pod", "--zone=z", f"--logs={tmp_path}/logs", "--", "train"]
    log = tmp_path / "hosts" / "0" / "videomae_jax" / "logs" / "host_0.log"
    with subprocess.Popen(words, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        first.stdout.readline()
        first.stdout.close()  # the connection is gone
        second = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == 2 and "error: a run is under way on this host" in second.stderr
        (tmp_path / "end").touch()
        assert first.wait(timeout=60) == 0
    assert log.read_text().splitlines() == ["begun", "done"]


def test_kubectl_gets_the_manifest_and_returns_a_log_for_each_pod(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """The stand-in runs the container's command once for each pod of the manifest."""
    tool(bin_folder, "kubectl", f"#!{sys.executable}\n" + KUBECTL)
    tool(bin_folder, "python", '#!/usr/bin/env bash\necho "$JOB_COMPLETION_INDEX got $*"\n')
    env = environment(tmp_path, STAND_IN=str(tmp_path), VIDEOMAE_PYTHON=str(bin_folder / "python"))
    pytest.importorskip("yaml")
    done = run("gke.sh", "--name=job", "--image=i", "--accelerator=a", "--torus=2x4", "--hosts=2", "--follow=1", f"--logs={tmp_path}/logs", "--", "train", "--x=a b", env=env)
    assert done.returncode == 0, done.stderr
    for n in (0, 1):
        assert (tmp_path / "logs" / "job" / f"slice-0-{n}.log").read_text() == f"{n} got -m videomae_jax train --x=a b --coordinator=auto --init-timeout=1800\n"


KUBECTL = '''
import os, pathlib, subprocess, sys, yaml
home, words = pathlib.Path(os.environ["STAND_IN"]), [w for w in sys.argv[1:] if not w.startswith("--")]
if words[0] == "apply":
    manifest = yaml.safe_load(sys.stdin)
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    pods = []
    for n in range(spec["completions"]):
        env = os.environ | {e["name"]: e["value"] for e in container["env"] if e["value"]} | {"JOB_COMPLETION_INDEX": str(n), "LOGS": str(home / "container")}
        out = (home / f"slice-0-{n}").open("w")
        pods.append(subprocess.Popen([*container["command"], *container["args"]], cwd=ROOT, env=env, stdout=out))
    sys.exit(max(p.wait() for p in pods))
if words[0] == "get":
    print("pod/slice-0-0\\npod/slice-0-1")
if words[0] == "logs":
    print((home / words[1].split("/")[1]).read_text(), end="")
'''.replace("cwd=ROOT", f"cwd={str(ROOT)!r}")


def test_an_old_python_is_replaced(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """A TPU image with Python 3.8: uv brings 3.12, and the environment is made with it."""
    tool(bin_folder, "python3", "#!/usr/bin/env bash\nexit 1\n")  # older than 3.11
    tool(bin_folder, "uv", f'#!/usr/bin/env bash\n[ "$2" = find ] && echo {sys.executable}\necho "uv $*" >>"{tmp_path}/calls"\n')
    tool(bin_folder, "dirname", '#!/bin/bash\nexec /usr/bin/dirname "$@"\n')
    env = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(tmp_path)}
    for newer in ("python3.11", "python3.12", "python3.13"):
        tool(bin_folder, newer, "#!/usr/bin/env bash\nexit 1\n")
    done = subprocess.run(["bash", "-c", "source launch/environment.sh; choose_python"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == sys.executable, done.stderr
    assert "uv python install --quiet 3.12" in (tmp_path / "calls").read_text()


SRUN = """#!/usr/bin/env bash
# Tasks are processes on this machine, with the variables that SLURM gives them.
words=()
for word in "$@"; do case "$word" in --*) [ ${#words[@]} -gt 0 ] && words+=("$word") ;; *) words+=("$word") ;; esac; done
pids=()
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost "${words[@]}" & pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SBATCH = """#!/usr/bin/env bash
words=()
for word in "$@"; do
  case "$word" in
    --export=*) IFS=, read -ra pairs <<<"${word#--export=ALL,}"; export "${pairs[@]}" ;;
    --ntasks-per-node=*) export SLURM_NTASKS=${word#*=} ;;
    --*) [ ${#words[@]} -gt 0 ] && words+=("$word") ;;
    *) words+=("$word") ;;
  esac
done
bash "${words[@]}"
"""


def slurm(tmp_path: pathlib.Path, bin_folder: pathlib.Path, **more: str) -> dict[str, str]:
    """SLURM of one node."""
    tool(bin_folder, "srun", SRUN)
    tool(bin_folder, "sbatch", SBATCH)
    tool(bin_folder, "scontrol", f'#!/usr/bin/env bash\necho "$*" >>"{tmp_path}/requeued"\n')
    with socket.socket() as found:  # JAX's coordinator listens on job % 4096 + 61440
        found.bind(("localhost", 0))
        job = found.getsockname()[1] % 4096
    return environment(tmp_path, SLURM_JOB_ID=str(job), LOGS=str(tmp_path / "logs"), **more)


def test_a_stopped_job_is_queued_again(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Exit code 75 says that the state is saved; a stuck run, a storage fault and a crash go on too, up to a limit; mistakes and Ctrl-C do not."""
    tool(bin_folder, "python", '#!/usr/bin/env bash\nexit "${CODE}"\n')
    env = slurm(tmp_path, bin_folder, VIDEOMAE_PYTHON=str(bin_folder / "python"))
    call = ("slurm.sh", "--nodes=1", "--gpus=2", "--", "train")
    assert run(*call, env=env | {"CODE": "75"}).returncode == 0
    assert (tmp_path / "requeued").read_text() == f"requeue {env['SLURM_JOB_ID']}\n"
    for code in ("2", "127", "130"):
        assert run(*call, env=env | {"CODE": code}).returncode == int(code)
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1
    crashes = [("42", 0), ("74", 0), ("75", 0), ("1", 0), ("3", 0), ("1", 1)]  # 75 begins the row anew, and the third crash of a row is the last
    for code, wanted in crashes:
        assert run(*call, env=env | {"CODE": code, "CRASHES": "3", "SLURM_RESTART_COUNT": "99"}).returncode == wanted
    assert len((tmp_path / "requeued").read_text().splitlines()) == 6
    assert run(*call, env=env | {"CODE": "3", "CRASHES": "3", "STEADY": "0"}).returncode == 0, "a start that lasted began the row anew"


def test_host_waits_for_a_run_that_saves_on_sigterm(tmp_path: pathlib.Path) -> None:
    """The signal reaches the run, whose own exit code comes back."""
    fake = tmp_path / "python"
    fake.write_text("#!/usr/bin/env bash\ntrap 'sleep 0.3; echo saved; exit 75' TERM\necho ready\nwhile :; do sleep 0.1; done\n")
    fake.chmod(0o755)
    env = os.environ | {"VIDEOMAE_PYTHON": str(fake), "LOGS": str(tmp_path), "SLURM_PROCID": "0", "HOME": str(tmp_path), "CHIP": "cpu"}
    with subprocess.Popen(["bash", str(ROOT / "launch" / "host.sh"), "train"], env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            assert process.wait(timeout=30) == 75
        finally:
            process.kill()
    assert (tmp_path / "host_0.log").read_text() == "ready\nsaved\n"


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


@pytest.mark.slow
def test_jax_finds_the_processes_of_slurm(tmp_path: pathlib.Path, bin_folder: pathlib.Path) -> None:
    """Two tasks train together through --coordinator=auto: JAX reads SLURM's variables, process 0 writes, both log."""
    (tmp_path / "noise.py").write_text(NOISE)
    done = run("slurm.sh", "--nodes=1", "--gpus=2", "--init-timeout=120", "--", "train", f"--config={tmp_path}/noise.py", f"--workdir={tmp_path}/run", *SMALL,
               env=slurm(tmp_path, bin_folder, XLA_FLAGS="--xla_force_host_platform_device_count=1"), timeout=600)
    assert done.returncode == 0, done.stderr
    for n in (0, 1):
        assert f"process {n}/2, 1 of 2 devices" in (tmp_path / "logs" / f"host_{n}.log").read_text()
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.slow
def test_simulated_processes_train_together(tmp_path: pathlib.Path) -> None:
    """The same train command, two processes of two devices, given by hand."""
    (tmp_path / "noise.py").write_text(NOISE)
    done = run("simulate.sh", "--processes=2", "--devices=2", f"--logs={tmp_path}/logs", "--", "train", f"--config={tmp_path}/noise.py", f"--workdir={tmp_path}/run", *SMALL,
               env=environment(tmp_path), timeout=600)
    assert done.returncode == 0, done.stderr
    assert "process 1/2, 2 of 4 devices" in (tmp_path / "logs" / "host_1.log").read_text()
    assert (tmp_path / "run" / "summary.json").is_file()


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


def test_simulate_ends_all_when_one_fails(tmp_path: pathlib.Path) -> None:
    """The others would wait for ever."""
    fake = tmp_path / "python"
    fake.write_text('#!/usr/bin/env bash\n[ "$1" = -c ] && { echo 4567; exit; }\ncase "$*" in *--process=1*) exit 3 ;; esac\nexec sleep 60\n')
    fake.chmod(0o755)
    done: Any = run("simulate.sh", f"--logs={tmp_path}", "--", "train", env=environment(tmp_path, VIDEOMAE_PYTHON=str(fake)), timeout=30)
    assert done.returncode == 3
