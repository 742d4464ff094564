"""A real S3 server: Ceph's RADOS gateway over one monitor and one in-memory OSD, in one throw-away folder, loopback only."""

from __future__ import annotations

import json
import os
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.daemons.processes import Daemons, free_ports, need_programs, port_answers, wait_for

_PROGRAMS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
_ACCESS_KEY = "TESTACCESSKEY"
_SECRET_KEY = "testsecretkey0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """Where a server is and who may use it."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which s3fs and botocore find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


class Ceph:
    """One private server."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._conf = self.root / "ceph.conf"
        self.daemons = Daemons(self.root, {"CEPH_CONF": str(self._conf)})

    def start(self) -> S3Server:
        """Starts monitor, OSD and gateway, with one user. Raises DaemonError."""
        need_programs(_PROGRAMS)
        for name in ("mon", "osd", "run", "log", "rgw"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        port, fsid = free_ports(3), str(uuid.uuid4())
        self._conf.write_text(_ceph_conf(self.root, fsid=fsid, port=port))
        try:
            self._start_monitor(fsid, port=port)
            self._start_osd()
            return self._start_gateway(port + 2)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends gateway, OSD and monitor; all objects are gone."""
        for name in ("radosgw", "ceph-osd", "ceph-mon"):
            self.daemons.stop([name], timeout_s=3)

    def _start_monitor(self, fsid: str, *, port: int) -> None:
        addresses, monmap = f"[v2:127.0.0.1:{port},v1:127.0.0.1:{port + 1}]", str(self.root / "monmap")
        self.daemons.run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", addresses, monmap)
        self.daemons.run("ceph-mon", "--mkfs", "-i", "a", "-c", str(self._conf), "--monmap", monmap)
        self.daemons.spawn("ceph-mon", ["ceph-mon", "-f", "-i", "a", "-c", str(self._conf)])
        self._wait("the monitor", lambda: "quorum" in self._ceph("quorum_status"), log="mon.a.log")

    def _start_osd(self) -> None:
        osd_id = str(uuid.uuid4())
        self._ceph("osd", "new", osd_id)
        self.daemons.run("ceph-osd", "-i", "0", "-c", str(self._conf), "--mkfs", "--osd-uuid", osd_id)
        self.daemons.spawn("ceph-osd", ["ceph-osd", "-f", "-i", "0", "-c", str(self._conf)])
        self._wait("the OSD", lambda: '"num_up_osds":1' in self._ceph("osd", "stat", "-f", "json"), log="osd.0.log")

    def _start_gateway(self, port: int) -> S3Server:
        self.daemons.run(
            "radosgw-admin", "-c", str(self._conf), "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={_ACCESS_KEY}", f"--secret-key={_SECRET_KEY}",
        )  # fmt: skip
        self.serve(port)
        server = S3Server(endpoint=f"http://127.0.0.1:{port}", access_key=_ACCESS_KEY, secret_key=_SECRET_KEY)
        (self.root / "server.json").write_text(json.dumps(server.environment))
        return server

    def serve(self, port: int) -> None:
        """Starts the gateway and waits until it answers, again after `kill_gateway`. Raises DaemonError."""
        self.daemons.spawn("radosgw", ["radosgw", "-f", "-n", "client.rgw.a", "-c", str(self._conf)])
        self._wait("the gateway", lambda: port_answers(port), log="client.rgw.a.log")

    def kill_gateway(self) -> None:
        """Takes the server away with SIGKILL; what it had confirmed is kept."""
        os.kill(self.daemons.pid("radosgw"), signal.SIGKILL)

    def _ceph(self, *command: str) -> str:
        return self.daemons.run("ceph", "-c", str(self._conf), *command, check=False).replace(" ", "")

    def _wait(self, what: str, condition: object, *, log: str) -> None:
        assert callable(condition)
        wait_for(what, condition, timeout_s=60, log=self.root / "log" / log)


def _ceph_conf(root: Path, *, fsid: str, port: int) -> str:
    return f"""\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0,v1:127.0.0.1:{port + 1}/0]
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
public addr = 127.0.0.1
cluster addr = 127.0.0.1
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
ms bind ipv6 = false
run dir = {root}/run
admin socket = {root}/run/$cluster-$name.$pid.asok
log file = {root}/log/$name.log
log to stderr = false
err to stderr = true
mon cluster log file = {root}/log/cluster.log
crash dir = {root}/run
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon warn on pool no redundancy = false
rgw rados pool pg num min = 1
[mon]
mon data = {root}/mon
mon data avail crit = 1
mon data avail warn = 2
mon tick interval = 1
# one pool is made per paxos round, a second apart by default
paxos propose interval = 0.05
paxos min wait = 0.01
[osd]
osd data = {root}/osd
osd objectstore = memstore
memstore device bytes = 6442450944
osd class load list = *
osd class default list = *
osd max object name len = 460
osd max object namespace len = 64
[client.rgw.a]
# with auth none, the default "secure" is refused by the monitor for ever
ms mon client mode = crc
rgw data = {root}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port + 2}
rgw enable usage log = false
rgw thread pool size = 32
rgw dynamic resharding = false
rgw run sync thread = false
"""
