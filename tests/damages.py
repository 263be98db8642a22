"""Ways in which a file is damaged, and what is seen of it."""

from lira.store.verify import findings


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "flipped": flip,
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "deleted": None,
}


def damage(file, how):
    if DAMAGES[how] is None:
        file.unlink()
    else:
        file.write_bytes(DAMAGES[how](file.read_bytes()))


def contents(run):
    """All files by place; locks are no content, and what was moved aside is not the run's."""
    files = {str(file.relative_to(run)): file for file in run.rglob("*") if file.is_file()}
    return {
        place: file.read_bytes()
        for place, file in files.items()
        if place not in (".lock", ".models") and not place.startswith("broken/")
    }


def broken(run, **options):
    return [each for each in findings(run, **options) if each.status == "broken"]
