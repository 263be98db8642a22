"""What the pages take from the code when they are built: the table of attacks."""

from lira.attacks.suite import ATTACKS
from lira.reporting.glossary import GLOSSARY

MARK = "<!-- attacks -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the table of attacks where a page asks for it."""
    return markdown.replace(MARK, attacks_table()) if MARK in markdown else markdown


def attacks_table() -> str:
    """Every attack in the order of the code: what it is, what it reads, and whether it has p-values."""
    rows = ["| attack | what it is | reads | p-values |", "|---|---|---|---|"]
    for name, attack in ATTACKS.items():
        reads = ", ".join(
            [attack.signal.replace("_", " "), *(each.replace("_", " ") for each in attack.needs)]
        )
        alone = "" if attack.uses_shadows else "; no shadow models"
        exact = "yes" if attack.p_values else ""
        rows.append(f"| `{name}` | {GLOSSARY[name]} | {reads}{alone} | {exact} |")
    return "\n".join(rows)
