"""A page of HTML that loads nothing: its parts, and the escaping of all that others wrote."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NewType

from nlhf_zoo import __version__

Html = NewType("Html", str)  # what may stand in a page as it is

_LONGEST = 4000  # characters of one text
# By it a browser that shows the page loads nothing and runs nothing, whatever is in it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --link: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --link: #56b4e9; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } p { max-width: 46rem; margin: .4rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; } a { color: var(--link); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left;
  vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 4.5rem; }
th { background: var(--soft); overflow-wrap: normal; } td.text { min-width: 16rem; }
td:first-child { min-width: 9rem; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%,
  26rem), 1fr)); } figure { margin: 0; } figure:only-child { grid-column: 1 / -1; }
figure img { background: #fff; width: 100%; }
figcaption { font-size: .9rem; } pre { background: var(--soft); overflow-x: auto; padding: .8rem; }
summary { cursor: pointer; margin: .4rem 0; } .note { opacity: .8; }
"""


def text(value: object) -> Html:
    """Any value as text: what stands in it is shown, and does nothing."""
    shown = str(value)
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]} … ({len(shown) - _LONGEST:,} characters more)"
    shown = shown.encode("utf-8", "replace").decode()  # half of a pair of surrogates is no text
    return Html(
        html.escape("".join(one if one.isprintable() or one in "\n\t" else "�" for one in shown))
    )


def number(value: float) -> str:
    """A figure for people."""
    if value != value:
        return "–"
    whole = float(value).is_integer() and abs(value) < 1e15
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def paragraph(words: str) -> Html:
    """A paragraph of text."""
    return Html(f"<p>{text(words)}</p>")


def note(words: str) -> Html:
    """What is to be said where there is nothing."""
    return Html(f'<p class="note">{text(words)}</p>')


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table of texts and numbers."""
    heads = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return Html(
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="number">{text(number(value))}</td>'
    kind = ' class="text"' if isinstance(value, str) and len(value) > 60 else ""
    return f'<td{kind} dir="auto">{text("" if value is None else value)}</td>'


def structured(value: Any) -> Html:
    """What a file of JSON holds: mappings, and lists of them, as tables; what is deeper, below."""
    if isinstance(value, Mapping):
        plain = {key: each for key, each in value.items() if not _is_nested(each)}
        parts = [table(("what", "value"), plain.items())] if plain else []
        for key, each in value.items():
            if _is_nested(each):
                parts.append(Html(f"<h3>{text(key)}</h3>{structured(each)}"))
        return Html("".join(parts))
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return rows_of(value)
    return paragraph(str(value))


def _is_nested(value: Any) -> bool:
    rows = isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
    return isinstance(value, Mapping) or rows


def rows_of(records: Sequence[Mapping[str, Any]]) -> Html:
    """A table with a row for each mapping, and a column for each of their keys."""
    columns = [*dict.fromkeys(key for record in records for key in record)]
    return table(columns, [[record.get(key) for key in columns] for record in records])


def picture(address: str, what: str, caption: bool = True) -> Html:
    """A picture that lies in the page itself; what it shows stands below it, or is read aloud."""
    assert address.startswith("data:image/")
    alt = text(what)
    below = f"<figcaption>{alt}</figcaption>" if caption else ""
    return Html(f'<figure><img src="{html.escape(address)}" alt="{alt}">{below}</figure>')


def pictures(parts: Iterable[Html]) -> Html:
    """Pictures beside each other where there is room."""
    return Html(f'<div class="figures">{"".join(parts)}</div>')


def folded(title: str, content: Html) -> Html:
    """What is shown when it is asked for."""
    return Html(f"<details><summary>{text(title)}</summary>{content}</details>")


def code(words: str) -> Html:
    """A file of text."""
    return Html(f"<pre>{text(words)}</pre>")


def joined(parts: Iterable[Html]) -> Html:
    """Parts, one after the other."""
    return Html("".join(parts))


def page(title: str, sections: Mapping[str, Html]) -> str:
    """A whole page, with a section for each name."""
    names = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{text(key)}">{text(name)}</a>' for name, key in names.items())
    body = "".join(
        f'<section id="{text(names[name])}"><h2>{text(name)}</h2>{content}</section>'
        for name, content in sections.items()
    )
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body><main>"
        f"<h1>{text(title)}</h1><p>Written by nlhf {text(__version__)}, {written}.</p>"
        f"<nav>{links}</nav>\n{body}</main></body></html>\n"
    )
