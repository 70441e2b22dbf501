"""A host for a test: a network and a mount namespace with containers in it, of which nothing is left afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import ways
from tests.support.bridged import Bridged
from tests.support.ways import Way

BIN = Path(sys.executable).parent
REFERENCE = Path("/usr/lib/cni")
_CLIENTS = ("cni-bridge", "cni-ipam")
_PRIVATE = ("/run", "/var/lib/cni", "/var/lib/cni-bridge", "/etc/cni-bridge", "/etc/cni")
# Prints the leases in a database, for what `cni-bridgectl` needs to start is longer than most tests.
_LEASED = """
import os, sqlite3, sys
if os.path.exists(sys.argv[1]):
    database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
    for each in database.execute("SELECT * FROM addresses WHERE container_id IS NOT NULL"):
        print(*each)
"""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a plugin answered."""

    status: int
    stdout: str
    stderr: str

    @property
    def result(self) -> Json:
        """The result of a success."""
        assert self.status == 0, f"{self.stdout}\n{self.stderr}"
        parsed: Json = json.loads(self.stdout)
        return parsed

    @property
    def error(self) -> Json:
        """The error of a failure: one document, exit status 1, no traceback."""
        assert self.status == 1, f"{self.status}: {self.stdout}\n{self.stderr}"
        parsed: Json = json.loads(self.stdout)
        assert parsed.keys() >= {"cniVersion", "code", "msg"}
        assert "Traceback" not in self.stdout
        return parsed

    @property
    def code(self) -> int:
        """The code of a failure."""
        return int(self.error["code"])

    def succeeded(self) -> Answer:
        """This answer, which must be a success."""
        assert self.status == 0, f"{self.stdout}\n{self.stderr}"
        return self


@dataclass
class Host:
    """A namespace that plays a host. `bridge_nf` is its `net.bridge.bridge-nf-call-*tables`.

    `way` is how its calls of plugins are served; a daemon is started for the first one.
    """

    bridge_nf: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    way: Way = field(default_factory=lambda: ways.chosen)
    daemon: Bridged | None = field(default=None, init=False)
    _starting: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _is_clean: bool = field(default=False, init=False)  # as of the last look, after which nobody asked for anything

    def __post_init__(self) -> None:
        for directory in _PRIVATE:
            Path(directory).mkdir(parents=True, exist_ok=True)
        script = " && ".join(
            [
                *(f"mount -t tmpfs -o mode=755 tmpfs {directory}" for directory in _PRIVATE),
                "mount -t sysfs sysfs /sys",
                "mkdir /run/netns",
                *(f"mount --bind {ways.python_client()} {BIN}/{name}" for name in _CLIENTS if self.way == Way.PYTHON),
                "ip link set lo up",
                "echo ready",
                "exec sleep infinity",
            ]
        )
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n"
        for table in ("iptables", "ip6tables"):
            self.sysctl(f"net.bridge.bridge-nf-call-{table}", "1" if self.bridge_nf else "0")

    def close(self) -> None:
        """End what was started, and what that has started in turn; the namespaces go with their last process."""
        try:
            self.stop_daemon()
            if self._is_clean:
                self.assert_nothing_left()
        finally:
            self._end()

    def stop_daemon(self) -> None:
        """Stop the daemon that was started for calls of plugins, as a service manager does."""
        daemon, self.daemon = self.daemon, None
        if daemon is not None:
            daemon.stop()

    def do_without_daemon(self) -> None:
        """Have each call served by a process of its own from now on, for what the test starts would be in the way."""
        self.stop_daemon()
        self.way = Way.ONESHOT

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for pid in self.inhabitants():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.holder.wait()

    def inhabitants(self) -> list[int]:
        """The processes in this host's mount namespace, the one that holds it included."""
        own = Path(f"/proc/{self.holder.pid}/ns/mnt").stat()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if os.path.samestat((entry / "ns/mnt").stat(), own):
                    found.append(int(entry.name))
        return found

    def enter(self, netns: str = "") -> list[str]:
        """The words that run a command on this host, or in one of its containers."""
        words = ["nsenter", "--target", str(self.holder.pid), "--mount", "--net"]
        return [*words, "nsenter", f"--net=/run/netns/{netns}"] if netns else words

    def run(
        self,
        *words: str | Path,
        netns: str = "",
        stdin: bytes = b"",
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [*self.enter(netns), *map(str, words)],
            input=stdin,
            capture_output=True,
            env={**_clean_environment(), **self.environment, **(env or {})},
            timeout=timeout,
            check=False,
        )
        text = subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
        if check:
            assert text.returncode == 0, f"{words}: {text.stdout}{text.stderr}"
        return text

    def start(self, *words: str | Path, netns: str = "", env: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """Start a command that goes on; it ends with the host."""
        process = subprocess.Popen(
            [*self.enter(netns), *map(str, words)],
            env={**_clean_environment(), **self.environment, **(env or {})},
            **kwargs,
        )
        self.processes.append(process)
        return process

    def shell(self, script: str, netns: str = "", check: bool = True) -> str:
        """Run a shell script and give what it prints."""
        return self.run("sh", "-c", script, netns=netns, check=check).stdout

    def sysctl(self, name: str, value: str | None = None) -> str:
        """Read or set a kernel setting of this host."""
        path = "/proc/sys/" + name.replace(".", "/")
        if value is not None:
            self.shell(f"echo {value} > {path}")
        return self.shell(f"cat {path}").strip()

    def add_netns(self, name: str) -> str:
        """Make a container's namespace; its path."""
        self.run("ip", "netns", "add", name)
        self.run("ip", "link", "set", "lo", "up", netns=name)
        return f"/run/netns/{name}"

    def plugin(
        self,
        command: str,
        conf: Json | bytes | str,
        container: str = "",
        *,
        netns: str | None = None,
        ifname: str = "eth0",
        plugin: str | Path = "cni-bridge",
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        """Call a plugin as a runtime does; the namespace is the container's of that name unless given as a path."""
        text = json.dumps(conf).encode() if isinstance(conf, dict) else conf
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}" if netns is None else netns,
            "CNI_IFNAME": ifname,
            "CNI_PATH": f"{BIN}:{REFERENCE}",
        }
        if command in ("GC", "STATUS"):
            variables |= {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}
        words = BIN / plugin if isinstance(plugin, str) else plugin
        if words.parent != REFERENCE:
            self.start_daemon()
        self._is_clean = False
        done = self.run(
            words,
            stdin=text if isinstance(text, bytes) else text.encode(),
            check=False,
            env={**variables, **(env or {})},
            timeout=timeout,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def start_daemon(self) -> None:
        """Start the daemon that is to serve calls, if there is to be one and it does not run."""
        with self._starting:
            if self.way != Way.ONESHOT and self.daemon is None:
                self.daemon = Bridged(self, BIN / "cni-bridged").started()

    def links(self, netns: str = "") -> dict[str, Json]:
        """The links by name, with details."""
        return {each["ifname"]: each for each in self._json("ip", "-json", "-details", "link", netns=netns)}

    def addresses(self, link: str, netns: str = "") -> list[str]:
        """The addresses of a link but for link-local ones."""
        shown = self._json("ip", "-json", "address", "show", "dev", link, netns=netns)
        return [
            f"{each['local']}/{each['prefixlen']}"
            for each in shown[0]["addr_info"]
            if each["scope"] != "link" or each["family"] == "inet"
        ]

    def routes(self, netns: str = "", family: int = 4, table: str = "main") -> list[Json]:
        """The routes of a table."""
        return self._json("ip", f"-{family}", "-json", "-details", "route", "show", "table", table, netns=netns)

    def leases(self) -> list[Json]:
        """The leases in the database."""
        found: list[Json] = json.loads(self.run(BIN / "cni-bridgectl", "leases", "--json").stdout)
        return found

    def leased(self) -> list[str]:
        """The same as rows of the database, read behind everybody's back and sooner."""
        state = self.environment.get("CNI_BRIDGE_STATE_DIR", "/var/lib/cni-bridge")
        return self.run(sys.executable, "-IS", "-c", _LEASED, f"{state}/ipam.db").stdout.splitlines()

    def nft_elements(self) -> list[str]:
        """The elements of every set and map of ours, in words."""
        ruleset = json.loads(self.run("nft", "-j", "list", "ruleset").stdout)["nftables"]
        return [
            f"{found['name']} {json.dumps(element)}"
            for each in ruleset
            if (found := each.get("set") or each.get("map")) and found["table"] == "cni_bridge"
            for element in found.get("elem", ())
        ]

    def iptables_rules(self) -> list[str]:
        """The legacy nat rules of ours that belong to an attachment."""
        saved = "".join(self.run(f"{each}-legacy-save", "-t", "nat").stdout for each in ("iptables", "ip6tables"))
        return [line for line in saved.splitlines() if line.startswith("-A CNI-BRIDGE") and "cni-bridge:" in line]

    def files(self, *directories: str) -> list[str]:
        """The files below the directories."""
        return self.shell(f"find {' '.join(directories)} -type f 2>/dev/null", check=False).split()

    def assert_nothing_left(self) -> None:
        """No link, lease, rule, record or lock of any attachment."""
        assert not [name for name in self.links() if name.startswith("veth")]
        assert self.leased() == []
        assert self.nft_elements() == []
        assert self.iptables_rules() == []
        assert self.files("/run/cni-bridge/attachments", "/run/cni-bridge/locks", "/var/lib/cni/networks/*/1*") == []
        self._is_clean = True

    def ping(self, address: str, netns: str = "", *, reached: bool = True, wait: int = 1) -> None:
        """Whether the address answers, which must be as said."""
        done = self.run("busybox", "ping", "-c", "1", "-W", str(wait), address, netns=netns, check=False)
        assert (done.returncode == 0) == reached, done.stdout + done.stderr

    def start_whoami(self, port: int, netns: str = "") -> None:
        """Start a TCP server that tells its clients their address."""
        words = (sys.executable, "-IS", Path(__file__).with_name("whoami.py"), str(port))
        process = self.start(*words, netns=netns, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"

    def whoami(self, address: str, port: int, netns: str = "") -> str:
        """The address that such a server sees, empty if it cannot be reached."""
        return self.run("busybox", "nc", "-w", "2", address, str(port), netns=netns, check=False).stdout

    def _json(self, *words: str, netns: str = "") -> list[Json]:
        printed = self.run(*words, netns=netns).stdout
        found: list[Json] = json.loads(printed) if printed.strip() else []
        return found


def _clean_environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("HOME", "LANG", "TERM") if key in os.environ}
    return {**kept, "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"}
