"""Pieces of a self-contained HTML page: its frame and style, tables, notes, numbers."""

import datetime
import html
from collections.abc import Sequence
from typing import Any

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;background:#f4f5f7;margin:0}
main{max-width:960px;margin:0 auto;padding:24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 10px}
.sub{color:#5b6675;margin:0 0 18px}
.tiles{display:flex;flex-wrap:wrap;gap:12px}
.tile{background:#fff;border:1px solid #dde1e7;border-radius:8px;padding:10px 14px;min-width:150px;flex:1}
.tile b{display:block;font-size:22px;font-weight:600}.tile span{color:#5b6675;font-size:13px}
figure{background:#fff;border:1px solid #dde1e7;border-radius:8px;margin:12px 0;padding:12px}
figcaption{font-weight:600;margin-bottom:6px}
svg{width:100%;height:auto;display:block}svg text{font-size:12px;fill:#5b6675}.grid{stroke:#e6e9ee}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:6px 0 0;padding:0;font-size:13px}
.legend i{display:inline-block;width:22px;vertical-align:middle;margin-right:6px}
table{border-collapse:collapse;background:#fff;border:1px solid #dde1e7;width:100%;font-size:14px}
td,th{padding:5px 10px;border-bottom:1px solid #eceff3;text-align:right}td:first-child,th:first-child{text-align:left}
th{background:#fafbfc;font-weight:600}
.note{background:#fff8e6;border-left:4px solid #e69f00;padding:8px 12px;margin:10px 0}
img{max-width:100%;display:block;image-rendering:pixelated}
pre{background:#fff;border:1px solid #dde1e7;padding:12px;overflow:auto;font-size:12px}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:12px}
"""


def page(title: str, under: str, body: str, /) -> str:
    """A whole page: a heading, a line under it that ends with the time of its making, and `body`, which is HTML."""
    title, under = html.escape(title), html.escape(under)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{title}</title><style>{STYLE}</style></head><body><main>\n<h1>{title}</h1>\n"
            f'<p class="sub">{under}; page of {now}</p>\n{body}\n</main></body></html>\n')


def table(head: Sequence[str], rows: Sequence[Sequence[str]], /) -> str:
    """A table of text cells."""
    lines = ["".join(f"<th>{html.escape(h)}</th>" for h in head)] if head else []
    lines += ["".join(f"<td>{html.escape(c)}</td>" for c in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def note(text: str, /) -> str:
    """A paragraph that qualifies what stands near it."""
    return f'<p class="note">{html.escape(text)}</p>'


def number(value: Any, /) -> str:
    """A value for a table."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
