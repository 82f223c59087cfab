"""A real SLURM on this machine: a head and nodes, each in namespaces of its own.

Each has its own address, host name and process tree, so that two torchruns meet over a network and
a crash is the loss of a node. Nothing outside its folder is written, traffic stays on a bridge in
the head's own network namespace, and a namespace's processes end with its first one.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.machine import DEADLINE_SECONDS, skip
from tests.pipeline.monitoring import REPOSITORY, require_tool, wait_for

_PROGRAMS = (
    "slurmctld",
    "slurmd",
    "sbatch",
    "munged",
    "mungekey",
    "ip",
    "unshare",
    "nsenter",
    "setpriv",
)
_NETWORK = "10.77.0"
_HEAD = "head"
_CPUS = 4  # claimed: more than there may be, so that two jobs fit on a node
_FREEZER = Path("/sys/fs/cgroup/freezer")

_CONFIG = """\
ClusterName=test
SlurmctldHost=head({network}.1)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=10
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/{tracking}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=25
SlurmdTimeout=25
KillWait=30
MinJobAge=86400
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName={nodes} CPUs={cpus} RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=graceful Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

_FIRST_PROCESS = """\
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs -o size=1g shm /dev/shm
ip link set lo up
cd /
export SLURM_CONF={folder}/slurm.conf
echo ready
read -r _
{services}
while :; do wait -n 2>/dev/null || sleep 0.5; done
"""
"""Bash reaps orphans, which a namespace's first process has to do."""


def require_slurm() -> None:
    """Without root or SLURM the test is skipped, but fails in CI."""
    if os.geteuid():
        skip("a SLURM of namespaces needs root")
    for name in _PROGRAMS:
        require_tool(name)


@contextlib.contextmanager
def run_cluster(num_nodes: int) -> Iterator[Cluster]:
    """A SLURM for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)  # munged wants its socket within everybody's reach
        cluster = Cluster(Path(folder), num_nodes)
        try:
            cluster.start()
            yield cluster
        except BaseException:
            cluster.print_logs()
            raise
        finally:
            cluster.close()


class Cluster:
    """A SLURM; see `run_cluster`."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self._folder = folder
        self._first_processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starter = ThreadPoolExecutor(1)  # a parent's death, to the kernel, is its thread's
        # Control groups have the nodes' names, and other such clusters may be there.
        self._prefix = f"p{os.getpid()}n"
        self.nodes = [f"{self._prefix}{number + 1}" for number in range(num_nodes)]

    def start(self) -> None:
        folder = self._folder
        self._configure()
        self._start(
            _HEAD,
            f"munged -F --key-file={folder}/munge.key --socket={folder}/munge.sock "
            f"--pid-file={folder}/munged.pid --log-file={folder}/munged.log "
            f"--seed-file={folder}/munge.seed &\n"
            f"while [ ! -S {folder}/munge.sock ]; do sleep 0.05; done\n"
            "slurmctld -D &",
        )
        self._in_network(_HEAD, "ip link add br0 type bridge")
        self._in_network(_HEAD, f"ip addr add {_NETWORK}.1/24 dev br0")
        self._in_network(_HEAD, "ip link set br0 up")
        self._go_on(_HEAD)
        for node in self.nodes:
            self.boot(node)
        self.wait_until_idle()

    def _configure(self) -> None:
        folder = self._folder
        for name in ("state", "dev", *(f"spool-{node}" for node in self.nodes)):
            (folder / name).mkdir()
        config = _CONFIG.format(
            folder=folder,
            network=_NETWORK,
            nodes=",".join(self.nodes),
            cpus=_CPUS,
            tracking="cgroup" if _has_freezer() else "linuxproc",
        )
        (folder / "slurm.conf").write_text(config)
        (folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\n"
        )
        for number in range(2):  # SLURM wants devices to count; /dev/null will do
            os.mknod(folder / f"dev/nvidia{number}", 0o20666, os.makedev(1, 3))
        (folder / "gres.conf").write_text(
            f"Name=gpu File={folder}/dev/nvidia[0-1] Flags=nvidia_gpu_env\n"
        )
        addresses = [f"{_NETWORK}.1 {_HEAD}"]
        addresses += [f"{self.address(node)} {node}" for node in self.nodes]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *addresses]) + "\n")
        subprocess.run(["mungekey", "-c", "-k", folder / "munge.key"], check=True)

    def _start(self, name: str, services: str) -> None:
        """Make namespaces; their first process then waits for `_go_on`."""
        script = _FIRST_PROCESS.format(name=name, folder=self._folder, services=services)
        with (self._folder / f"{name}.err").open("ab") as errors:
            process = self._starter.submit(
                subprocess.Popen,
                [
                    *("setpriv", "--pdeathsig", "KILL"),  # whatever ends this process
                    *("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc"),
                    *("--kill-child", "bash", "-c", script),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            ).result()
        self._first_processes[name] = process
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", (self._folder / f"{name}.err").read_text()

    def _go_on(self, name: str) -> None:
        pipe = self._first_processes[name].stdin
        assert pipe is not None
        pipe.write(b"\n")
        pipe.flush()

    def boot(self, node: str) -> None:
        """Start a node: at first, or after its crash."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._in_network(_HEAD, f"ip link del v{node}")
        self._start(node, f"slurmd -D -N {node} &")
        pid = self._pid(node)
        self._in_network(_HEAD, f"ip link add v{node} type veth peer name eth0 netns {pid}")
        self._in_network(_HEAD, f"ip link set v{node} master br0 up")
        self._in_network(node, f"ip addr add {self.address(node)}/24 dev eth0")
        self._in_network(node, "ip link set eth0 up")
        self._go_on(node)

    def crash(self, node: str) -> None:
        """All processes of the node end at once, as when its power fails."""
        with contextlib.suppress(IndexError):  # it has ended by itself
            os.kill(self._pid(node), signal.SIGKILL)
        with self._first_processes.pop(node) as process:  # whose pipes are closed behind it
            process.wait(DEADLINE_SECONDS)

    def address(self, node: str) -> str:
        """That of a node in the network of all."""
        return f"{_NETWORK}.{10 + self.nodes.index(node)}"

    def _pid(self, name: str) -> int:
        """The first process of the namespaces, seen from outside."""
        outer = self._first_processes[name].pid
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])

    def _in_network(self, name: str, command: str) -> None:
        nsenter = ["nsenter", "--target", str(self._pid(name)), "--net", *command.split()]
        subprocess.run(nsenter, check=True, capture_output=True)

    def run(self, *command: object, node: str = _HEAD, **options: str) -> str:
        """What a command prints that is run on a node, in the repository's folder."""
        done = subprocess.run(
            self._on(node, "--pid", "--", *command),
            env=self._environment(options),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def process(self, *command: object, node: str = _HEAD) -> Iterator[None]:
        """A command that goes on, on a node, until the block is left."""
        words = self._on(node, "--", *command)  # one in its process tree would outlive nsenter
        with subprocess.Popen(words, env=self._environment({}), stdout=subprocess.DEVNULL) as child:
            try:
                yield
            finally:
                child.terminate()

    def _on(self, node: str, *words: object) -> list[str]:
        spaces = ("--net", "--uts", "--mount", f"--wdns={REPOSITORY}")
        return ["nsenter", f"--target={self._pid(node)}", *spaces, *map(str, words)]

    def _environment(self, options: dict[str, str]) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": f"{self._folder}/slurm.conf"} | options

    def pids(self, node: str, words: str) -> list[str]:
        """Processes of a node whose command line has `words`, by their numbers there."""
        pattern = f"[{words[0]}]{words[1:]}"  # which is not in the shell's own
        command = f"pgrep --full -- {shlex.quote(pattern)} || [ $? = 1 ]"
        return self.run("sh", "-c", command, node=node).split()

    def launch(self, *arguments: object) -> str:
        """`python -m launch …` on the head."""
        return self.run(sys.executable, "-m", "launch", *arguments)

    def state(self, job: str) -> str:
        """SLURM's word for a job, such as RUNNING."""
        text = self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")
        return text.split("\n")[0]

    def num_starts(self, job: str) -> int:
        text = self.run("scontrol", "show", "job", job)
        return 1 + int(text.split("Restarts=")[1].split()[0])

    def wait_for_state(self, job: str, *states: str) -> str:
        """Wait until the job is in one of the states; returns which."""
        what = f"{' or '.join(states)} of {job}"
        wait_for(lambda: self.state(job) in states, what, 2 * DEADLINE_SECONDS)
        return self.state(job)

    def wait_until_idle(self) -> None:
        """Until all nodes have no job left."""

        def is_idle() -> bool:
            try:
                text = self.run(
                    "sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T"
                )
            except AssertionError:  # it has just started
                return False
            return text.split("\n")[:-1] == [f"{node} idle" for node in self.nodes]

        wait_for(is_idle, "idle nodes")

    def cancel_all(self) -> None:
        """End all jobs, and wait for their processes."""
        self.run("scancel", "--user=root")
        time.sleep(0.2)
        self.run("scancel", "--user=root", "--full", "--signal=KILL")
        self.wait_until_idle()

    def print_logs(self) -> None:
        """What the daemons said last."""
        for path in (*self._folder.glob("*.err"), *self._folder.glob("*.log")):
            sys.stderr.write(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}\n")

    def close(self) -> None:
        for name in list(self._first_processes):
            self.crash(name)
        self._starter.shutdown()
        for path in _FREEZER.glob(f"slurm_{self._prefix}*"):
            for folder in sorted(path.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                path.rmdir()


def _has_freezer() -> bool:
    """Whether processes can be tracked by control groups, as on real clusters."""
    probe = _FREEZER / f"probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return "/sys/fs/cgroup/freezer cgroup " in Path("/proc/mounts").read_text()
