"""Who may ask a served oracle, what it takes for a question, and what nobody sees of its token."""

import copy
import hmac
import http.client
import json
import logging
import pickle
import socket
import uuid

import pytest
from judge_server import JudgeServer
from judge_server_oracles import questions
from judges import Judge
from language_models import refused
from serving import in_loop, serving, start, stop, url

from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles import ServedOracle, UniformRandom
from nlhf_zoo.oracles.served import address
from nlhf_zoo.oracles.served import server as served_server
from nlhf_zoo.oracles.served.address import refuse_host
from nlhf_zoo.oracles.served.protocol import LONGEST_BODY, PROTOCOL, questions_to_json
from nlhf_zoo.oracles.served.server import OracleServer

TOKEN = "tK-93hF_zz0Pq-LmW72x"
OTHER = "tK-93hF_zz0Pq-LmW72y"


@pytest.fixture(scope="module")
def there():
    """A server without a token, and one with."""
    servers = start(Judge()), start(Judge(), TOKEN)
    yield servers
    for server in servers:
        stop(server)


def exchange(server, method="POST", path="/v1/batches", body=b"{}", **headers):
    """Status and what is said."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    given = {"Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    reply = connection.getresponse()
    said = json.loads(reply.read())
    connection.close()
    return reply.status, said


def batch(server, **changes):
    content = {
        "protocol": PROTOCOL, "fingerprint": server.description.fingerprint, "kind": "questions",
        "batch": uuid.uuid4().hex, "have": 0, **questions_to_json(questions(2)), **changes,
    }  # fmt: skip
    return json.dumps({key: value for key, value in content.items() if value is not ...}).encode()


# ---- the token -----------------------------------------------------------------------------------


def test_only_who_has_the_token_is_answered(there, monkeypatch, tmp_path):
    monkeypatch.setenv("A_TOKEN", TOKEN)
    monkeypatch.setenv("OTHER_TOKEN", OTHER)
    expected = dict(Judge().answers(questions(3)))
    there_with = url(there[1])
    assert dict(ServedOracle(there_with, "A_TOKEN").answers(questions(3))) == expected
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert dict(ServedOracle(there_with, token_file=str(file)).answers(questions(3))) == expected
    sentence = refused("does not take the token in", ServedOracle, there_with, "OTHER_TOKEN")
    assert "environment variable OTHER_TOKEN" in sentence
    refused("does not take no token: give the one", ServedOracle, there_with)
    for given in (
        None,
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        f"bearer {TOKEN}",
        OTHER,
        "Bearer é",
    ):
        headers = {} if given is None else {"Authorization": given}
        for method, path in (("GET", "/v1/oracle"), ("POST", "/v1/batches"), ("GET", "/other")):
            status, said = exchange(there[1], method, path, batch(there[1]), **headers)
            assert (status, said) == (401, {"error": "another token than the server's, or none"})


def test_a_token_that_is_withdrawn_ends_a_run(monkeypatch):
    monkeypatch.setenv("A_TOKEN", TOKEN)
    with serving(Judge(), TOKEN) as there_with:
        oracle = ServedOracle(there_with, "A_TOKEN")
        monkeypatch.setenv("A_TOKEN", OTHER)
        with pytest.raises(OracleStoppedError, match="does not take the token in the environment"):
            [*oracle.answers(questions(1))]


def test_tokens_are_compared_in_constant_time(there, monkeypatch):
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(
        served_server.hmac, "compare_digest", lambda *both: compared.append(both) or compare(*both)
    )
    exchange(there[1], Authorization=f"Bearer {OTHER}")
    assert compared == [(f"Bearer {OTHER}".encode(), f"Bearer {TOKEN}".encode())]


def test_a_token_is_in_nothing_that_is_kept_or_said(there, monkeypatch, caplog, capfd):
    monkeypatch.setenv("A_TOKEN", TOKEN)
    monkeypatch.setattr(address, "_ANNOUNCED", set())
    caplog.set_level(logging.DEBUG)
    oracle = ServedOracle(url(there[1]), "A_TOKEN", timeout=11, patience=12)
    [*oracle.answers(questions(2))]
    monkeypatch.setattr(
        http.client.HTTPConnection, "request",
        lambda self, *given: (_ for _ in ()).throw(http.client.HTTPException(f"bad {given}")),
    )  # fmt: skip
    monkeypatch.setattr("nlhf_zoo.oracles.served.client._FIRST_PAUSE", 13.0)
    with pytest.raises(OracleStoppedError) as found:
        [*oracle.answers(questions(2))]
    error = found.value
    assert error.__cause__ is None
    said = capfd.readouterr()
    assert said.err == (
        f"The oracle at {url(there[1])} is sent the token in the environment variable A_TOKEN\n"
    )
    for text in (
        f"{error} {error!r} {error.__context__!r}", said.out, said.err, caplog.text, repr(oracle),
        repr(vars(oracle)), oracle.fingerprint, repr(oracle.state_dict()), repr(oracle.client),
        pickle.dumps(oracle).decode("latin1"), pickle.dumps(copy.deepcopy(oracle)).decode("latin1"),
        json.dumps(there[1].description.to_json()),
    ):  # fmt: skip
        assert TOKEN not in text
        assert not any(TOKEN[at : at + 8] in text for at in range(len(TOKEN) - 7)), text


def test_a_request_that_is_none_is_not_logged(there, capfd, caplog):
    for line in (f"X Y: {TOKEN}", f"Content-Length: {TOKEN}", TOKEN, f"X\x00: {TOKEN}"):
        with socket.create_connection(("127.0.0.1", there[1].port)) as connection:
            connection.sendall(f"POST /v1/batches HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n".encode())
            connection.settimeout(30)
            assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]
    said = capfd.readouterr()
    assert said.out + said.err + caplog.text == ""


@pytest.mark.parametrize("token", ["short", "with blanks in between", "with\nlines-of-its-own"])
def test_what_is_no_token_is_refused_and_not_repeated(token, monkeypatch, tmp_path):
    monkeypatch.setenv("A_TOKEN", token)
    here = "http://localhost:9"
    assert token not in refused("must have 16 letters", ServedOracle, here, "A_TOKEN")
    large = tmp_path / "large"
    large.write_text("x" * 5000)
    refused("is no file of 4096", ServedOracle, here, token_file=str(large))


@pytest.mark.parametrize(
    ("host", "has_token", "message"),
    [
        ("0.0.0.0", False, "there is no token"),
        ("::", False, "there is no token"),
        ("10.0.0.7", False, "there is no token"),
        ("node7", False, "there is no token"),
        ("8.8.8.8", True, "public internet"),
    ],
)
def test_strangers_cannot_be_served(host, has_token, message):
    refused(message, refuse_host, host, has_token)
    server = OracleServer(Judge(), TOKEN if has_token else None)
    with pytest.raises(UserError, match=message):
        in_loop(server.start(host, 0))


def test_this_machine_and_private_networks_are_served():
    for host in ("127.0.0.1", "::1", "localhost"):
        refuse_host(host, has_token=False)
    for host in ("0.0.0.0", "10.0.0.7", "192.168.1.2", "node7", "fd00::1"):
        refuse_host(host, has_token=True)


def test_a_page_in_a_browser_cannot_ask(there):
    """By a name of its own for this machine, or by a type that needs no leave."""
    status, said = exchange(there[0], body=batch(there[0]), Host="evil.example")
    assert (status, said["error"]) == (
        403,
        "a name of another machine, and the server has no token",
    )
    status, said = exchange(there[0], body=batch(there[0]), Content_Type="text/plain")
    assert (status, said["error"]) == (415, "a body that is not application/json")
    assert exchange(there[0], body=batch(there[0]), Host=f"localhost:{there[0].port}")[0] == 200


# ---- what is asked -------------------------------------------------------------------------------

Q = questions_to_json(questions(1))
NO_BATCHES = {
    "no JSON": b"{", "no UTF-8": b"\xff", "no object": b"[]", "too deep": b"[" * 10**6,
    "pickled": b"\x80\x04K\x01.",
    "another version": {"protocol": PROTOCOL + 1}, "no version": {"protocol": ...},
    "no id": {"batch": ...}, "a short id": {"batch": "x"}, "an id that is a number": {"batch": 7},
    "no kind": {"kind": ...}, "another kind": {"kind": "code"}, "of a table": {"kind": "table"},
    "no questions": {"questions": ...}, "a question too short": {"questions": [[0, "a", "b"]]},
    "a question of no conversation": {"questions": [[1, "a", "b", False, False, False]]},
    "a number before the first": {"questions": [[-1, "a", "b", False, False, False]]},
    "a number for a text": {"questions": [[0, 1, "b", False, False, False]]},
    "no conversations": {"conversations": ...}, "an empty one": {"conversations": [[]]},
    "a message without a role": {"conversations": [[{"content": "x"}]]},
    "a message that is a number": {"conversations": [[{"role": "user", "content": 1}]]},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_BATCHES)
def test_what_is_no_batch_is_refused_and_asks_nothing(there, name):
    sent = NO_BATCHES[name]
    asked = len(there[0]._desk.oracle.asked)
    body = sent if isinstance(sent, bytes) else batch(there[0], **{**Q, **sent})
    status, said = exchange(there[0], body=body)
    assert status == 400
    assert len(said["error"]) < 200
    assert len(there[0]._desk.oracle.asked) == asked


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": {"dtype": "int64", "shape": [1], "data": "AwAAAAAAAAA="}},  # 3, of three
        {"prompts": {"dtype": "float64", "shape": [1], "data": "AAAAAAAAAAA="}},
        {"prompts": {"dtype": "int64", "shape": [2], "data": "AAAAAAAAAAA="}},
        {"prompts": {"dtype": "int64", "shape": [1], "data": "!"}},
        {"prompts": {"dtype": "O", "shape": [1], "data": "AAAAAAAAAAA="}},
        {"prompts": None},
        {"first": {"actions": {"dtype": "int64", "shape": [1, 1], "data": "BwAAAAAAAAA="}}},  # 7
        {"first": {"actions": None, "weight": {"dtype": "float64", "shape": [1, 0], "data": ""}}},
        {"second": []},
        {"kind": "questions"},
    ],
)
def test_what_is_no_batch_of_actions_is_refused(changes):
    there = start(UniformRandom(num_games=3, num_actions=4, seed=0))
    try:
        good = {
            "kind": "products", "first": {"actions": None}, "second": {"actions": None},
            "prompts": {"dtype": "int64", "shape": [1], "data": "AAAAAAAAAAA="},
        }  # fmt: skip
        assert exchange(there, body=batch(there, **good))[1]["preference"]["shape"] == [1, 4]
        assert exchange(there, body=batch(there, **{**good, **changes}))[0] == 400
    finally:
        stop(there)


def test_a_body_that_is_too_long_is_not_read(there):
    with socket.create_connection(("127.0.0.1", there[0].port)) as connection:
        connection.sendall(
            b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {LONGEST_BODY + 1}\r\n\r\n".encode()
            + b" " * 2**20
        )
        connection.settimeout(30)
        # Refused before all of it is there.
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    status, _ = exchange(there[0], body=batch(there[0]), Content_Encoding="gzip")
    assert status == 415


def test_other_places_and_methods_are_refused_in_json(there):
    for method, path, expected in (
        ("GET", "/", 404), ("GET", "/v1/batches", 405), ("DELETE", "/v1/oracle", 405),
        ("GET", "/v1/../../etc/passwd", 404), ("OPTIONS", "/v1/batches", 405),
    ):  # fmt: skip
        status, said = exchange(there[0], method, path, None)
        assert (status, [*said]) == (expected, ["error"])


def test_another_version_is_one_sentence(there, monkeypatch):
    said = there[0].description.to_json()
    newer = said | {"protocol": PROTOCOL + 1}
    monkeypatch.setattr(type(there[0].description), "to_json", lambda self: newer)
    sentence = "speaks version 2 of its protocol, and this is version 1: run both with the same"
    refused(sentence, ServedOracle, url(there[0]))
    del said["tolerance"]
    monkeypatch.setattr(type(there[0].description), "to_json", lambda self: said)
    refused("does not say its tolerance", ServedOracle, url(there[0]))


def test_another_server_is_one_sentence():
    with JudgeServer() as other:
        refused(
            "refuses by status 404|is no server of", ServedOracle, other.url.removesuffix("/v1")
        )
