"""The page in a real browser: what people see, press and lose when things break."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from slow import slow_unless

from nlhf_zoo.people import Pair, VoteStore
from nlhf_zoo.people.server import PeopleServer

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

PROMPT = [{"role": "user", "content": "Which?"}]
HOSTILE = [
    "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">",
    "</div></script><style>*{display:none}</style>{{7*7}} ${7*7} <%= 7*7 %> &lt;b&gt;",
    "\u202egnp.exe \u2066\u2067 \u200f\u05d0\u05d1 \u0000\u001b[2J",
    "# Head\n\n**bold** [link](javascript:alert(1))\n\n\ttab  two spaces",
]


def pairs(number):
    return [Pair(PROMPT, f"first {i}", f"second {i}") for i in range(number)]


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens the page as a person of a machine of their own."""
    contexts = []

    def opened(address, person=None, **options):
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(address)
        if person:
            page.fill("#person", person)
            page.keyboard.press("Enter")
        return page

    yield opened
    for context in contexts:
        assert [page.errors for page in context.pages if getattr(page, "errors", [])] == []
        context.close()


def number(page, shown):
    """Wait until a question is shown."""
    page.wait_for_selector(f"body[data-number='{shown}']")


def kept(page):
    """Wait until all that was chosen is kept by the server."""
    until(page, "queue().length === 0 && !sending")


def until(page, expression, seconds=20):
    """Wait for what the page computes; `wait_for_function` is kept from it by the page's policy."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(10)


def said(store):
    return [
        (vote.person, vote.question, vote.choice) for vote in store.votes() if vote.undone is None
    ]


def seated(store, person, shown, seat):
    """What a choice of a seat is in the order of the file."""
    texts = ("first", "second")
    return texts[seat - 1 if not store.shown(person, shown).mirrored else 2 - seat]


def test_two_people_choose_at_once_skip_take_back_and_reload(store, server, open_page):
    store.put(pairs(4), votes=2)
    ann, bob = open_page(server.address, "Ann"), open_page(server.address, "Bob")
    for page in (ann, bob):
        number(page, 1)
    assert ann.text_content("#first") == store.shown("Ann", 1).seats[0]
    ann.keyboard.press("1")
    number(ann, 2)  # at once: it was here before
    bob.click("text=Answer 2 is better")
    number(bob, 2)
    ann.keyboard.press("s")
    bob.keyboard.press("0")
    number(ann, 3)
    number(bob, 3)
    kept(ann)
    ann.reload()
    number(ann, 3)  # with the same name and the same pair
    assert ann.text_content("#first") == store.shown("Ann", 3).seats[0]
    for back in (2, 1):  # taken back over the reload
        ann.keyboard.press("u")
        number(ann, back)
    ann.keyboard.press("2")
    number(ann, 2)
    kept(ann)
    kept(bob)
    assert sorted(said(store)) == [
        ("Ann", 1, seated(store, "Ann", 1, seat=2)),
        ("Bob", 1, seated(store, "Bob", 1, seat=2)),
        ("Bob", 2, "neither"),
    ]
    assert ann.text_content("#left").startswith("1 of 4 answered")
    assert ann.get_attribute("#bar", "value") == "1"


def test_answers_are_shown_as_text_whatever_they_hold(store, server, open_page):
    long = "word " * 20_000
    store.put([Pair([{"role": "user", "content": text}], text, long) for text in HOSTILE])
    page = open_page(server.address, "Ann", viewport={"width": 1200, "height": 700})
    for shown, text in enumerate(HOSTILE, start=1):
        number(page, shown)
        panes = page.locator(".pane > .text")
        assert sorted(panes.all_text_contents()) == sorted([text, text, long])
        assert page.locator(".pane .text *").count() == 0  # nothing but text
        page.keyboard.press("0")
    page.keyboard.press("u")
    number(page, len(HOSTILE))
    assert page.title() == "Which answer is better?"
    seat = "first" if store.shown("Ann", len(HOSTILE)).mirrored else "second"
    pane = page.locator(f"#{seat}")
    assert pane.evaluate("one => one.scrollHeight > one.clientHeight")  # it scrolls by itself
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    isolates = "getComputedStyle(document.querySelector('#first .text')).unicodeBidi"
    assert page.evaluate(isolates) == "plaintext"


def test_the_next_question_is_shown_as_soon_as_it_is_asked(store, server, open_page):
    page = open_page(server.address, "Ann")
    page.wait_for_selector("#idle:has-text('nothing to answer')")
    VoteStore(store.path).put(pairs(1))  # as another process does
    number(page, 1)
    page.keyboard.press("1")
    page.wait_for_selector("#idle:not([hidden])")
    assert page.is_disabled("[data-choice=first]")


def test_who_comes_next_at_the_same_machine_is_asked_at_once(store, server, open_page):
    store.put(pairs(1), votes=2)
    page = open_page(server.address, "Ann")
    number(page, 1)
    page.wait_for_timeout(200)  # until the page waits for a second question
    for person in ("Bob", "Ann"):
        page.click("#other")
        assert page.is_hidden("#answers")
        page.fill("#person", person)
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-number='1']", timeout=10_000)  # a wait is of 20 seconds
        assert page.text_content("#first") == store.shown(person, 1).seats[0]
    page.keyboard.press("0")
    kept(page)
    assert said(store) == [("Ann", 1, "neither")]


def test_votes_wait_for_a_server_that_is_away_and_count_once(store, open_page):
    store.put(pairs(4))
    server = PeopleServer(store)
    page = open_page(server.address, "Ann")
    number(page, 1)
    until(page, "pairs.length === 2")
    port = server.port
    server.close()
    page.keyboard.press("0")
    number(page, 2)
    page.wait_for_selector("#status:has-text('is kept here')")
    page.keyboard.press("0")
    again = PeopleServer(store, port=port)
    number(page, 3)
    kept(page)
    assert said(store) == [("Ann", 1, "neither"), ("Ann", 2, "neither")]
    again.close()


def test_an_address_without_the_token_shows_nothing(store, server, open_page):
    store.put(pairs(1))
    for token in ("", "0" * 32):
        page = open_page(re.sub("#.*", f"#{token}", server.address), "Ann")
        page.wait_for_selector("#status:has-text('Refused')")
        assert page.is_hidden("#answers")
    assert said(store) == []


def test_a_page_of_another_origin_can_neither_ask_nor_vote(store, server, open_page):
    store.put(pairs(1))
    other = PeopleServer(store)  # another origin: another port
    page = open_page(other.address)
    ask = """async ([address, token, headers]) => {
        try {
            const answer = await fetch(address, {method: "POST", headers, body: JSON.stringify(
                {person: "Eve", number: 1, choice: "first"})});
            return await answer.text();
        } catch (error) { return "refused"; }
    }"""
    # The other page's own policy would keep it from asking at all: any other page has none.
    page.goto("about:blank")
    address = f"http://127.0.0.1:{server.port}/api/vote"
    for headers in (
        {"Content-Type": "application/json", "Authorization": f"Bearer {store.token}"},
        {"Content-Type": "text/plain"},  # that a browser sends without asking before
    ):
        assert page.evaluate(ask, [address, store.token, headers]) == "refused"
    assert said(store) == []
    other.close()


def test_the_keyboard_alone_suffices(store, server, open_page):
    store.put(pairs(2))
    page = open_page(server.address)
    page.keyboard.type("Ann")
    page.keyboard.press("Enter")
    number(page, 1)
    ways = []
    for _ in range(12):
        page.keyboard.press("Tab")
        ways.append(
            page.evaluate("document.activeElement.id || document.activeElement.dataset.choice")
        )
        if ways[-1] == "neither":
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            page.keyboard.press("Enter")
            break
    assert ways == ["conversation", "first", "second", "first", "neither"]
    number(page, 2)
    kept(page)
    assert said(store) == [("Ann", 1, "neither")]
    page.focus("#first")
    page.keyboard.press("Control+1")  # the browser's own keys vote for nothing
    page.click("#other")
    page.fill("#person", "120")  # nor does what is typed
    assert said(store) == [("Ann", 1, "neither")]


LOOKS = [(width, scheme) for width in (1200, 390) for scheme in ("light", "dark")]


@slow_unless("look", lambda look: look == (390, "dark"), LOOKS, ids=str)
def test_contrast_labels_and_order_pass_axe(store, server, open_page, look):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    store.put([*pairs(1), Pair(PROMPT, "word " * 3000, "b")], votes=2)
    store.vote("Bob", 1, "first", 2.0)
    width, scheme = look
    page = open_page(server.address, color_scheme=scheme, viewport={"width": width, "height": 700})
    assert axe.run(page).response["violations"] == []  # who are you?
    page.fill("#person", "Ann")
    page.keyboard.press("Enter")
    number(page, 1)
    page.keyboard.press("1")
    number(page, 2)
    kept(page)
    page.evaluate("agree()")
    page.wait_for_selector("#agreement:not([hidden])")
    page.click("#agreement summary")
    assert axe.run(page).response["violations"] == []


@contextmanager
def asking(path, port):
    """``nlhf ask`` in a process of its own, and its address."""
    code = "import sys; from nlhf_zoo.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "ask", str(path), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.kill()


@pytest.mark.slow
def test_a_thousand_pairs_with_servers_killed_in_between(tmp_path, open_page):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "first": f"a {i}", "second": f"b {i}"} for i in range(1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, port, address = None, 0, ""
    for end in (300, 700, 1000):
        with asking(path, port) as (process, opened):
            address, port = opened, int(re.search(r":(\d+)/", opened)[1])
            page = page or open_page(address, "Ann")
            while int(page.evaluate("document.body.dataset.number || 0")) < end:
                before = page.evaluate("document.body.dataset.number")
                page.keyboard.press("1")
                if end == 1000 and before == "1000":
                    break
                until(page, f"document.body.dataset.number !== '{before}'")
            if end < 1000:
                process.send_signal(signal.SIGKILL)  # with votes on their way
                page.keyboard.press("1")
            else:
                page.keyboard.press("1")
                kept(page)
    store = VoteStore(tmp_path / "pairs.sqlite")
    assert [vote.question for vote in store.votes()] == [*range(1, 1001)]
    assert store.progress().answered == 1000
    store.end()
