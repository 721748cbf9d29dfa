"""Launchers: the exact commands and manifests of --dry-run, mistakes, the flags and the environment of a machine."""

import contextlib
import fcntl
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest

from videomae_jax import topologies

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = pathlib.Path(__file__).parent / "golden" / "launch"
TRAIN = ["--", "train", "--config=configs/pretrain/vit_g.py", "--workdir=/mnt/bucket/runs/a b", "--config.name=it's"]
PLAIN = [*TRAIN[:-1], "--config.name=its"]  # words that xpk takes for GPUs
CASES = {
    "tpu_vm": ["tpu_vm.sh", "--name=pod", "--zone=us-east5-a", "--project=p", "--chip=v5e"],
    "tpu_vm_slices": ["tpu_vm.sh", "--name=pod-0,pod-1", "--zone=us-east5-a", "--init-timeout=900", "--logs=collected"],
    "queued_resource": ["queued_resource.sh", "--name=big", "--zone=us-east5-a", "--accelerator-type=v5p-512", "--bucket=gs://bucket", "--chip=v5p",
                        "--mount=gs://shared:/mnt/bucket"],
    "queued_resource_slices": ["queued_resource.sh", "--name=big", "--zone=z", "--accelerator-type=v5p-512", "--bucket=gs://bucket", "--slices=2", "--spot=1",
                               "--mount=10.0.0.2:/share:/mnt/bucket"],
    "xpk": ["xpk.sh", "--name=g", "--cluster=c", "--image=gcr.io/p/i:1", "--tpu-type=v5litepod-256", "--slices=2", "--zone=us-east5-a"],
    "xpk_gpu": ["xpk.sh", "--name=g", "--cluster=c", "--image=i", "--device-type=h100-80gb-8", "--num-nodes=64", "--chip=h100"],
    "gke": ["gke.sh", "--name=g", "--image=gcr.io/p/i:1", "--accelerator=tpu-v5p-slice", "--torus=4x8x8", "--hosts=64", "--slices=2", "--chip=v5p",
            "--follow=1", "--mount=gs://shared:/mnt/bucket", "--service-account=trainer"],
    "gke_nfs": ["gke.sh", "--name=g", "--image=i", "--accelerator=tpu-v6e-slice", "--torus=4x4", "--hosts=4", "--mount=10.0.0.2:/share/a:/mnt/bucket"],
    "slurm": ["slurm.sh", "--nodes=64", "--partition=gpu", "--chip=h100", "--name=g"],
    "slurm_per_node": ["slurm.sh", "--nodes=2", "--per=node", "--gpus=4", "--cpus=12", "--time=1:00:00", "--account=a"],
    "simulate": ["simulate.sh", "--processes=2", "--devices=4"],
}


def words_of(name: str) -> list[str]:
    """What stands behind the options of a case."""
    return PLAIN if name == "xpk_gpu" else TRAIN


def run(*argv: str, env: dict[str, str] | None = None, cwd: pathlib.Path = ROOT, timeout: int = 60) -> subprocess.CompletedProcess[str]:
    """A launcher in bash, in a session of its own so that nothing outlives a failure."""
    with subprocess.Popen(["bash", str(ROOT / "launch" / argv[0]), *argv[1:]], cwd=cwd, env=os.environ | {"TMPDIR": "/tmp"} | (env or {}), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end_session(process.pid)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def end_session(leader: int, /) -> list[int]:
    """Kills what is left of a session, whose processes need not be of one group; their numbers."""
    left = []
    for number in (int(path.name) for path in pathlib.Path("/proc").iterdir() if path.name.isdecimal()):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(number) == leader:
                os.kill(number, signal.SIGKILL)
                left.append(number)
    return left


def tool(folder: pathlib.Path, name: str, text: str) -> pathlib.Path:
    """A stand-in for a program."""
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return file


@pytest.mark.parametrize("name", CASES)
def test_dry_run(name: str, request: pytest.FixtureRequest) -> None:
    """Nothing runs; what would is printed exactly."""
    done = run(CASES[name][0], *CASES[name][1:], "--dry-run", *words_of(name))
    assert done.returncode == 0, done.stderr
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    text = done.stdout.replace(str(ROOT), "HERE").replace(sys.prefix, "HERE/.venv").replace(commit, "COMMIT")
    text = re.sub(r"(once\.sh) \d+-\d+\.", r"\1 LAUNCH.", text)
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize(("name", "env", "argv"), [
    ("local", {"JAX_EXTRA": "cpu", "CHIP": "cpu"}, ["local.sh", "--dry-run", "runs/a b"]), ("local_short", {"JAX_EXTRA": "cpu", "CHIP": "cpu", "SMOKE": "short"}, ["local.sh", "--dry-run"]),
    ("local_gpu", {"JAX_EXTRA": "cuda13", "CHIP": "h100"}, ["local.sh", "--dry-run"]),
    ("host", {"CHIP": "h100", "COORDINATOR": "none"}, ["host.sh", "--dry-run", *TRAIN[1:]])])
def test_dry_run_here(name: str, env: dict[str, str], argv: list[str], tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> None:
    """The flags and the commands of this machine, which a shell reads back; nothing is installed, written or run."""
    clean = {"VIDEOMAE_PYTHON": "", "XLA_FLAGS": "", "LIBTPU_INIT_ARGS": "", "JAX_COMPILATION_CACHE_DIR": "/programs", "VENV": str(tmp_path / "venv"), "LOGS": str(tmp_path / "logs")}
    done = run(*argv, env=clean | env)
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr
    text, file = done.stdout.replace(str(tmp_path), "HERE"), GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        file.write_text(text)
    assert text == file.read_text()
    words = [shlex.split(line) for line in text.splitlines()]
    assert any(line[1:4] == ["-m", "videomae_jax", "train"] for line in words)
    assert all(line[0] in ("export", "HERE/venv/bin/python") for line in words)


@pytest.mark.parametrize("argv", [["sweep.sh", "--grid=g.py", "--root=HERE/a b", "--world=HERE/world", "--dry-run"], ["progressive.sh", "--dry-run", "--direct", "HERE/a b"]])
def test_dry_run_of_several_runs_here(argv: list[str], tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> None:
    """The flags of this machine come first, for all of them, and a shell reads everything back."""
    fake = tool(tmp_path, "python", "#!/usr/bin/env bash\n[[ $3 != plan ]] || printf '# 1 of 2 cells\\na-1\\ttrain --workdir=r/a\\n'\n")
    words = {name: f"--config={name.lower()}.py" for name in ("PRETRAIN", "INTERMEDIATE", "TARGET", "DIRECT")}
    flags = dict.fromkeys(("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_OPTIMIZATION_LEVEL", "NCCL_NVLS_ENABLE", "CUDA_DEVICE_MAX_CONNECTIONS", "XLA_PYTHON_CLIENT_MEM_FRACTION"), "")
    done = run(*(word.replace("HERE", str(tmp_path)) for word in argv),
               env=words | flags | {"CHIP": "h100", "JAX_COMPILATION_CACHE_DIR": "/programs", "VIDEOMAE_PYTHON": str(fake), "LAUNCH": "", "DETERMINISTIC": ""})
    assert done.returncode == 0 and list(tmp_path.iterdir()) == [fake], done.stderr
    text, file = done.stdout.replace(str(tmp_path), "HERE"), GOLDEN / f"{argv[0].removesuffix('.sh')}_gpu.txt"
    if request.config.getoption("--update-golden"):
        file.write_text(text)
    assert text == file.read_text()
    read = [shlex.split(line) for line in text.splitlines()]
    first = next(i for i, line in enumerate(read) if line[0] != "export")
    assert first == 6 and all(line[:3] == ["HERE/python", "-m", "videomae_jax"] for line in read[first:])
    assert text.splitlines()[:first] == (GOLDEN / "local_gpu.txt").read_text().splitlines()[:first]


def test_the_matrix_of_plans_expects_one_abort(tmp_path: pathlib.Path) -> None:
    """libtpu's compiler aborts on 22B over two slices: that cell is told and no error; another that has no plan is, and so is another fault of that cell."""
    fake = tool(tmp_path, "python", '#!/usr/bin/env bash\n[[ $* != *22b* || $* != *2xv5p* ]] || $END\n[[ $* != *vit_s* ]] || exit 1\necho {"topology"}\n')
    for size, end, code, said in (("22b", "kill -ABRT $$", 0, "aborts .* as expected"), ("22b", "exit 2", 1, "no plan of videomae_v2_22B on 2xv5p-512 .code 2."),
                                  ("22b", "kill -KILL $$", 1, "no plan of videomae_v2_22B on 2xv5p-512 .code 137."),
                                  ("22b", "true", 0, "no expected abort any more"), ("s", "true", 1, "no plan of videomae_v2_S")):
        fake.write_text(fake.read_text().replace("$END", end))
        done = run("aot_matrix.sh", str(tmp_path / "out"), size, "2xv5p-512", env={"VIDEOMAE_PYTHON": str(fake)})
        assert done.returncode == code and re.search(said, done.stderr), done.stderr
        fake.write_text(fake.read_text().replace(f"|| {end}\n", "|| $END\n"))


@pytest.mark.parametrize(("accelerator", "version"), [
    ("v6e-16", "v2-alpha-tpuv6e"), ("v5p-512", "v2-alpha-tpuv5"), ("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v4-32", "tpu-ubuntu2204-base"),
    ("v3-8", "tpu-ubuntu2204-base")])
def test_a_queued_resource_has_the_system_of_its_generation(accelerator: str, version: str) -> None:
    """As in Google's table of TPU software versions; one that is named is taken, of an accelerator type that is not known, too."""
    words = ("queued_resource.sh", "--name=a", "--zone=z", "--bucket=gs://b", "--dry-run")
    assert f" --accelerator-type={accelerator} --runtime-version={version} " in run(*words, f"--accelerator-type={accelerator}", *TRAIN).stdout
    for given in (accelerator, "tpu7x-8"):
        assert " --runtime-version=mine " in run(*words, f"--accelerator-type={given}", "--runtime-version=mine", *TRAIN).stdout


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("queued_resource", "queued_resource_slices", "gke", "gke_nfs")])
def test_printed_commands_hold_the_words_of_the_run(name: str) -> None:
    """A shell reads the words behind -- back as they were, through one level of quoting for each machine in between."""
    lines = (GOLDEN / f"{name}.txt").read_text().splitlines()
    wanted = words_of(name)[1:]
    for line in (line for line in lines if "vit_g.py" in line):
        words = shlex.split(line)
        inner = [w.partition("=")[2] for w in words if w.startswith("--command=")]
        if name == "xpk_gpu":  # xpk's own line, of the environment of the container
            assert pytest.importorskip("yaml").safe_load(f'value: "{inner[0]}"') == {"value": inner[0]}
        words = shlex.split(inner[0]) if inner else words
        begin = words.index("train")
        assert words[begin:begin + len(wanted)] == wanted
    assert any("vit_g.py" in line for line in lines)


def manifest(name: str) -> dict[str, Any]:
    """The JobSet of a golden file."""
    yaml = pytest.importorskip("yaml")
    text = (GOLDEN / f"{name}.txt").read_text().partition("# ^")[0]
    text = text[text.index("apiVersion"):]
    assert "@" not in text and "#" not in text
    return yaml.safe_load(text)


def test_the_manifest_is_yaml_with_the_words_of_the_run() -> None:
    """No place holder is left, numbers are numbers, arguments are a list; a mistake fails the JobSet and restarts nothing."""
    spec = manifest("gke")["spec"]
    job = spec["replicatedJobs"][0]
    assert job["replicas"] == 2 and job["template"]["spec"]["completions"] == 64
    assert spec["failurePolicy"] == {"maxRestarts": 50, "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]}
    container = job["template"]["spec"]["template"]["spec"]["containers"][0]
    rule, = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2, 126, 127, 130]}}
    assert container["args"] == TRAIN[1:] and container["resources"]["limits"]["google.com/tpu"] == 4


@pytest.mark.parametrize(("name", "volume"), [
    ("gke", {"csi": {"driver": "gcsfuse.csi.storage.gke.io",
                     "volumeAttributes": {"bucketName": "shared", "mountOptions": "implicit-dirs,file-system:rename-dir-limit:200000"}}}),
    ("gke_nfs", {"nfs": {"server": "10.0.0.2", "path": "/share/a"}})])
def test_the_manifest_mounts_what_all_hosts_share(name: str, volume: dict[str, Any]) -> None:
    """A bucket, which asks for its driver, or a folder of an NFS server; and shared memory for decoding processes in either case."""
    template = manifest(name)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    spec = template["spec"]
    assert spec["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}, {"name": "shared"} | volume]
    assert spec["containers"][0]["volumeMounts"] == [{"name": "shared-memory", "mountPath": "/dev/shm"}, {"name": "shared", "mountPath": "/mnt/bucket"}]
    assert template.get("metadata", {}).get("annotations", {}).get("gke-gcsfuse/volumes") == ("true" if "csi" in volume else None)
    assert spec.get("serviceAccountName") == ("trainer" if name == "gke" else None)


@pytest.mark.parametrize(("argv", "message"), [
    (["tpu_vm.sh", "--name=a", *TRAIN], "--zone=VALUE is missing"), (["tpu_vm.sh", "--name=a", "--zone=z"], "no command; write it behind --"),
    (["tpu_vm.sh", "--nme=a", *TRAIN], "unknown option --nme; allowed are .*--name .*--zone"), (["slurm.sh", "--nodes=1", "--per=core", *TRAIN], "--per=core; allowed are gpu and node"),
    *(([*words, *TRAIN], f"{words[-1]}; allowed are whole numbers of 1 and more") for words in (
        ["simulate.sh", "--processes=0"], ["simulate.sh", "--port=abc"], ["slurm.sh", "--nodes=abc"], ["slurm.sh", "--nodes=2", "--per=node", "--cpus=x"],
        ["queued_resource.sh", "--name=a", "--zone=z", "--accelerator-type=t", "--bucket=b", "--slices=two"])),
    (["slurm.sh", "--nodes=2", "--gpus=", *TRAIN], "--gpus=; allowed are whole numbers"),
    (["simulate.sh", "--", "evaluate", "runs/x"], "evaluate runs in one process; allowed behind -- is train"),
    (["slurm.sh", "--nodes=2", "--chip=v4", *TRAIN], "no flags for chip 'v4'; allowed are v5e"), (["local.sh", "--dry"], "--dry is no run directory; the one option is --dry-run"),
    (["xpk.sh", "--name=a", "--cluster=c", "--image=i", *TRAIN], "--tpu-type=TYPE or"),
    (["slurm.sh", "--nodes=1", "nodes", *TRAIN], "nodes is no option"), (["slurm.sh", "--nodes=1", "--grid=g.py", "--root=r", *TRAIN], "nothing but options of its cells may follow --, which train is not"),
    (["slurm.sh", "--nodes=1", "--grid=g.py"], "--grid needs --root=DIR"),
    *((["gke.sh", "--name=a", "--image=i", "--accelerator=a", "--torus=2x2", "--hosts=2", f"--mount={mount}", *TRAIN],
       f"--mount={mount}; allowed are gs://BUCKET:/FOLDER and HOST:/SHARE:/FOLDER") for mount in (
        "gs://b", "gs://b/d:/mnt", "gs://b:/", "gs://b:mnt", "/mnt", "host:/mnt")),
    (["queued_resource.sh", "--name=a", "--zone=z", "--accelerator-type=t", "--bucket=b", "--mount=b:/mnt", *TRAIN], "--mount=b:/mnt; allowed are gs://"),
    (["queued_resource.sh", "--name=a", "--zone=z", "--accelerator-type=tpu7x-8", "--bucket=b", *TRAIN], "--accelerator-type=tpu7x-8; allowed are v2 to v6e"),
    *(([*words, *TRAIN], f"{words[-1]}; allowed is 1, or leave it out") for words in (
        ["queued_resource.sh", "--name=a", "--zone=z", "--accelerator-type=v4-8", "--bucket=b", "--spot=0"],
        ["queued_resource.sh", "--name=a", "--zone=z", "--accelerator-type=v4-8", "--bucket=b", "--keep=no"],
        ["gke.sh", "--name=a", "--image=i", "--accelerator=a", "--torus=2x2", "--hosts=2", "--follow=0"])),
    *((["xpk.sh", "--name=a", "--cluster=c", "--image=i", "--device-type=t", "--", "train", f"--config.name=a{mark}b"],
       rf'--config.name=a{re.escape(mark)}b; allowed with --device-type are words without " \' \\ and line breaks') for mark in "\"'\\")])
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
    done = run("slurm.sh", "--nodes=2", "--grid=g.py", "--root=r", "--dry-run", "--", "--config.mesh.fsdp=4", "--step-limit=0", "--config.seed", "1", "--durable=d",
               env={"VIDEOMAE_PYTHON": str(fake)})
    assert "plan --grid=g.py --root=r --config.mesh.fsdp=4 --config.seed 1\n" in done.stderr  # whose cells have these in their words
    assert [shlex.split(line)[-3:] for line in done.stdout.splitlines()] == [
        [last, "--step-limit=0", "--durable=d"] for last in ("--config.name=a b", "--config.name=x")]
    done = run("simulate.sh", "--processes=1", "--grid=g.py", "--root=r", "--dry-run", "--", "--config.seed=1", env={"VIDEOMAE_PYTHON": str(fake)})
    assert done.returncode == 0 and "plan --grid=g.py --root=r --config.seed=1\n" in done.stderr
    assert done.stdout.count(" train --workdir=r/b ") == done.stdout.count("mkdir -p logs/run-b-75ep\n") == 2
    fake.write_text("#!/usr/bin/env bash\necho 'error: no such grid' >&2\nexit 2\n")
    assert run("slurm.sh", "--nodes=2", "--grid=g.py", "--root=r", "--dry-run", env={"VIDEOMAE_PYTHON": str(fake)}).returncode == 2


def test_a_tool_that_reads_leaves_the_cells_alone(tmp_path: pathlib.Path) -> None:
    """Some ask before they do anything: what they read is the user's answer, not the list of the cells."""
    fake = tool(tmp_path, "fake", "#!/usr/bin/env bash\nprintf '# 3 cells\\na\\ttrain --x=1\\nb\\ttrain --x=2\\nc\\ttrain --x=3\\n'\n")
    tool(tmp_path, "sbatch", f'#!/usr/bin/env bash\ncat >/dev/null\necho "${{!#}}" >>{tmp_path}/submitted\n')
    done = run("slurm.sh", "--nodes=2", "--grid=g.py", "--root=r", env={"VIDEOMAE_PYTHON": str(fake), "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 0 and (tmp_path / "submitted").read_text().split() == ["--x=1", "--x=2", "--x=3"], done.stderr


def test_a_launch_tells_what_differs_from_its_commit(tmp_path: pathlib.Path) -> None:
    """It stays behind; a clean checkout says nothing."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout[:12]

    def said(*words: str) -> str:
        done = subprocess.run(["bash", str(tmp_path / "launch" / words[0]), "--name=a", "--zone=z", *words[1:], "--dry-run", *TRAIN],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert said("tpu_vm.sh") == ""
    (tmp_path / "launch" / "test.sh").unlink()
    (tmp_path / "b").touch()
    queued = ("queued_resource.sh", "--accelerator-type=v4-8", "--bucket=gs://b", "--keep=1")
    assert said("tpu_vm.sh") == said(*queued) == f"files that differ from commit {commit}, which is what runs: launch/test.sh, b\n"
    for name in "cd":
        (tmp_path / name).touch()
    assert said("tpu_vm.sh").endswith(" runs: launch/test.sh, b, c and 1 more\n")


@pytest.mark.parametrize("argv", [
    ["tpu_vm.sh", "--name=a", "--zone=z"], ["queued_resource.sh", "--name=a", "--zone=z", "--accelerator-type=v4-8", "--bucket=gs://b"]])
def test_the_printed_lines_hand_over_the_archive_that_they_make(argv: list[str], tmp_path: pathlib.Path) -> None:
    """From a folder that is not that of the checkout, whose archive is made in between."""
    tool(tmp_path, "gcloud", '#!/bin/bash\nfor word in "$@"; do [[ $word != *.tar.gz || $word == *:* ]] || cp "$word" "$STAND_IN/copied"; done\n')
    folder = tmp_path / "a b"
    folder.mkdir()
    lines = run(*argv, "--dry-run", *TRAIN, cwd=folder).stdout.splitlines()
    script = "\n".join(line for line in lines if line.startswith("git ") or re.match(f"gcloud .* '?{re.escape(str(folder))}/", line))
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "STAND_IN": str(tmp_path)}
    subprocess.run(["bash", "-euc", script], cwd=folder, env=env, check=True, timeout=60)
    archive, = folder.iterdir()
    assert (tmp_path / "copied").read_bytes() == archive.read_bytes()


def test_a_sweep_runs_the_unfinished_cells_and_reports(tmp_path: pathlib.Path) -> None:
    """The world where it is missing, each cell in turn with its words, then the law over every run directory, the finished ones too."""
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(f"#!/usr/bin/env bash\n[[ $* == *plan* ]] || printf '<%s>' \"$@\" >>{log}; echo >>{log}\n"
                    "[[ $* != *plan* ]] || printf '# 2 of 3 cells\\na-1\\ttrain --workdir=r/a --config.name=%s\\nb-2\\ttrain --workdir=r/b\\n' \"'a b'\"\n")
    fake.chmod(0o755)
    argv = ["sweep.sh", "--grid=g.py", f"--root={tmp_path}/r", f"--world={tmp_path}/w", "--metric=x"]
    printed = run(*argv, "--dry-run", env={"VIDEOMAE_PYTHON": str(fake)}).stdout
    for name in ("done", "a"):
        (tmp_path / "r" / name).mkdir(parents=True)
    (tmp_path / "r" / "scaling.html").touch()
    done = run(*argv, env={"VIDEOMAE_PYTHON": str(fake)})
    assert done.returncode == 0 and "2 of 3 cells" in done.stderr, done.stderr
    ran = [line for line in log.read_text().splitlines() if line]
    log.unlink()
    subprocess.run(["bash", "-euc", printed], cwd=tmp_path, check=True, timeout=60)
    assert [line for line in log.read_text().splitlines() if line] == ran
    index = f"<--config.data.index={tmp_path}/w/index.parquet>"
    assert [line.removeprefix("<-m><videomae_jax>") for line in ran] == [
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


def test_several_slices_get_flags_of_their_own() -> None:
    """For what they exchange through the network of the hosts; the user's come last, and one slice, or GPUs, have none of them."""
    for chip, slices, wanted in (("v5p", "2", True), ("v6e", "16", True), ("v5p", "1", False), ("v5p", "", False), ("h100", "2", False)):
        done = subprocess.run(["bash", "-c", "source launch/xla_flags.sh && export_here && env"], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={"PATH": os.environ["PATH"], "HOME": "/nowhere", "MACHINE": "/nowhere", "CHIP": chip, "MEGASCALE_NUM_SLICES": slices,
                                   "LIBTPU_INIT_ARGS": "--mine=1"})
        flags = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)["LIBTPU_INIT_ARGS"].split()
        for flag in ("--megascale_grpc_premap_memory_bytes=17179869184", "--megascale_graph_hang_threshold=10m",
                     "--xla_tpu_enable_sunk_dcn_allreduce_done_with_host_reduction=true"):
            assert (flag in flags) == wanted, (chip, slices)
        assert flags[-1] == "--mine=1"


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("chip", topologies.CHIPS)
def test_flags_are_those_that_plan_compiles_with(chip: str, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One list for both, from any folder; of the package, so that they are there after pip install. What slices get besides is no compiler's."""
    variable = "LIBTPU_INIT_ARGS" if topologies.CHIPS[chip].platform == "tpu" else "XLA_FLAGS"
    script = f"set -euo pipefail; unset {variable} DETERMINISTIC JAX_OPTIMIZATION_LEVEL; source {ROOT}/launch/xla_flags.sh; export_flags {chip} {slices}; " \
             f"echo ${variable}; echo ${{JAX_OPTIMIZATION_LEVEL:-}}"
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_OPTIMIZATION_LEVEL"):
        monkeypatch.delenv(name, raising=False)  # what the user has set `plan` leaves to it
    done = subprocess.run(["bash", "-c", script], cwd="/", capture_output=True, text=True, check=True)
    topology = topologies.find(f"{slices}x{chip}-8" if variable == "LIBTPU_INIT_ARGS" else f"{chip}x{8 * slices}")
    found = topologies.flags(chip, slices=topology.slices)
    words, level = done.stdout.splitlines()
    stacks = "--fibers_default_thread_stack_size=8388608"
    process = [word for word in words.split() if "--megascale_" in word or word == stacks]
    assert topology.slices == slices and found and [w for w in words.split() if w not in process] == [f"--{name}={value}" for name, value in found.items()]
    assert (stacks in process) == (variable == "LIBTPU_INIT_ARGS")
    options = topologies.compiler_options(topology)
    assert options.keys() - {"optimization_level"} == found.keys() and ("optimization_level" in options) == (level == "O1") == (variable == "XLA_FLAGS")
    assert ("xla_tpu_enable_megascale_barrier" in found) == ("--megascale_" in done.stdout) == (slices > 1 and variable == "LIBTPU_INIT_ARGS")


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


@pytest.mark.parametrize(("version", "good"), [("3 2", False), ("4 3", False), ("4 4", True), ("5 0", True)])
def test_an_old_bash_is_refused(version: str, good: bool, tmp_path: pathlib.Path) -> None:
    """One line before anything that it cannot do, as in the bash of macOS."""
    script = tool(tmp_path, "options.sh", (ROOT / "launch" / "options.sh").read_text().replace("BASH_VERSINFO", "OTHER"))
    done = subprocess.run(["bash", "-c", f"OTHER=({version}); source {script}; echo reached"], capture_output=True, text=True)
    said = "" if good else f"error: bash {version.replace(' ', '.')}; needed is 4.4 or newer (macOS: brew install bash)\n"
    assert (done.returncode, done.stdout, done.stderr) == ((0, "reached\n", "") if good else (2, "", said))


# -- the machine ------------------------------------------------------------------------------------------------------------


def here(tmp_path: pathlib.Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A script after environment.sh on a machine without other tools, whose /dev and /sys are below `tmp_path`."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    if not (tools / "dirname").exists():
        (tools / "dirname").symlink_to(shutil.which("dirname"))
    return subprocess.run([shutil.which("bash"), "-c", f"source launch/environment.sh; {script}"], cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": str(tools), "MACHINE": str(tmp_path), "HOME": str(tmp_path)} | more)


def pci(tmp_path: pathlib.Path, *devices: tuple[str, str]) -> None:
    """PCI devices of a machine: vendor and device id of each."""
    for number, (vendor, device) in enumerate([("0x8086", "0x1237"), *devices]):
        folder = tmp_path / "sys" / "bus" / "pci" / "devices" / f"0000:00:0{number}.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "device").write_text(f"{device}\n")


def test_tpus_are_found_by_the_ids_that_jax_knows(tmp_path: pathlib.Path) -> None:
    """Each generation alone, beside Google's network card; those that have flags get theirs. Some are known from jax 0.12 on."""
    from jax._src import hardware_utils

    for device, name in ({d: v.name for d, v in hardware_utils._TPU_PCI_DEVICE_IDS.items()} | {"0x0083": "tpu8i", "0x007c": "tpu8t"}).items():
        machine = tmp_path / device
        machine.mkdir()
        pci(machine, ("0x1ae0", "0x0042"), (hardware_utils._GOOGLE_PCI_VENDOR_ID, device))
        done = here(machine, "detect_accelerator; chip_here")
        assert done.stdout.split() == ["tpu", name if name in ("v5p", "v5e", "v6e", "tpu7x") else "tpu"], done.stderr


def test_a_cloud_tpu_tells_the_number_of_its_slices(tmp_path: pathlib.Path) -> None:
    """In its metadata, where the environment does not say it; a machine without TPU is not asked, nor one whose metadata is not to be."""
    (tmp_path / "tools").mkdir()
    tool(tmp_path / "tools", "curl", f"#!/bin/sh\necho x >>{tmp_path}/asked\nprintf \"WORKER_ID: '0'\\nMEGASCALE_NUM_SLICES: '2'\\n\"\n")
    (tmp_path / "tools" / "sed").symlink_to(shutil.which("sed"))
    assert here(tmp_path, "slices_here").stdout == "" and not (tmp_path / "asked").exists()
    pci(tmp_path, ("0x1ae0", "0x0062"))
    assert here(tmp_path, "slices_here", MEGASCALE_NUM_SLICES="4").stdout == "4\n"
    assert here(tmp_path, "slices_here", TPU_SKIP_MDS_QUERY="1").stdout == "" and not (tmp_path / "asked").exists()
    done = here(tmp_path, 'export_here; echo "$LIBTPU_INIT_ARGS"')
    assert "--megascale_grpc_premap_memory_bytes=17179869184" in done.stdout, done.stderr


def test_a_machine_without_tpu_trains_on_its_cpu(tmp_path: pathlib.Path) -> None:
    """No devices at all, or the network card alone; /dev/accel0 alone is a TPU, a device of its own handed to a virtual machine none."""
    assert here(tmp_path, "detect_accelerator; chip_here").stdout.split() == ["cpu", "cpu"]
    pci(tmp_path, ("0x1ae0", "0x0042"))
    (tmp_path / "dev" / "vfio").mkdir(parents=True)
    (tmp_path / "dev" / "vfio" / "0").touch()
    assert here(tmp_path, "detect_accelerator; chip_here").stdout.split() == ["cpu", "cpu"]
    assert here(tmp_path, "chip_here", ACCELERATOR_TYPE="v5litepod-16").stdout == "v5e\n"
    (tmp_path / "dev" / "accel0").touch()
    assert here(tmp_path, "detect_accelerator").stdout == "tpu\n"


@pytest.mark.parametrize(("name", "chip"), [("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GH200 480GB", "h200"), ("NVIDIA B200", "b200"),
                                            ("NVIDIA GB200", "b200"), ("NVIDIA RTX A1000", "gpu"), ("NVIDIA RTX A1000 Laptop GPU", "gpu"), ("", "cpu")])
def test_a_gpu_is_a_word_of_the_name_that_it_gives(name: str, chip: str, tmp_path: pathlib.Path) -> None:
    """Those beside a Grace processor have the flags of their like; a driver without GPU is none."""
    said = f"case $1 in -L) echo 'GPU 0: {name} (UUID: GPU-b200)' ;; *) echo '{name}' ;; esac" if name else "echo No devices found."
    assert here(tmp_path, f"nvidia-smi() {{ {said}; }}; head() {{ read -r line; echo \"$line\"; }}; chip_here").stdout.strip() == chip


@pytest.mark.parametrize(("said", "wanted"), [
    (("580.65.06, 9.0",), "cuda13"), (("590.1, 12.0", "590.1, 7.5"), "cuda13"), (("580.65.06, 7.0",), "cuda12"), (("570.124, 9.0",), "cuda12"),
    (("580.65.06, 9.0", "580.65.06, 6.1"), "cuda12"), (('Field "compute_cap" is not a valid field to query.', ""), "cuda12"), ((), "cuda12")])
def test_the_cuda_is_one_that_all_gpus_of_the_machine_can_use(said: tuple[str, ...], wanted: str, tmp_path: pathlib.Path) -> None:
    """By driver and compute capability: driver 580 is the last of V100 and P100, for which CUDA 13 has no code."""
    lines = "".join(f"echo '{line}'; " for line in said)
    done = here(tmp_path, f"nvidia-smi() {{ if [ $1 = -L ]; then echo 'GPU 0: x'; else {lines}:; fi; }}; set -euo pipefail; detect_accelerator")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{wanted}\n", "")


def test_the_check_of_a_tpu_asks_no_other_host(tmp_path: pathlib.Path) -> None:
    """What JAX found at its import decides; its devices, which answer when all hosts ask, are left alone."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    for forced, code in (({"JAX_FORCE_TPU_INIT": "1"}, 0), ({}, 1)):
        done = here(tmp_path, "check_accelerator tpu", VENV=str(tmp_path / "venv"), JAX_PLATFORMS="cpu", PYTHONPATH=os.pathsep.join(sys.path), **forced)
        assert done.returncode == code and ("JAX reports only the CPU" in done.stderr) == bool(code), done.stderr


def test_an_old_python_is_replaced(tmp_path: pathlib.Path) -> None:
    """A TPU image with Python 3.8: uv brings 3.12, and the environment is made with it."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    tool(bin_folder, "python3", "#!/usr/bin/env bash\nexit 1\n")  # older than 3.11
    tool(bin_folder, "uv", f'#!/usr/bin/env bash\n[ "$2" = find ] && echo {sys.executable}\necho "uv $*" >>"{tmp_path}/calls"\n')
    tool(bin_folder, "dirname", '#!/bin/bash\nexec /usr/bin/dirname "$@"\n')
    env = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(tmp_path)}
    for newer in ("python3.11", "python3.12", "python3.13"):
        tool(bin_folder, newer, "#!/usr/bin/env bash\nexit 1\n")
    done = subprocess.run(["bash", "-c", "source launch/environment.sh; choose_python"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == sys.executable, done.stderr
    assert "uv python install --quiet 3.12" in (tmp_path / "calls").read_text()


def choosing(tmp_path: pathlib.Path, interpreters: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    """`choose_python` where these interpreters {name: "major, minor"} are there, and uv, which brings its own."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, version in interpreters.items():
        tool(tools, name, f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = ({version}, 0); exec(sys.argv[1])" "$2"\n')
    tool(tools, "uv", '#!/bin/sh\n[ "$2" != find ] || echo fetched\n')
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    return subprocess.run([str(tools / "bash"), "-c", "source launch/environment.sh; choose_python"], cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": str(tools), "HOME": str(tmp_path)} | more)


@pytest.mark.parametrize(("interpreters", "chosen"), [
    ({"python3": "3, 13"}, "fetched"), ({"python3": "3, 10"}, "fetched"), ({"python3": "3, 11"}, "python3"), ({"python3": "3, 12"}, "python3"),
    ({"python3": "3, 13", "python3.11": "3, 11"}, "python3.11"), ({}, "fetched")])
def test_a_python_is_of_a_version_that_is_tested(interpreters: dict[str, str], chosen: str, tmp_path: pathlib.Path) -> None:
    """3.11 or 3.12; where there is none, uv brings 3.12."""
    done = choosing(tmp_path, interpreters)
    assert done.returncode == 0 and done.stdout == f"{chosen}\n", done.stderr


@pytest.mark.parametrize("given", ["mine", "absent"])
def test_a_python_that_was_asked_for_is_used_or_refused(given: str, tmp_path: pathlib.Path) -> None:
    """No other one takes its place."""
    done = choosing(tmp_path, {"mine": "3, 13", "python3.12": "3, 12"}, PYTHON=given)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: PYTHON={given} cannot be used; allowed is an interpreter of Python 3.11 or 3.12\n"
    (tmp_path / "again").mkdir()
    assert choosing(tmp_path / "again", {"mine": "3, 11", "python3.12": "3, 12"}, PYTHON="mine").stdout == "mine\n"


PYTHON = """#!/bin/bash
# Makes environments and installs, slowly; a link that leads nowhere stays, as in the real thing.
echo "$*" >>"$STAND_IN/calls"
case "$1 $2" in
  "-m venv") [ "$4" != --clear ] || rm -r "$3"; mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp "$0" "$3/bin/python"; [ ! -e "$STAND_IN/no_pip" ] ;;
  "-m ensurepip") [ ! -e "$STAND_IN/no_pip" ] || { printf 'Looking.\nNo module named ensurepip\n'; exit 1; } ;;
  "-m pip") [ "$3" != --version ] || exec [ ! -e "$STAND_IN/no_pip" ]; echo "$*" >>"$STAND_IN/pip"; sleep 0.5 ;;
esac
"""


def installing(tmp_path: pathlib.Path, *more: str) -> tuple[list[str], dict[str, str]]:
    """The command that installs, and its environment; `more` are tools of the machine."""
    python, tools = tool(tmp_path, "python", PYTHON), tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm", "sleep", "touch", *more):
        (tools / name).symlink_to(shutil.which(name))
    env = {"PATH": str(tools), "PYTHON": str(python), "VENV": str(tmp_path / "new" / ".venv"), "JAX_EXTRA": "cpu", "STAND_IN": str(tmp_path)}
    return [str(tools / "bash"), "-c", "source launch/environment.sh; install requirements.txt"], env


@pytest.mark.parametrize("lock", [True, False])
def test_processes_that_start_together_install_once(tmp_path: pathlib.Path, lock: bool) -> None:
    """They share one environment, which is not there yet: one installs, the others wait for it. Without flock(1) a single one installs all the same."""
    words, env = installing(tmp_path, *["flock"] * lock)
    started = [subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3 if lock else 1)]
    for process in started:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0 and "flock" not in said, said
    assert (tmp_path / "pip").read_text().splitlines() == ["-m pip install --quiet --disable-pip-version-check -r requirements.txt"]


def test_an_environment_that_is_there_is_waited_for_by_nobody(tmp_path: pathlib.Path) -> None:
    """Another process holds the lock, and no interpreter is tried out."""
    words, env = installing(tmp_path, "flock")
    assert subprocess.run(words, cwd=ROOT, env=env, timeout=60).returncode == 0
    (tmp_path / "calls").unlink()
    with (tmp_path / "new" / ".venv.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert subprocess.run(words, cwd=ROOT, env=env, timeout=60).returncode == 0
    assert not (tmp_path / "calls").exists()


def test_an_environment_whose_interpreter_is_gone_is_made_anew(tmp_path: pathlib.Path) -> None:
    """As after an update of the machine, whose Python it linked to; what was in it goes, and what is no environment stays."""
    words, env = installing(tmp_path, "flock")
    venv = tmp_path / "new" / ".venv"
    venv.mkdir(parents=True)
    (venv / "mine").touch()
    assert subprocess.run(words, cwd=ROOT, env=env, timeout=60).returncode == 0 and (venv / "mine").exists()
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    assert subprocess.run(words, cwd=ROOT, env=env, timeout=60).returncode == 0
    assert (venv / "bin" / "python").is_file() and not (venv / "bin" / "python").is_symlink() and not (venv / "mine").exists()
    assert (tmp_path / "calls").read_text().count("-m pip") == 2


def test_an_environment_that_was_broken_off_gets_its_pip(tmp_path: pathlib.Path) -> None:
    """Which venv makes last; what is in one that was made without it stays. Where none is to be had that is said, at every try."""
    words, env = installing(tmp_path, "flock")
    venv = tmp_path / "new" / ".venv"
    (tmp_path / "no_pip").touch()
    assert subprocess.run(words, cwd=ROOT, env=env, timeout=60).returncode == 1
    (venv / "mine").touch()
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (f"error: {venv} has no pip, and ensurepip brings none (No module named ensurepip); install it (Debian: apt install python3-venv) "
                           f"or remove {venv}\n")
    tool(venv / "bin", "python", PYTHON.replace('"-m ensurepip")', '"-m ensurepip") rm "$STAND_IN/no_pip";'))
    assert subprocess.run(words, cwd=ROOT, env=env, timeout=60).returncode == 0
    assert (venv / "mine").exists() and (tmp_path / "pip").read_text().count("install") == 1


def test_steps_for_tpus_are_compiled_with_the_libtpu_of_jax(tmp_path: pathlib.Path) -> None:
    """Which is installed once for each version, apart from the environment, that then looks for no TPU; its tests run alone, in one process."""
    _, env = installing(tmp_path, "flock")
    more = '"-c from "*) cat "$STAND_IN/wanted"; exit ;; "-m pytest") echo "$PYTHONPATH|$*" >>"$STAND_IN/pytest" ;; '
    tool(tmp_path, "python", PYTHON.replace('in\n', f'in\n  {more}\n', 1).replace("sleep 0.5", '[ "$7" != --target ] || mkdir "$8"'))
    words = [env["PATH"] + "/bash", "launch/test.sh", "--plans", "-x"]
    for wanted in ("libtpu==0.0.42.*", "libtpu==0.0.42.*", "libtpu==0.0.43.*"):
        (tmp_path / "wanted").write_text(f"{wanted}\n")
        done = subprocess.run(words, cwd=ROOT, env=env | {"PYTHONPATH": "mine"}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    libtpu = tmp_path / "new" / ".venv" / "libtpu"
    assert [line for line in (tmp_path / "pip").read_text().splitlines() if "libtpu" in line] == [
        f"-m pip install --quiet --disable-pip-version-check --no-deps --target {libtpu} libtpu==0.0.{n}.*" for n in (42, 43)]
    assert (tmp_path / "pytest").read_text().splitlines() == [
        f"{libtpu}:mine|-m pytest -q -n 0 --slow tests/test_plan.py -k real_steps_compile_for_tpus -x"] * 3
    collected = subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/test_plan.py", "-k", "real_steps_compile_for_tpus"], cwd=ROOT,
                               capture_output=True, text=True, timeout=300)
    assert "v5e-256" in collected.stdout and "v5p-512" in collected.stdout, collected.stdout


def test_the_lock_of_the_environment_is_no_change_of_the_checkout() -> None:
    """What runs from a checkout notes whether it was changed."""
    assert subprocess.run(["git", "check-ignore", "--quiet", ".venv.lock"], cwd=ROOT).returncode == 0
