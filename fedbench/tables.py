"""Tables in Markdown, whose aligned columns also read in a terminal, and in LaTeX; figures with three digits."""

import re
import textwrap
from collections.abc import Sequence

GFLOPS, MB, MIB = 10**9, 10**6, 2**20
LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after the end of a row, `[` would be taken for a distance
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
}


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns are words, the others figures."""
    columns = list(zip(headers, *rows, strict=True))
    padded = [_padded(column, index < left) for index, column in enumerate(columns)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in zip(*padded, strict=True))


def _padded(column: Sequence[str], left: bool) -> list[str]:
    """Header, Markdown's rule and cells at one width."""
    column = [text.replace("|", "\\|").replace("\n", " ") for text in column]
    width = max(3, *map(len, column))
    header, *cells = (f"{text:{'<' if left else '>'}{width}}" for text in column)
    return [header, "-" * width if left else "-" * (width - 1) + ":", *cells]


def latex(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A booktabs `tabular` whose first `left` columns are words, the others figures. Cells are LaTeX already."""
    lines = [f"  {' & '.join(cells)} \\\\" for cells in rows]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * left}{'r' * (len(headers) - left)}}}",
            r"  \toprule",
            f"  {' & '.join(map(latex_text, headers))} \\\\",
            r"  \midrule",
            *lines,
            r"  \bottomrule",
            r"\end{tabular}",
        ]
    )


def latex_text(text: str) -> str:
    """Plain text for LaTeX, on one line: what is special in it stands for itself; ± and minus are mathematics."""
    text = re.sub(r"(?<![^\s\[])-(?=\d)", "\N{MINUS SIGN}", " ".join(text.split()))
    return "".join(LATEX.get(letter, letter) for letter in text)


def bullets(*points: str) -> str:
    """A Markdown list with lines of at most 118 letters."""
    return "\n".join(textwrap.fill(point, 118, initial_indent="- ", subsequent_indent="  ") for point in points)


def number(value: float) -> str:
    """Three significant digits below a thousand, then whole numbers; never an exponent for what is larger."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def with_ratio(value: float, ratio: float | None) -> str:
    """`12.3 (0.50x)`."""
    return number(value) + ("" if ratio is None else f" ({ratio:.2f}x)")
