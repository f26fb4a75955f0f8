"""What runs on the nodes of a job, with the standard library alone: a look at the node, a command, a last sweep.

python node.py survey --canary FILE --ports FIRST COUNT       # prints what the job has to know of this node
python node.py run --nodes n1=10.0.0.1 --gpus 0:1 -- COMMAND  # COMMAND with its slice of the node's GPUs
python node.py sweep --marker NAME=VALUE                      # ends what is left of a job, and says what it was
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    """Return the address of a node: Slurm's NodeAddr, what getent makes of it or of the name, or the name."""
    node = _print_output(["scontrol", "show", "node", name, "--oneliner"], environment)
    match = re.search(r"NodeAddr=(\S+)", node)
    candidates = [*([match[1]] if match else []), name]
    for candidate in candidates:
        if re.fullmatch(r"[\d.]+|[0-9a-fA-F:]*:[0-9a-fA-F:]*", candidate):
            return candidate
        words = _print_output(["getent", "ahostsv4", candidate], environment).split()
        if words and not words[0].startswith("127."):  # a node's own name often stands for its loopback
            return words[0]
    return candidates[0]


def _print_output(command: list[str], environment: Mapping[str, str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False).stdout


def find_free_ports(address: str, first: int, count: int) -> list[int]:
    """Return the ports of a range that this node can bind."""
    return [port for port in range(first, first + count) if is_free(address, port)]


def is_free(address: str, port: int) -> bool:
    """Tell whether a port can be bound at an address and at all of the node's addresses."""
    for host in (address, ""):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free
            try:
                probe.bind((host, port))
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


def run_command(options: argparse.Namespace) -> None:
    """Become the command, with this node's address, its rank among the nodes of the step, and its GPUs."""
    addresses = dict(pair.split("=", 1) for pair in options.nodes.split(","))
    name = os.environ["SLURMD_NODENAME"]
    environment = dict(os.environ) | {"VLLM_HOST_IP": addresses[name]}
    if options.gpus is not None:
        first, last = map(int, options.gpus.split(":"))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slice_devices(list_devices(os.environ), first, last))
    folder = environment.get("LAUNCH_NODE_CACHE")
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
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
    if options.cache is not None:
        shutil.rmtree(options.cache, ignore_errors=True)
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
    sweep.add_argument("--cache", type=Path)
    sweep.set_defaults(act=sweep_node)
    options = parser.parse_args()
    try:
        options.act(options)
    except ValueError as error:
        sys.exit(f"node.py: {error}")


if __name__ == "__main__":
    main()
