"""A newcomer finds every file by its line in the README."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def listed() -> set[str]:
    """Paths in the README's tree: a folder ends with a slash, what it holds is indented by two more."""
    text = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    found, folders = set(), [""]
    for line in text.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path = folders[depth] + name
        found.add(path)
        if name.endswith("/"):
            folders[depth + 1 :] = [path]
    return found


def shipped() -> set[str]:
    modules = [
        p for room in ("fednas", "server", "client", "simulations") for p in (ROOT / room).rglob("*.py")
    ]
    return {
        f"{p.parent.relative_to(ROOT)}/" if p.name == "__init__.py" else str(p.relative_to(ROOT))
        for p in modules
    }


def test_the_tree_of_the_readme_names_every_module_and_nothing_else() -> None:
    rooms = ("fednas/", "server/", "client/", "simulations/")
    assert {path for path in listed() if path.startswith(rooms)} == shipped()


def test_files_of_the_root_in_the_tree_are_there() -> None:
    assert all((ROOT / path).exists() for path in listed())
