"""HTML of a report: cells, tables, cards, figures and the page around them. Everything is inline."""
import html
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
DASH = "–"


def escape(value):
    return html.escape(str(value), quote=True)


def digits(value, places=1, unit=""):
    return DASH if value is None else f"{value:,.{places}f}{unit}"


def auto(value, unit=""):
    """About three digits."""
    if value is None:
        return DASH
    size = abs(value)
    return digits(value, 0 if size >= 100 else 1 if size >= 10 else 2, unit)


def times(value):
    """A ratio: 1.34×, 184×."""
    return auto(value, "×")


class Cell:
    """markup: HTML; sort: number or text to sort by (default: the markup); css: classes."""

    def __init__(self, markup, sort=None, css=""):
        self.markup, self.sort, self.css = markup, sort, css

    def html(self):
        css = f' class="{self.css}"' if self.css else ""
        sort = f' data-sort="{escape(self.sort)}"' if self.sort is not None else ""
        return f"<td{css}{sort}>{self.markup}</td>"


def word(value, small="", css=""):
    """Text, with a smaller line beneath."""
    return Cell(escape(value) + (f"<small>{escape(small)}</small>" if small else ""), value, css)


def figure_cell(value, shown, small="", css=""):
    """A number as `shown`; nothing sorts last."""
    markup = escape(shown) + (f"<small>{escape(small)}</small>" if small else "")
    return Cell(markup, "" if value is None else repr(float(value)), ("num " + css).strip())


def table(columns, rows, groups=(), filtered=""):
    """columns: titles; rows: lists of Cells; groups: (title, span) above the titles; filtered: what a filter box asks for."""
    head = ""
    if groups:
        head += "<tr>" + "".join(f'<th colspan="{span}" class="group">{escape(title)}</th>' for title, span in groups) + "</tr>"
    numeric = [bool(rows) and "num" in rows[0][i].css.split() for i in range(len(columns))]
    head += "<tr>" + "".join(
        f'<th scope="col"{" class=num" if n else ""}><button type="button">{escape(title)}</button></th>'
        for title, n in zip(columns, numeric)) + "</tr>"
    body = "".join("<tr>" + "".join(cell.html() for cell in row) + "</tr>\n" for row in rows)
    box = f'<input type="search" placeholder="{escape(filtered)}" aria-label="{escape(filtered)}">' if filtered else ""
    return (f'<div class="sortable">{box}<div class="scroll" tabindex="0"><table><thead>{head}</thead>'
            f"<tbody>\n{body}</tbody></table></div></div>\n")


def note(text):
    return f'<p class="note">{escape(text)}</p>\n'


def prose(text):
    return f"<p>{escape(text)}</p>\n"


def card(title, value, text, tone=""):
    return (f'<div class="card {tone}"><span>{escape(title)}</span><strong>{escape(value)}</strong>'
            f"<span>{escape(text)}</span></div>\n")


def figures(drawings):
    """drawings: (svg, caption) pairs, side by side where there is room."""
    inner = "".join(f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>\n" for svg, caption in drawings)
    return f'<div class="figures">{inner}</div>\n' if inner else ""


def section(name, title, *parts):
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{"".join(parts)}</section>\n'


def page(title, subtitle, sections):
    """sections: (id, title, html) triples."""
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    style, script = (HERE / "page.css").read_text(), (HERE / "page.js").read_text()
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
            f"<style>\n{style}</style></head>\n<body>\n<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>"
            f"<nav>{links}</nav></header>\n<main>\n"
            + "".join(section(*part) for part in sections)
            + f"</main>\n<script>\n{script}</script>\n</body></html>\n")
