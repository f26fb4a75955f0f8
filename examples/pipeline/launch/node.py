"""What runs on the nodes of a job, with the standard library alone: a look at the node, a command, a last sweep.

python node.py survey --canary FILE --ports FIRST COUNT       # prints what the job has to know of this node
python node.py run --nodes n1=10.0.0.1 --gpus 0:1 -- COMMAND  # COMMAND with its slice of the node's GPUs
python node.py sweep --marker NAME=VALUE                      # ends what is left of a job, and says what it was
"""

import argparse
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MARKER = "LAUNCH_JOB"
"""The variable that every process of a job inherits, and by which the sweep finds what is left."""

CACHES = {
    "XDG_CACHE_HOME": "cache",
    "TRITON_HOME": "triton-home",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "VLLM_CACHE_ROOT": "vllm",
    "VLLM_CONFIG_ROOT": "vllm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TILELANG_CACHE_DIR": "tilelang",
    "TVM_FFI_CACHE_DIR": "tvm-ffi",
    "CUDA_CACHE_PATH": "cuda",
    "NUMBA_CACHE_DIR": "numba",
    "MPLCONFIGDIR": "matplotlib",
}
"""What compiles into a folder: on a shared disk nodes would wait for each other's locks, or meet half a file."""

SURVEY = "maxent-survey "
SWEEP = "maxent-sweep "


def list_devices(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs given to this process, as numbers or UUIDs, in the order given.

    >>> list_devices({"CUDA_VISIBLE_DEVICES": "5,6,7,2"})
    ['5', '6', '7', '2']

    Raises:
        ValueError: on parts of a GPU beside whole ones, or where each task sees GPUs of its own.
    """
    if environment.get("SLURM_GPUS_PER_TASK"):
        raise ValueError(
            "Expected a node's GPUs to be visible to all its processes, got "
            f"SLURM_GPUS_PER_TASK={environment['SLURM_GPUS_PER_TASK']}, under which NCCL cannot reach them."
        )
    text = environment.get("CUDA_VISIBLE_DEVICES")
    devices = _ask_driver() if text is None else [name.strip() for name in text.split(",") if name.strip()]
    parts = [name for name in devices if name.startswith("MIG-")]
    if parts and len(parts) < len(devices):
        raise ValueError(f"Expected whole GPUs or MIG parts, got both: CUDA_VISIBLE_DEVICES={','.join(devices)}.")
    return devices


def _ask_driver() -> list[str]:
    """Return the UUIDs of the GPUs that `nvidia-smi -L` lists; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return read_listing(listing.stdout) if listing.returncode == 0 else []


def read_listing(text: str) -> list[str]:
    r"""Return the devices of `nvidia-smi -L`: of a GPU in parts its parts, of another one itself.

    >>> read_listing("GPU 0: A100 (UUID: GPU-1)\nGPU 1: A100 (UUID: GPU-2)\n  MIG 1g.5gb Device 0: (UUID: MIG-3)")
    ['GPU-1', 'MIG-3']
    """
    devices: list[str] = []
    for kind, name in re.findall(r"(GPU|MIG) .*\(UUID: ([^)]+)\)", text):
        if kind == "MIG" and devices and devices[-1].startswith("GPU-"):
            devices.pop()
        devices.append(name)
    return devices


def slice_devices(devices: Sequence[str], first: int, last: int) -> list[str]:
    """Return some of the devices.

    Raises:
        ValueError: if there are fewer.
    """
    if last > len(devices):
        raise ValueError(f"Expected {last} GPUs on this node, got {len(devices)}: {','.join(devices) or 'none'}.")
    return list(devices[first:last])


def find_address(name: str, environment: Mapping[str, str]) -> str:
    """Return the address of a node by which others reach it.

    That is Slurm's NodeAddr, what it or the node's name resolves to, or the address by which this node reaches the
    one that started the step or the controller. Where all of them are loopback's, or nothing resolves, it is a name.
    """
    match = re.search(r"NodeAddr=(\S+)", _print_output(["scontrol", "show", "node", name, "--oneliner"], environment))
    candidates = [*([match[1]] if match else []), name]
    for candidate in candidates:
        if re.fullmatch(r"[\d.]+|[0-9a-fA-F:]*:[0-9a-fA-F:]*", candidate):
            return candidate
        for address in resolve_name(candidate):
            if not is_local(address):
                return address
    for peer in (environment.get("SLURM_LAUNCH_NODE_IPADDR"), *_list_controllers(environment)):
        address = find_route(peer) if peer else ""
        if address and not is_local(address):
            return address
    return candidates[0]


def resolve_name(name: str) -> list[str]:
    """Return the addresses of a name as getent would, those of IPv4 first; none where it is unknown."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(place[0]) for family, _, _, _, place in sorted(found, key=lambda each: each[0] != socket.AF_INET)]


def is_local(address: str) -> bool:
    """Tell whether an address means another machine on every machine: Debian maps a node's own name to such a one.

    >>> [is_local(address) for address in ("127.0.1.1", "::1", "fe80::1%eth0", "10.0.0.7", "2001:db8::7")]
    [True, True, True, False, False]
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified


def find_route(peer: str) -> str:
    """Return the address by which this node would reach another one; nothing is sent. Empty where it cannot."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _list_controllers(environment: Mapping[str, str]) -> list[str]:
    """Return the hosts of slurmctld: `SlurmctldHost[0] = head(10.0.0.1)` says its address in brackets."""
    text = _print_output(["scontrol", "show", "config"], environment)
    return [address or host for host, address in re.findall(r"SlurmctldHost\S* *= *([^\s(]+)(?:\(([^)]+)\))?", text)]


def _print_output(command: list[str], environment: Mapping[str, str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False).stdout


def find_free_ports(address: str, first: int, count: int) -> list[int]:
    """Return the ports of a range that this node can bind."""
    return [port for port in range(first, first + count) if is_free(address, port)]


def is_free(address: str, port: int) -> bool:
    """Tell whether a port can be bound at an address and at all of the node's addresses of its family."""
    try:
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return False
    everywhere = ("::" if family == socket.AF_INET6 else "", port)
    for host in (place, everywhere):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free
            try:
                probe.bind(host)
            except OSError:
                return False
    return True


def survey_node(options: argparse.Namespace) -> None:
    """Print what the job has to know of this node, as a line of JSON."""
    name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    address = find_address(name, os.environ)
    facts: dict[str, object] = {"name": name, "address": address}
    facts["ports"] = find_free_ports(address, *options.ports)
    facts["taken"] = [port for port in options.fixed if not is_free(address, port)]
    try:
        facts["devices"] = list_devices(os.environ)
    except ValueError as error:
        facts["problem"] = str(error)
    try:
        facts["canary"] = options.canary.read_text()
    except OSError as error:
        facts["canary"] = f"{error.strerror}: {options.canary}"
    print(SURVEY + json.dumps(facts), flush=True)


def find_cache(job: str, environment: Mapping[str, str]) -> Path:
    """Return the folder of this node that a job's caches are in; its own, even where TMPDIR is on a shared disk.

    Args:
        job: its id with the count of its restarts.
        environment: of a process of the job.
    """
    node = environment.get("SLURMD_NODENAME", socket.gethostname())
    given = environment.get("TMPDIR", "")
    return Path(given if os.access(given, os.W_OK) else "/tmp") / f"maxent-{job}-{node}"


def make_cache(folder: Path) -> Path:
    """Make the folder of a job's caches, which nobody else can read or write.

    Raises:
        ValueError: if another user made it, or it is a link: what is compiled there would be run.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ValueError(f"Expected a folder of user {os.getuid()}, got {folder} of user {found.st_uid}.")
    folder.chmod(0o700)
    return folder


def run_command(options: argparse.Namespace) -> None:
    """Become the command, with this node's address, its rank among the nodes of the step, and its GPUs."""
    addresses = dict(pair.split("=", 1) for pair in options.nodes.split(","))
    name = os.environ["SLURMD_NODENAME"]
    environment = dict(os.environ) | {"VLLM_HOST_IP": addresses[name]}
    if options.gpus is not None:
        first, last = map(int, options.gpus.split(":"))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slice_devices(list_devices(os.environ), first, last))
    if MARKER in environment:
        folder = make_cache(find_cache(environment[MARKER], environment))
        environment = {variable: str(folder / name) for variable, name in CACHES.items()} | environment
    rank = list(addresses).index(name)
    command = [word.replace("{rank}", str(rank)) for word in options.command]
    os.execvpe(command[0], command, environment)


def find_processes(marker: str) -> dict[int, str]:
    """Return the processes that inherited an environment variable, with their command lines.

    The variable is inherited by all that a job starts, whatever session, group or parent it moved to.
    """
    left: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            if marker.encode() in (folder / "environ").read_bytes().split(b"\0"):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                left[int(folder.name)] = words.strip() or (folder / "comm").read_text().strip()
        except OSError:
            continue  # it ended meanwhile, or is another user's
    return left


def sweep_node(options: argparse.Namespace) -> None:
    """End what is left of a job on this node, remove its caches, and print what there was."""
    time.sleep(options.grace)
    left = find_processes(options.marker)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    shutil.rmtree(find_cache(options.marker.partition("=")[2], os.environ), ignore_errors=True)
    name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    print(SWEEP + json.dumps({"name": name, "left": left}), flush=True)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True)
    survey = parts.add_parser("survey")
    survey.add_argument("--canary", type=Path, required=True)
    survey.add_argument("--ports", type=int, nargs=2, required=True)
    survey.add_argument("--fixed", type=int, nargs="*", default=[])
    survey.set_defaults(act=survey_node)
    run = parts.add_parser("run")
    run.add_argument("--nodes", required=True)
    run.add_argument("--gpus")
    run.add_argument("command", nargs="+")
    run.set_defaults(act=run_command)
    sweep = parts.add_parser("sweep")
    sweep.add_argument("--marker", required=True)
    sweep.add_argument("--grace", type=float, default=0.0)
    sweep.set_defaults(act=sweep_node)
    options = parser.parse_args()
    try:
        options.act(options)
    except ValueError as error:
        sys.exit(f"node.py: {error}")


if __name__ == "__main__":
    main()
