"""How ranks meet, also on nodes that name themselves by loopback; who is kept out; what happens when a rank has ended."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.ranks.gate import Gate, GateError, Lifeline
from jobs.ranks.interfaces import LOOPBACK, address_towards, is_loopback, machine_id, own_interfaces
from jobs.ranks.meeting import Attendee, MeetingError, MeetingLimits, Met, Note, job_address, meet
from jobs.rendering.group import LOST_EXIT, open_job
from jobs.settings import Mesh
from tests.forked import Forked, start_forked
from tests.jobs.nodes import Node, can_make_nodes, listening_addresses, two_nodes
from tests.jobs.world import render_job

NODES = pytest.mark.skipif(not can_make_nodes(), reason="needs root, namespaces, and ip")
DEBIAN = (
    "127.0.0.1 localhost\n127.0.1.1 node1\n10.77.0.2 node2\n",
    "127.0.0.1 localhost\n127.0.1.1 node2\n10.77.0.1 node1\n",
)
NAMES_OF_LOOPBACK = ("127.0.0.1 localhost\n127.0.1.1 node1 node2\n",) * 2
SHORT = MeetingLimits(arrive_s=20.0, reach_s=0.2, renew_s=0.1, silent_s=0.6)


def environment(folder: Path, rank: int, **more: str) -> dict[str, str]:
    return {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_FOLDER": str(folder),
        "SUBMITIT_LOCAL_JOB_ID": "77",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "2",
        "SUBMITIT_LOCAL_NODEID": str(rank),
        "SUBMITIT_LOCAL_GLOBALID": str(rank),
        "SUBMITIT_LOCAL_LOCALID": "0",
        **more,
    }


def work_on(node: Node | None, rank: int, folder: Path, then: str) -> None:
    """One rank: meets the other, exchanges a value, writes down what it sees, then goes on as told."""
    if node is not None:
        node.enter()
    with open_job(render_job(str(folder), mesh=Mesh(sp=2)).settings) as ranks:
        told = ranks.all_gather([ranks.host, str(rank)], list[str])
        (folder / f"seen-{rank}").write_text(json.dumps([told, sorted(listening_addresses())]))
        if then == "die":
            os._exit(9)
        if then == "wait":
            time.sleep(60)


def start_ranks(
    nodes: tuple[Node | None, Node | None], folder: Path, then: tuple[str, str], **more: str
) -> list[Forked]:
    started = []
    for rank, node in enumerate(nodes):
        errors, variables = folder / f"stderr-{rank}", environment(folder, rank, **more)
        started.append(start_forked(work_on, node, rank, folder, then[rank], stderr=errors, environment=variables))
    return started


@NODES
@pytest.mark.parametrize("hosts", [DEBIAN, NAMES_OF_LOOPBACK], ids=["own name", "all names"])
def test_nodes_that_name_themselves_by_loopback_meet_over_the_interface_between_them(
    tmp_path: Path, hosts: Any
) -> None:
    with two_nodes(tmp_path, hosts) as nodes:
        codes = [process.wait(60) for process in start_ranks(nodes, tmp_path, ("end", "end"))]
    assert codes == [0, 0], (tmp_path / "stderr-0").read_text() + (tmp_path / "stderr-1").read_text()
    for rank, node in enumerate(nodes):
        told, listens = json.loads((tmp_path / f"seen-{rank}").read_text())
        assert told == [["node1", "0"], ["node2", "1"]]
        # gloo's and the gate's, the store's on loopback; nowhere at every address.
        assert set(listens) <= {node.address, LOOPBACK}
        assert node.address in listens
    assert not list(tmp_path.glob("*.meet"))


@NODES
def test_nodes_without_a_way_to_each_other_are_told_which_variable_to_set(tmp_path: Path) -> None:
    with two_nodes(tmp_path, DEBIAN) as nodes:
        for node in nodes:
            node.run("ip", "link", "set", node.interface, "down")
            node.run("ip", "addr", "flush", "dev", node.interface)
        codes = [process.wait(60) for process in start_ranks(nodes, tmp_path, ("end", "end"))]
    assert 0 not in codes
    for rank in range(2):
        said = (tmp_path / f"stderr-{rank}").read_text()
        assert "no network interface of node1 leads to node2 (at no address but loopback)" in said
        assert "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in the job's environment" in said


@NODES
def test_a_node_that_is_lost_ends_the_other_though_that_waits_for_something_else(tmp_path: Path) -> None:
    with two_nodes(tmp_path, DEBIAN) as nodes:
        start = time.monotonic()
        codes = [process.wait(60) for process in start_ranks(nodes, tmp_path, ("wait", "die"))]
        assert codes[1] == 9
        # Outside of a job's loop SIGTERM ends it at once.
        assert codes[0] == -15
        assert time.monotonic() - start < 40


def test_an_interface_that_the_user_names_and_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    codes = [
        process.wait(60)
        for process in start_ranks((None, None), tmp_path, ("end", "end"), GLOO_SOCKET_IFNAME="nosuch0")
    ]
    assert 0 not in codes
    said = (tmp_path / "stderr-0").read_text()
    assert "GLOO_SOCKET_IFNAME='nosuch0'" in said
    assert "it has lo" in said
    assert "rank 0 gave up: GLOO_SOCKET_IFNAME" in (tmp_path / "stderr-1").read_text()


def test_the_way_to_a_node_goes_by_its_name_or_by_what_it_says_of_itself() -> None:
    assert address_towards({"localhost": [LOOPBACK]}) is None
    outside = [address for address in own_interfaces() if not is_loopback(address)]
    # What is this machine's own is no other machine, even if a node there has the same address.
    assert address_towards({"no-such-node.invalid": outside}) is None


def test_ranks_of_one_machine_need_no_name_and_no_interface(tmp_path: Path) -> None:
    attendee = Attendee(rank=0, world=2, name="7-0", node="no-such-node", folder=tmp_path)
    own = Note(node="no-such-node")
    assert job_address(attendee, own, [Note(node="other-name")]) == LOOPBACK
    with pytest.raises(
        MeetingError, match=r"no network interface of no-such-node leads to far \(at 127.0.1.1\); set GLOO_"
    ):
        job_address(attendee, own, [Note(node="far", machine="another", addresses=("127.0.1.1",))])
    assert machine_id() == own.machine


def attend(folder: Path, rank: int, limits: MeetingLimits, found: list[Any]) -> None:
    try:
        attendee = Attendee(rank=rank, world=2, name="7-0", node=f"n{rank}", folder=folder)
        found.append(meet(attendee, store_port=1 if rank == 0 else 0, lost=found.append, limits=limits))
    except MeetingError as error:
        found.append(str(error))


@pytest.fixture
def met(tmp_path: Path) -> Iterator[tuple[list[Any], list[Any]]]:
    """What two ranks, each a thread, have found."""
    found: tuple[list[Any], list[Any]] = ([], [])
    threads = [threading.Thread(target=attend, args=(tmp_path, rank, SHORT, found[rank])) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    yield found
    for each in found:
        each[0].lifeline.close(well=True)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_the_secret_is_new_in_each_job_private_and_gone_when_all_are_there(met: Any, tmp_path: Path) -> None:
    (zero,), (one,) = met
    assert isinstance(zero, Met)
    assert zero.secret == one.secret
    assert len(bytes.fromhex(zero.secret)) == 32
    assert zero.interface == one.interface == "lo"
    assert list(tmp_path.iterdir()) == []


def test_notes_are_for_the_user_alone(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=attend, args=(tmp_path, 0, SHORT, found))
    thread.start()
    note = tmp_path / "7-0.rank0.meet"
    wait_for(note.exists)
    assert note.stat().st_mode & 0o777 == 0o600
    attend(tmp_path, 1, SHORT, found)
    thread.join(10)
    for each in found:
        each.lifeline.close(well=True)


@pytest.mark.parametrize("gone", [0, 1])
def test_whoever_ends_is_missed_at_once_and_who_ends_well_is_not(met: Any, gone: int) -> None:
    met[gone][0].lifeline.close(well=False)
    wait_for(lambda: met[1 - gone][1:] == [gone])
    assert met[gone][1:] == []


def test_an_end_without_fault_is_no_loss(met: Any) -> None:
    for each in met:
        each[0].lifeline.close(well=True)
    time.sleep(0.1)
    assert [len(each) for each in met] == [1, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_was_there_and_is_silent_has_ended(tmp_path: Path, rank: int) -> None:
    other = 1 - rank
    (tmp_path / f"7-0.rank{other}.meet").write_text(
        json.dumps({"node": "n-gone", "machine": machine_id(), "addresses": [], "beat": 3})
    )
    found: list[Any] = []
    start = time.monotonic()
    attend(tmp_path, rank, SHORT, found)
    assert time.monotonic() - start < 5
    assert f"rank {other} on n-gone was there and has been silent for 1 s: it has ended" in found[0]
    assert json.loads((tmp_path / f"7-0.rank{rank}.meet").read_text())["ended"] in found[0]


def test_a_note_that_is_no_whole_note_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "7-0.rank0.meet").write_text('{"node": "n')
    found: list[Any] = []
    attend(tmp_path, 1, MeetingLimits(arrive_s=0.3), found)
    assert found == ["rank 1 of 2 on n1: rank 0 did not say where its gate is within 0 s; its log says why"]


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    found: list[Any] = []
    attend(tmp_path, 0, MeetingLimits(arrive_s=0.3), found)
    assert found == ["rank 0 of 2 on n0: rank 1 did not arrive within 0 s; its log says why"]


def test_a_gate_that_cannot_be_reached_names_the_variables(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
    note = {"node": "n0", "machine": "far", "addresses": [], "gate": LOOPBACK, "gate_port": port, "secret": "00"}
    (tmp_path / "7-0.rank0.meet").write_text(json.dumps(note))
    found: list[Any] = []
    attend(tmp_path, 1, SHORT, found)
    assert "Connection refused" in found[0]
    assert (
        "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in the job's environment to an interface that the nodes share"
        in found[0]
    )


@pytest.fixture
def gate() -> Iterator[Gate]:
    lost: list[int] = []
    with socket.create_server((LOOPBACK, 0)) as store:
        store.settimeout(5)
        opened = Gate(LOOPBACK, secret=b"right", world=2, store_port=store.getsockname()[1], lost=lost.append)
        opened.store = store
        yield opened
        opened.close(well=True)
    assert lost == []


def test_a_stranger_does_not_get_in_and_learns_nothing(gate: Gate) -> None:
    with pytest.raises(GateError, match="it closed the connection"):
        Lifeline(LOOPBACK, gate.port, secret=b"wrong", rank=1, lost=print)
    with socket.create_connection((LOOPBACK, gate.port), timeout=5) as raw:
        assert len(raw.recv(100)) == 32
        raw.sendall(b"\0" * 69)
        assert raw.recv(100) == b""
    assert gate.missing() == [1]


def test_a_program_that_took_the_gates_place_is_not_believed() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:

        def pretend() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"\0" * 32)
                connection.recv(200)
                connection.sendall(b"\0" * 32)

        threading.Thread(target=pretend, daemon=True).start()
        with pytest.raises(GateError, match="another program listens there"):
            Lifeline(LOOPBACK, server.getsockname()[1], secret=b"right", rank=1, lost=print)


def test_the_store_is_reached_through_the_gate_by_processes_of_this_user(gate: Gate) -> None:
    line = Lifeline(LOOPBACK, gate.port, secret=b"right", rank=1, lost=print)
    wait_for(lambda: gate.missing() == [])
    with socket.create_connection((LOOPBACK, line.forward()), timeout=5) as here:
        there, _ = gate.store.accept()
        here.sendall(b"ask")
        assert there.recv(10) == b"ask"
        there.sendall(b"answer")
        assert here.recv(10) == b"answer"
        there.close()
        assert here.recv(10) == b""
    line.close(well=True)


def ask_as_stranger(port: int, note: Path) -> None:
    os.setuid(65534)
    with socket.create_connection((LOOPBACK, port), timeout=5) as here:
        answer = here.recv(10)
    os._exit(0 if answer == b"" else 1)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_node_does_not_reach_the_store_through_a_ranks_way_to_it(
    gate: Gate, tmp_path: Path
) -> None:
    line = Lifeline(LOOPBACK, gate.port, secret=b"right", rank=1, lost=print)
    assert start_forked(ask_as_stranger, line.forward(), tmp_path).wait(30) == 0
    line.close(well=True)


def test_a_rank_that_is_killed_while_the_other_is_busy_ends_it(tmp_path: Path) -> None:
    waiting, dying = start_ranks((None, None), tmp_path, ("wait", "die"))
    assert dying.wait(30) == 9
    assert waiting.wait(30) in (-15, LOST_EXIT)
    assert "rank_lost" in (tmp_path / "stderr-0").read_text()
