"""How the processes of a run find each other."""

import os
import re

import jax

from videomae_jax.errors import UserError

# Of JAX's detection, what no later start mends: no rights, or a job that is none for it. Late machines and servers that fail are told by others.
MISTAKES = r"API Error: 403|does not have a controller|headless service|only supports Job|completionMode|HOSTNAME env|parse coordinator IP|requires mpi4py"


def initialize(*, coordinator: str, processes: int, process: int, timeout: int = 300, peer_limit: int = 15) -> None:
    """Joins a multi-process run; must come before any other use of jax. CPU collectives go through gloo.

    Nothing without `coordinator`; with "auto" jax detects the cluster (SLURM, Cloud TPU, Kubernetes, Open MPI), UserError where it cannot.
    JAX ends the process where the others are not there within `timeout` s, and where one is silent for `peer_limit` s: a collective would wait for ever.
    """
    if not coordinator:
        return
    name, address = ("--coordinator", coordinator) if coordinator != "auto" else ("JAX_COORDINATOR_ADDRESS", os.environ.get("JAX_COORDINATOR_ADDRESS") or ":0")
    if ":" not in address or not address.rpartition(":")[2].isdigit():
        raise UserError(f"{name}={address}; allowed are HOST:PORT with --processes=N --process=I, and auto")
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given = {} if coordinator == "auto" else {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    try:
        jax.distributed.initialize(**given, initialization_timeout=timeout, heartbeat_timeout_seconds=peer_limit)
    except (ValueError, RuntimeError) as error:  # no cluster, or one that tells too little; what may pass, as processes that are late, is no mistake
        said = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not re.search(MISTAKES, said):
            raise
        raise UserError(f"--coordinator={coordinator}: {said}; give --coordinator=HOST:PORT --processes=N --process=I") from error


def place_of_process() -> str:
    """One line: which process of how many this is, its devices, and the coordinator."""
    from jax._src import distributed  # the address has no public name

    return (f"process {jax.process_index()}/{jax.process_count()}, {jax.local_device_count()} of {jax.device_count()} devices "
            f"({jax.devices()[0].device_kind}), coordinator {distributed.global_state.coordinator_address}")
