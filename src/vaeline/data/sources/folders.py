"""Which images a folder holds, and in which class each is."""

from pathlib import Path

from vaeline.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


def scan(folder: Path) -> tuple[tuple[str, ...] | None, list[tuple[Path, int]]]:
    """The class names and every image with its class, in a fixed order; the names are None without subfolders.

    Either the images lie in `folder`, or each in a subfolder that is its class. Hidden files are passed over.
    Raises UserError for an empty folder or class, other files, deeper folders, and links that lead out.
    """
    if not folder.is_dir():
        raise UserError(f"data.source.path: {folder}: is not a folder; allowed: a folder of PNG or JPEG images")
    entries = _entries(folder, folder)
    subfolders = [entry for entry in entries if entry.is_dir()]
    if not subfolders:
        return None, [(path, 0) for path in _images(folder, entries)]
    if stray := [entry for entry in entries if not entry.is_dir()]:
        raise UserError(f"{stray[0]}: lies beside class folders; allowed: only folders, or only images, in {folder}")
    per_class = [_images(subfolder, _entries(subfolder, folder)) for subfolder in subfolders]
    files = [(path, label) for label, paths in enumerate(per_class) for path in paths]
    return tuple(subfolder.name for subfolder in subfolders), files


def _entries(folder: Path, root: Path) -> list[Path]:
    """What lies in `folder`, hidden files apart, in order of name."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if not entry.exists():
            raise UserError(f"{entry}: is a link to nothing; allowed: files, and links within {root}")
        if entry.is_symlink() and root.resolve() not in entry.resolve().parents:
            raise UserError(f"{entry}: is a link out of {root}; allowed: files, and links within it")
    return entries


def _images(folder: Path, entries: list[Path]) -> list[Path]:
    if not entries:
        raise UserError(f"{folder}: holds no images; allowed: at least one {', '.join(SUFFIXES)}")
    for entry in entries:
        if entry.is_dir():
            raise UserError(f"{entry}: is a folder within a class folder; allowed: one level of class folders")
        if entry.suffix.lower() not in SUFFIXES or not entry.is_file():
            raise UserError(f"{entry}: is not an image file; allowed: {', '.join(SUFFIXES)}")
    return entries
