"""A file of votes, and the page on which people give them."""

import pytest

from nlhf_zoo.people import VoteStore
from nlhf_zoo.people.server import PeopleServer


@pytest.fixture
def store(tmp_path):
    store = VoteStore(tmp_path / "people.sqlite")
    yield store
    store.end()


@pytest.fixture
def server(store):
    server = PeopleServer(store)
    yield server
    server.close()
