"""Ray hosts on one machine, each with its own address, processes and /tmp/ray, that can be lost as a whole.

Linux namespaces without names make them; no root is needed where users may have namespaces. They last as long as their
processes, and those die with the process that has started them, so nothing is left behind, even by a test run that is
killed. The hosts share every file but /tmp/ray.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

Process = subprocess.Popen[bytes]

RAY_FOLDER = Path("/tmp/ray")  # where Ray keeps its sockets; two hosts must not share them
GATEWAY = "10.77.0.254"  # nobody is there, but Ray finds its own address by looking for a way out
STOP_SECONDS = 30
AS_ROOT = ("unshare", "--user", "--map-root-user")
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
OWN_PROCESSES = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


@dataclass
class Host:
    """One host; its first process holds all others, so killing that one kills the host.

    Args:
        network: process whose network it has; it stays when the host is off.
        device: network device.
        address: IPv4 address of the device.
        log: file that receives what the host's processes print.
    """

    network: Process
    device: str
    address: str
    log: Path
    _first: Process | None = field(default=None, repr=False)

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Plug the host in and switch it on with `command` as its first process."""
        _in(self.network, f"ip link set {self.device} up")
        _in(self.network, f"ip route add default via {GATEWAY}")
        own = tempfile.mkdtemp(prefix="ray-", dir=self.log.parent)
        inside = 'mount --bind "$0" "$1" && shift && exec "$@"'
        isolated = [*DIES_WITH_US, *OWN_PROCESSES, "sh", "-c", inside, own, str(RAY_FOLDER)]
        self._first = self._popen([*_enter(self.network), *isolated, *command], env)

    def run(self, command: Sequence[str], env: Mapping[str, str]) -> Process:
        """Start one more process on the host; `process_of` gives the process itself."""
        assert self._first is not None, f"{self.address} is off"
        first = process_of(self._first)
        return self._popen([*_enter(first, "--mount", "--pid"), *DIES_WITH_US, *command], env)

    def processes(self, title: str) -> set[psutil.Process]:
        """The host's live processes whose command line contains `title`; none when it is off."""
        if self._first is None or self._first.poll() is not None:
            return set()
        return {child for child in psutil.Process(self._first.pid).children(recursive=True) if title in _title(child)}

    def lose(self) -> None:
        """A power cut: no process runs on, and nobody hears of it, for no packet leaves any more."""
        _in(self.network, f"ip link set {self.device} down")
        self.switch_off()

    def switch_off(self) -> None:
        """SIGKILL for all processes of the host; nothing happens when it is off."""
        if self._first is not None:
            _kill(self._first)
            self._first = None

    def _popen(self, command: Sequence[str], env: Mapping[str, str]) -> Process:
        # What a local Ray does without (hbt_ray.session), but for processes that wait for a first job.
        several = {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
            "RAY_enable_open_telemetry": "1",
        }
        interface = {"GLOO_SOCKET_IFNAME": self.device}  # else gloo takes the host name's, 127.0.0.1
        own = {**os.environ, **several, **env, **interface}
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def process_of(parent: Process) -> psutil.Process:
    """The process on a host, which is the child of what took it there."""
    (process,) = psutil.Process(parent.pid).children()
    return process


def marks(seconds: int) -> list[pytest.MarkDecorator]:
    """Of tests that take minutes on hosts, with the longest time of one; without hosts they skip and say why."""
    missing = _missing()
    return [
        pytest.mark.slow,
        pytest.mark.servers,
        pytest.mark.ray,
        pytest.mark.timeout(seconds),
        pytest.mark.skipif(missing is not None, reason=f"no hosts on this machine: {missing}"),
    ]


def _missing() -> str | None:
    """What this machine lacks to have hosts; None if nothing."""
    missing = [tool for tool in ("ip", "nsenter", "setpriv", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found"
    probe = [*AS_ROOT, "--net", *OWN_PROCESSES, "ip", "link", "add", "bridge", "type", "bridge"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"namespaces are not permitted: {done.stderr.strip()}" if done.returncode else None


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[list[Host]]:
    """Hosts 10.77.0.1, 10.77.0.2, ... on a network that nobody else sees, switched off; gone at the end."""
    RAY_FOLDER.mkdir(exist_ok=True)
    networks: list[Process] = []
    made: list[Host] = []
    try:
        switch = _network(AS_ROOT)
        networks.append(switch)
        _in(switch, "ip link add bridge type bridge")
        _in(switch, "ip link set bridge up")
        for number in range(1, count + 1):
            networks.append(_network(("nsenter", f"--target={switch.pid}", "--user", "--preserve-credentials")))
            made.append(Host(networks[-1], f"v{number}", f"10.77.0.{number}", folder / f"host-{number}.log"))
            _wire(made[-1], switch)
        yield made
    finally:
        for host in made:
            host.switch_off()
        for network in networks:
            _kill(network)


def _network(user: Sequence[str]) -> Process:
    """A process with a network namespace of its own, as root of the user namespace that `user` makes or enters."""
    command = [*user, *DIES_WITH_US, "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    with process.stdout as ready:  # type: ignore[union-attr]
        ready.readline()  # from within the namespace
    return process


def _wire(host: Host, switch: Process) -> None:
    """Give a host its device, with a cable from there to the switch."""
    _in(host.network, "ip link set lo up")
    _in(host.network, f"ip link add {host.device} type veth peer name p{host.device} netns {switch.pid}")
    _in(host.network, f"ip address add {host.address}/24 dev {host.device}")
    _in(switch, f"ip link set p{host.device} master bridge up")


def _in(network: Process, command: str) -> None:
    subprocess.run([*_enter(network), *command.split()], check=True)


def _enter(process: Process | psutil.Process, *namespaces: str) -> list[str]:
    return ["nsenter", f"--target={process.pid}", "--user", "--preserve-credentials", "--net", *namespaces, "--"]


def _kill(process: Process) -> None:
    process.kill()
    process.wait(STOP_SECONDS)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""
