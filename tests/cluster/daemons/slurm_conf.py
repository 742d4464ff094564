"""The configuration files of the private SLURM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmPlan:
    """What the files are made of. Ports: control, accounting, database, then one per node.

    `beside`: a cluster whose munge and accounting this one shares, as the clusters of one site do.
    """

    root: Path
    user: str
    host: str
    first_port: int
    first_job_id: int
    nodes: tuple[str, ...]
    gpus_per_node: int
    cluster: str = "virt"
    beside: SlurmPlan | None = None

    @property
    def accounting_port(self) -> int:
        return self.beside.accounting_port if self.beside else self.first_port + 1

    @property
    def munge_socket(self) -> Path:
        return self.beside.munge_socket if self.beside else self.root / "run" / "munge.sock"

    @property
    def sql_port(self) -> int:
        return self.first_port + 2


def slurm_conf(plan: SlurmPlan) -> str:
    """Returns slurm.conf: loopback only, no systemd and no cgroups, failures noticed in seconds."""
    root, half = plan.root, plan.nodes[: max(1, len(plan.nodes) // 2)]
    nodes = "".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={plan.first_port + 3 + index} CPUs=8 "
        f"RealMemory=4000 Gres=gpu:{plan.gpus_per_node} State=UNKNOWN\n"
        for index, name in enumerate(plan.nodes)
    )
    return f"""\
ClusterName={plan.cluster}
SlurmctldHost={plan.host}(127.0.0.1)
SlurmctldPort={plan.first_port}
AuthType=auth/munge
# A requeued job waits for the old credential's end: 121 s by default, 5 is the least that SLURM takes.
AuthInfo=socket={plan.munge_socket},cred_expire=5
CredType=cred/munge
FirstJobId={plan.first_job_id}
SlurmUser={plan.user}
SlurmdUser={plan.user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
PlugStackConfig={root}/etc/plugstack.conf
MailProg=/bin/true
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0,requeue_setup_env_fail
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
GresTypes=gpu
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=300
WaitTime=0
MessageTimeout=10
TCPTimeout=2
# small, so that arrays have to be cut
MaxArraySize=12
MaxJobCount=20000
DefMemPerCPU=100
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={plan.accounting_port}
AccountingStorageTRES=gres/gpu
AccountingStoragePass={plan.munge_socket}
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=REQUEUE GraceTime=8
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
PartitionName=small Nodes={",".join(half)} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=REQUEUE GraceTime=8
"""


def gres_conf(plan: SlurmPlan) -> str:
    """Returns gres.conf: links to /dev/null pass for GPUs and give jobs their CUDA_VISIBLE_DEVICES."""
    files = f"{plan.root}/gpu/gpu[0-{plan.gpus_per_node - 1}]"
    return "AutoDetect=off\n" + "".join(f"NodeName={name} Name=gpu File={files}\n" for name in plan.nodes)


def slurmdbd_conf(plan: SlurmPlan) -> str:
    """Returns slurmdbd.conf."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={plan.root}/run/munge.sock
DbdHost={plan.host}
DbdAddr=127.0.0.1
DbdPort={plan.accounting_port}
SlurmUser={plan.user}
PidFile={plan.root}/run/slurmdbd.pid
LogFile={plan.root}/log/slurmdbd.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={plan.sql_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""
