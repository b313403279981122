"""Stage fetch: from `data.source` to `data/raw`, the original bytes."""

import logging
import shutil
from pathlib import Path

from vaeline.config import Download, Folder, Npz, Shapes, Source
from vaeline.data.sources.images import scan
from vaeline.data.sources.public import fetch_public
from vaeline.data.sources.shapes import write_shapes
from vaeline.errors import UserError
from vaeline.io.atomic_write import new_folder
from vaeline.io.safe_read import named, shown
from vaeline.io.workspace import Workspace

log = logging.getLogger(__name__)


def fetch(source: Source, workspace: Workspace) -> None:
    """Fill `data/raw` of the workspace, all of it or, on any error, none.

    Raises UserError where the source cannot be reached or is not what it should be.
    """
    with new_folder(workspace.raw) as folder:
        match source:
            case Download():
                fetch_public(source.kind, folder)
            case Folder():
                origin = _local(source.path, workspace)
                classes, files = scan(origin)
                for name in classes or ():
                    (folder / name).mkdir()
                for path, _ in files:
                    shutil.copyfile(path, folder / path.relative_to(origin))
                log.info("folder: copied %d images from %s", len(files), named(origin))
            case Npz():
                origin = _local(source.path, workspace)
                if not origin.is_file():
                    raise UserError(f"data.source.path: {named(origin)}: is not a file; allowed: an .npz file")
                shutil.copyfile(origin, folder / "data.npz")
                log.info("npz: copied %s", named(origin))
            case Shapes():
                write_shapes(folder, source.count, source.size, source.seed)
                log.info("shapes: drew %d images of %d x %d pixels", source.count, source.size, source.size)


def _local(path: str, workspace: Workspace) -> Path:
    """A path in params: relative to the workspace or, in DVC's copies of the repository, to the original."""
    try:
        found = workspace.root / Path(path).expanduser()
        if not found.exists():
            found = workspace.repository / Path(path).expanduser()
    except (OSError, RuntimeError) as error:  # too long, no such user
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"data.source.path: {shown(path)}: {reason}; allowed: a file or folder") from None
    if workspace.raw.absolute() in (found.absolute(), *found.absolute().parents):
        raise UserError(f"data.source.path: {shown(path)} lies in {workspace.raw}, which fetch writes")
    return found
