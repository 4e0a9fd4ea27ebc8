"""The page's server: what it answers by HTTP, and whom it refuses."""

import http.client
import json
import re
import socket
import threading
import time
from contextlib import suppress

import pytest

from nlhf_zoo.errors import UserError
from nlhf_zoo.people import Pair, Tally, VoteStore
from nlhf_zoo.people import server as served
from nlhf_zoo.people.server import PeopleServer

PROMPT = [{"role": "user", "content": "Which?"}]


def pairs(number, start=0):
    return [Pair(PROMPT, f"first {i}", f"second {i}") for i in range(start, start + number)]


class Client:
    """Who asks as the page does."""

    def __init__(self, server):
        self.server = server
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self.headers = {
            "Authorization": f"Bearer {server.store.token}",
            "Content-Type": "application/json",
        }

    def send(self, path, body, method="POST", **headers):
        """The status and what is answered; a header of None is not sent."""
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in sent.items() if value is not None}
        self.connection.request(method, path, body, sent)
        answer = self.connection.getresponse()
        return answer.status, answer.read(), answer.headers

    def ask(self, what, **body):
        status, answer, _ = self.send(f"/api/{what}", json.dumps(body))
        return status, json.loads(answer)


@pytest.fixture
def client(server):
    client = Client(server)
    yield client
    client.connection.close()


def test_a_vote_is_kept_and_answered_by_the_next_question(store, client):
    numbers = store.put(pairs(3))
    status, answer = client.ask("next", person="Ann")
    shown = store.next("Ann")
    assert status == 200
    assert answer["pair"] == {
        "number": numbers[0],
        "conversation": PROMPT,
        "responses": [*shown.seats],
    }
    assert answer["progress"]["open"] == 3
    status, answer = client.ask(
        "vote", person="Ann", number=numbers[0], choice="first", seconds=2.5, besides=[numbers[1]]
    )
    assert (status, answer["pair"]["number"], answer["progress"]["answered"]) == (
        200,
        numbers[2],
        1,
    )
    # What had the first seat is what was chosen.
    counted = Tally(0, 1, 0, 0, 1) if shown.mirrored else Tally(1, 0, 0, 0, 1)
    assert store.tallies(numbers[:1]) == [counted]
    status, answer = client.ask("undo", person="Ann", number=numbers[0])
    assert (answer["undone"], answer["pair"]["number"], answer["last"]) == (numbers[0],) * 2 + (
        None,
    )
    assert client.ask("agreement")[1] == {"alpha": None, "questions": 0, "people": {}}


def test_seats_of_several_people_are_put_back_in_the_order_of_the_file(store, client):
    numbers = store.put(pairs(30), votes=2)
    mirrored = set()
    for person in ("Ann", "Bob"):
        while pair := client.ask("next", person=person)[1]["pair"]:
            seat = pair["responses"].index(f"first {pair['number'] - 1}")
            mirrored.add(seat)
            choice = ("first", "second")[seat]
            assert client.ask("vote", person=person, number=pair["number"], choice=choice)[0] == 200
    assert mirrored == {0, 1}
    assert {tally.first for tally in store.tallies(numbers)} == {2}


def test_who_waits_is_told_as_soon_as_another_process_asks(store, client):
    other = VoteStore(store.path)  # as a training run has it

    def ask():
        time.sleep(0.2)
        other.put(pairs(1))

    thread = threading.Thread(target=ask)
    thread.start()
    start = time.monotonic()
    _, answer = client.ask("next", person="Ann", wait=25)
    thread.join()
    assert answer["pair"]["number"] == 1
    assert time.monotonic() - start < 20  # before the wait ends
    other.end()


def test_who_waits_is_answered_when_the_server_ends(store):
    server = PeopleServer(store)
    client, answers = Client(server), []
    thread = threading.Thread(
        target=lambda: answers.append(client.ask("next", person="A", wait=25))
    )
    thread.start()
    time.sleep(0.2)
    server.close()
    thread.join(20)
    assert [(status, answer["pair"]) for status, answer in answers] == [(200, None)]
    with pytest.raises(ConnectionError):  # which was open
        client.ask("next", person="A")
    client.connection.close()


GOOD = {"person": "Ann", "number": 1, "choice": "first"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer " + "0" * 32}, 401),
        ({"Authorization": "Bearer é".encode().decode("latin-1")}, 401),
        ({"Authorization": None}, 401),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": "192.0.2.1:{port}"}, 421),
        ({"Host": "127.0.0.1:{port}@evil.example:{port}"}, 421),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "1e3"}, 411),
        ({"Content-Length": "70000"}, 413),
        ({"Content-Length": "9" * 4000}, 413),
        ({"Transfer-Encoding": "chunked"}, 411),
        ({"Host": "localhost:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
    ],
)
def test_who_is_not_the_page_is_refused(store, client, server, headers, status):
    store.put(pairs(1))
    sent = {
        name: value and value.replace("{port}", str(server.port)) for name, value in headers.items()
    }
    found, body, _ = client.send("/api/vote", json.dumps(GOOD), **sent)
    assert found == status, body
    assert store.tallies([1])[0].votes == (status == 200)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("vote", b"{", 400),
        ("vote", b"[" * 60_000, 400),
        ("vote", b"[]", 400),
        ("vote", GOOD | {"file": "another"}, 400),
        ("vote", GOOD | {"person": 3}, 400),
        ("vote", GOOD | {"person": "\ud800"}, 400),
        ("vote", GOOD | {"person": " "}, 400),
        ("vote", GOOD | {"number": True}, 400),
        ("vote", GOOD | {"number": 2**64}, 400),
        ("vote", GOOD | {"choice": "third"}, 400),
        ("vote", GOOD | {"choice": ["first"]}, 400),
        ("vote", GOOD | {"seconds": float("nan")}, 400),
        ("vote", GOOD | {"seconds": 10**400}, 400),
        ("vote", GOOD | {"besides": [1] * 9}, 400),
        ("vote", GOOD | {"besides": ["1"]}, 400),
        ("vote", GOOD | {"number": 9}, 409),
        ("next", {"person": "Ann", "wait": "long"}, 400),
        ("undo", {"person": "Ann"}, 400),
        ("votes", {}, 404),
        ("../people.sqlite", {}, 404),
    ],
)
def test_requests_that_are_none_are_refused_with_a_sentence(store, client, path, body, status):
    store.put(pairs(1))
    sent = body if isinstance(body, bytes) else json.dumps(body)
    found, answer, _ = client.send(f"/api/{path}", sent)
    assert found == status
    assert json.loads(answer)["error"]
    assert [*store.votes()] == []


def test_the_page_says_what_it_may_load_and_holds_nothing_of_anybody(store, client):
    store.put([Pair(PROMPT, "a secret", "another")])
    status, page, headers = client.send("/", None, "GET", Authorization=None, Content_Type=None)
    assert status == 200
    assert b"secret" not in page
    assert store.token.encode() not in page
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    for path, method in [("/api/next", "GET"), ("/../../etc/passwd", "GET"), ("/page.html", "GET")]:
        assert client.send(path, None, method)[0] == 404
    assert client.send("/", None, "PUT")[0] == 501


def test_a_file_that_cannot_be_written_is_said_to_be_so(store, client, monkeypatch):
    store.put(pairs(1))

    def full(*args, **kwargs):
        raise UserError("the disk is full")

    monkeypatch.setattr(VoteStore, "vote", full)
    assert client.ask("vote", **GOOD) == (503, {"error": "the disk is full"})


def test_a_connection_that_says_nothing_is_closed(store, monkeypatch):
    monkeypatch.setattr(served._Handler, "timeout", 0.1)
    server = PeopleServer(store)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /api/vote HTTP/1.1\r\nHost: ")
        assert connection.recv(100) == b""
    server.close()


def test_connections_beyond_all_bounds_are_closed_and_the_others_served(store, monkeypatch):
    monkeypatch.setattr(served, "_MOST_CONNECTIONS", 1)
    server = PeopleServer(store)
    one, other = Client(server), Client(server)
    assert one.ask("next", person="Ann")[0] == 200
    with pytest.raises(ConnectionError):  # ended, reset or broken, as it comes
        other.ask("next", person="Bob")
    assert one.ask("next", person="Ann")[0] == 200
    one.connection.close()
    other.connection.close()
    server.close()


def test_votes_are_brought_onto_the_disk_while_they_come(store, server, client):
    store.put(pairs(1))
    client.ask("vote", **GOOD)
    log, main = store.path.with_name(store.path.name + "-wal"), store.path.read_bytes()
    end = time.monotonic() + 30
    while store.path.read_bytes() == main and time.monotonic() < end:
        time.sleep(0.05)
    assert store.path.read_bytes() != main
    assert log.exists()  # nobody has closed the file


@pytest.mark.parametrize(
    ("host", "name", "is_one"),
    [
        ("127.0.0.1", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1", True),
        ("0.0.0.0", "rebound.example", False),
        ("0.0.0.0", "localhost", True),
        ("0.0.0.0", "[::1]", True),
        ("0.0.0.0", "", False),
        ("0.0.0.0", "[10.0.0.1", False),
    ],
)
def test_names_under_which_the_page_is_reached(store, host, name, is_one):
    server = PeopleServer(store, host)
    assert server._server.is_named(f"{name}:{server.port}") == is_one
    server.close()


def test_an_address_that_is_taken_or_none_is_refused(store, server):
    with pytest.raises(UserError, match=f"nothing can be served at {re.escape('127.0.0.1')}"):
        PeopleServer(store, port=server.port)
    with pytest.raises(UserError, match=f"nothing can be served at {re.escape('192.0.2.7')}"):
        PeopleServer(store, host="192.0.2.7")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /api/next HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
        b"POST /api/next HTTP/1.1\r\nHost : {host}\r\n\r\n",
        b"POST /api/next HTTP/1.1\r\nHost: {host}\r\n continued\r\n\r\n",
        b"POST /api/next HTTP/1.1\r\nHost: {host}\r\nOne: a\0b\r\n\r\n",
        b"POST /api/next HTTP/1.1\r\nOne: " + b"x" * 9000 + b"\r\n\r\n",
        b"POST /api/next HTTP/1.1\r\n" + b"".join(b"N%d: x\r\n" % n for n in range(99)) + b"\r\n",
        b"POST http://{host}/api/next HTTP/1.1\r\n\r\n",
        b"POST /api/next HTTP/2.0\r\n\r\n",
        b"POST /api/\xff HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET /\r\n\r\n",
    ],
)
def test_heads_that_two_readers_may_read_as_two_things_are_none(server, head):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head.replace(b"{host}", b"127.0.0.1:%d" % server.port))
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_connection_stays_open_unless_it_is_said_not_to(server):
    request = "GET / HTTP/1.{minor}\r\nHost: 127.0.0.1:{port}\r\n{more}\r\n"
    for minor, more, stays in [
        (1, "", True),
        (1, "Connection: close\r\n", False),
        (0, "", False),
        (0, "Connection: keep-alive\r\n", True),
    ]:
        sent = request.format(minor=minor, more=more, port=server.port).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(sent)
            assert b"200 OK" in connection.recv(100)
            rest = bytearray()
            with suppress(OSError):  # its other end may have closed it already
                connection.sendall(sent.replace(b"GET / ", b"GET /2 "))
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(1 << 20):
                    rest += part
        assert (b"404 Not Found" in rest) == stays
