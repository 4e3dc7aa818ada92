"""Three machines with addresses of their own on this one, a Ray cluster on them, and the rows of the local engine.

    python tests/bench/engines/three_machines.py --suite digits --defense none --defense jpeg --attack pgd

Each machine is a network namespace with its own processes, host name, shared memory and folder of Ray's; a bridge in a
fourth joins them. Nothing of this machine's own network is touched. ``bench evaluate`` runs on the first of them, and
once more here with the local engine; the stored rows are compared bit for bit. Needs the superuser, ip (iproute2) and
unshare and nsenter (util-linux). With ``--lose-one`` the third loses its network in the middle, and a fourth joins.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PORT = 6379
_TOKEN = secrets.token_hex(32)


def missing() -> str:
    """Why there can be no such machines here; empty when there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs Linux and the superuser"
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    with contextlib.suppress(subprocess.CalledProcessError), _network() as network:
        network.plug("probe", "10.77.0.9")
        return ""
    return "network namespaces, a bridge or veth are not allowed here"


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class _Network:
    """A bridge in a namespace, and namespaces that are plugged into it."""

    def __init__(self) -> None:
        self.prefix = f"bench{os.getpid()}"
        self.made: list[str] = []
        self.switch = self._namespace("switch")
        _do("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _do("ip", "-n", self.switch, "link", "set", "bridge", "up")

    def _namespace(self, name: str) -> str:
        full = f"{self.prefix}-{name}"
        _do("ip", "netns", "add", full)
        self.made.append(full)
        _do("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def plug(self, name: str, address: str) -> str:
        """A namespace with this address on its ``eth0``."""
        full, port = self._namespace(name), f"to-{name}"
        _do("ip", "-n", full, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.switch)
        _do("ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up")
        _do("ip", "-n", full, "address", "add", f"{address}/24", "dev", "eth0")
        _do("ip", "-n", full, "link", "set", "eth0", "up")
        return full


@contextlib.contextmanager
def _network() -> Iterator[_Network]:
    network = _Network()
    try:
        yield network
    finally:
        for name in network.made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


class Machine:
    """One machine of the cluster, whose processes all end with :meth:`stop`."""

    def __init__(self, network: _Network, number: int, cpus: int, ray_folder: Path) -> None:
        self.name, self.address = f"machine-{number}", f"10.77.0.{number}"
        self.namespace = network.plug(self.name, self.address)
        where = f"--head --port={PORT} --include-dashboard=false" if number == 1 else f"--address=10.77.0.1:{PORT}"
        # The folder is the first machine's for all of them, so each has its own file system there.
        start = (
            f"hostname {self.name}; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs {ray_folder}; "
            f"exec {sys.executable} -m ray.scripts.scripts start {where} --node-ip-address={self.address} "
            f"--num-cpus={cpus} --object-store-memory=200000000 --block"
            + (f" --temp-dir={ray_folder}" if number == 1 else "")
        )
        own = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", *own, "sh", "-c", start],
            env=_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def inside(self, *command: str) -> list[str]:
        """The command as it is run on this machine."""
        first = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0]
        return ["nsenter", "--target", first, "--mount", "--uts", "--ipc", "--net", "--pid", *command]

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        check = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
        while time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(OSError, IndexError):
                command = self.inside(sys.executable, "-c", check, self.address, str(PORT))
                if subprocess.run(command, capture_output=True).returncode == 0:
                    return
        raise TimeoutError(f"{self.name}: Ray has not started")

    def unplug(self) -> None:
        """Take its network away: nobody is told, as when a machine loses its power."""
        _do("ip", "-n", self.namespace, "link", "set", "eth0", "down")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _environment() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}  # as docs/cluster.md says
    return {**os.environ, **known, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


class _Meter(threading.Thread):
    """Processor seconds that jobs took on each machine, by its network namespace."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[str, dict[int, float]] = defaultdict(dict)
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.wait(0.5):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if folder.joinpath("cmdline").read_bytes().startswith(b"ray::RayWorker"):
                        fields = folder.joinpath("stat").read_text().rpartition(")")[2].split()
                        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                        self.seconds[str(folder.joinpath("ns/net").readlink())][int(folder.name)] = used

    def stop(self) -> None:
        self._stop_now.set()
        self.join()

    def of(self, network: str) -> float:
        return sum(self.seconds[network].values())


def _evaluate(results: Path, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", "from bench.cli.main import main; main()", "evaluate", "--quiet", "--device=cpu",
            f"--results={results}", *arguments]  # fmt: skip


def on_three_machines(
    results: Path, arguments: Sequence[str], lose_after: int | None = None, cpus: int = 1
) -> dict[str, float]:
    """Run ``bench evaluate`` with these arguments on them.

    Args:
        results: gets what is stored.
        lose_after: stored shards after which one machine is lost and another joins.
        cpus: of each machine.

    Returns:
        By machine, the processor seconds of its jobs.

    Raises:
        RuntimeError: when the command fails, with what it said.
    """
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(_network())
        ray_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray")))
        machines: list[Machine] = []

        def add() -> None:
            machines.append(Machine(network, len(machines) + 1, cpus, ray_folder))
            stack.callback(machines[-1].stop)

        add()
        machines[0].wait_until_up()
        add()
        add()
        meter = _Meter()
        meter.start()
        stack.callback(meter.stop)
        names = {machine.name: _network_of(machine) for machine in machines}
        command = _evaluate(results, [*arguments, "--engine=ray", f"--address={machines[0].address}:{PORT}"])
        told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        driver = subprocess.Popen(machines[0].inside(*command), env=_environment(), text=True, **told)
        stack.callback(driver.kill)
        while lose_after is not None and driver.poll() is None:
            time.sleep(0.1)
            if len(list(results.glob("*/*/*/[0-9]*.json"))) >= lose_after:
                machines[2].unplug()
                add()
                names[machines[3].name] = _network_of(machines[3])
                break
        said, _ = driver.communicate()
        if driver.returncode:
            raise RuntimeError(f"ended with {driver.returncode}: {said}")
        return {name: meter.of(network_of) for name, network_of in names.items()}


def _network_of(machine: Machine) -> str:
    """How the kernel calls a machine's network."""
    command = ["ip", "netns", "exec", machine.namespace, "readlink", "/proc/self/ns/net"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def here(results: Path, arguments: Sequence[str], workers: int) -> None:
    """Run ``bench evaluate`` with these arguments with the local engine."""
    command = _evaluate(results, [*arguments, f"--workers={workers}"])
    subprocess.run(command, check=True, env=_environment(), stdout=subprocess.DEVNULL)


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    sys.path.insert(0, str(ROOT))
    from stand_ins import essence

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="digits")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--defense", action="append", required=True)
    parser.add_argument("--attack", action="append", default=[])
    parser.add_argument("--lose-one", action="store_true", help="in the middle; another joins")
    parser.add_argument("--workers", type=int, default=2, help="of the local engine")
    parser.add_argument("--out", type=Path, help="keep the results there")
    given = parser.parse_args()
    if reason := missing():
        sys.exit(f"error: {reason}")
    arguments = [f"--suite={given.suite}", *(f"--defense={name}" for name in given.defense)]
    arguments += [f"--attack={name}" for name in given.attack]
    arguments += [f"--config={given.config.resolve()}"] if given.config else []
    with tempfile.TemporaryDirectory() as temporary:
        out = (given.out or Path(temporary)).resolve()
        start = time.monotonic()
        here(out / "local", arguments, given.workers)
        local, start = time.monotonic() - start, time.monotonic()
        expected = essence(out / "local", given.suite)
        used = on_three_machines(out / "ray", arguments, len(expected) // 2 if given.lose_one else None)
        took = time.monotonic() - start
        found = essence(out / "ray", given.suite)
    rows = sum(len(shard["rows"]) for shard in expected.values())
    same = sum(found.get(name) == shard for name, shard in expected.items())
    print(f"{same} of {len(expected)} shards ({rows} rows) are those of the local engine, bit for bit")
    print(f"{local:.0f} s with the local engine ({given.workers} workers), {took:.0f} s on the machines with start")
    print("processor seconds of jobs: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in used.items()))
    if found != expected:
        sys.exit("error: the rows differ: " + ", ".join(sorted(n for n in expected if found.get(n) != expected[n])))


if __name__ == "__main__":
    main()
