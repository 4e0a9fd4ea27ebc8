"""Pictures of the page of `nlhf ask`, wide and narrow, light and dark: python docs/figures/ask.py.

It needs Playwright and a Chromium (`apt-get install chromium`).
"""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from nlhf_zoo.people import Pair, VoteStore
from nlhf_zoo.people.server import PeopleServer

FOLDER = Path(__file__).parent
PAIR = Pair(
    [
        {"role": "system", "content": "You answer in plain words."},
        {"role": "user", "content": "Why can three answers be such that each loses to another?"},
    ],
    "Because a majority is made of different people each time.\n\n"
    "Let three people rank A, B, C:\n\n"
    "1. A > B > C\n2. B > C > A\n3. C > A > B\n\n"
    "Two of three prefer A to B, two prefer B to C, and **two prefer C to A**. "
    "Nobody contradicts themselves, and the majority goes round in a circle.",
    "That is not possible. If A is better than B and B is better than C, then A is better than C, "
    "for <b>better</b> is an order.",
)
PICTURES = {"ask_wide": (1200, 640, "light"), "ask_narrow": (390, 844, "dark")}


def main() -> None:
    """Make the pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = VoteStore(Path(folder) / "people.sqlite")
        others = [Pair(PAIR.conversation, f"Answer {i}", f"Another {i}") for i in range(23)]
        numbers = store.put([*others, PAIR], votes=2)
        for person, choices in {"Bob": "first", "Ann": "second"}.items():
            for number in numbers[:23]:
                store.vote(person, number, choices if number % 6 == 0 else "first", 14.0)
        server = PeopleServer(store)
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, (width, height, scheme) in PICTURES.items():
            page = chromium.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(server.address)
            page.fill("#person", "Ann")
            page.keyboard.press("Enter")
            page.wait_for_selector("#first .text")
            page.wait_for_selector("#agreement:not([hidden])", timeout=10_000)
            page.evaluate("document.activeElement.blur()")
            page.screenshot(path=FOLDER / f"{name}.png")
            page.close()
        chromium.close()
        server.close()
        store.end()


if __name__ == "__main__":
    main()
