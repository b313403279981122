"""Stage fetch: from `data.source` to `data/raw`, from `train.init` to `data/init`, the original bytes."""

import logging
import os
import shutil
from pathlib import Path
from zipfile import is_zipfile

from vaeline.config.data import Download, Folder, Npz, Shapes, Source
from vaeline.config.train import INIT_CONFIG, INIT_PERCEPTUAL, INIT_WEIGHTS, Diffusers, Perceptual, Random
from vaeline.data.sources.images import scan
from vaeline.data.sources.public import fetch_public
from vaeline.data.sources.shapes import write_shapes
from vaeline.errors import UserError
from vaeline.io.atomic_write import new_file, new_folder
from vaeline.io.progress import Progress
from vaeline.io.safe_read import named, opened, readable, shown
from vaeline.io.workspace import Workspace, expanded

log = logging.getLogger(__name__)
_copy_users = readable()(shutil.copyfile)  # a file of the user's, who may have removed it by now
SAVE_VGG = "; safetensors.torch.save_file(torchvision.models.vgg16(weights='DEFAULT').state_dict(), FILE) writes one"


def fetch(source: Source, workspace: Workspace) -> None:
    """Fill `data/raw` of the workspace, all of it or, on any error, none.

    Raises UserError where the source cannot be reached or is not what it should be.
    """
    with new_folder(workspace.raw) as folder:
        match source:
            case Download():
                fetch_public(source.kind, folder, workspace.raw)
            case Folder():
                origin = _local(source.path, workspace)
                classes, files = scan(origin)
                for name in classes or ():
                    (folder / _utf8(name)).mkdir()
                with Progress("copying", len(files), "images") as reporter:
                    for number, (path, _) in enumerate(files, 1):
                        _copy_users(path, folder / _utf8(path.relative_to(origin)))
                        reporter.update(number)
                log.info("folder: copied %d images from %s", len(files), named(origin))
            case Npz():
                origin = _local(source.path, workspace)
                if not origin.is_file():
                    raise UserError(f"data.source.path: {named(origin)}: is not a file; allowed: an .npz file")
                _copy_users(origin, folder / "data.npz")
                if not is_zipfile(folder / "data.npz"):  # /proc/self/environ is to be no output that DVC keeps
                    raise UserError(f"data.source.path: {named(origin)}: is not a complete .npz file")
                log.info("npz: copied %s", named(origin))
            case Shapes():
                write_shapes(folder, source.count, source.size, source.seed)
                log.info("shapes: drew %d images of %d x %d pixels", source.count, source.size, source.size)


def fetch_init(init: Random | Diffusers, perceptual: Perceptual | None, workspace: Workspace) -> None:
    """Fill `data/init` with the files that training starts from, beside init.json, all of it or, on any error, none.

    Raises UserError where they are missing, or pickles in their place.
    """
    with new_folder(workspace.init) as folder:
        (folder / "init.json").write_text(f'{{"kind": "{init.kind}"}}\n', encoding="utf-8")
        if perceptual:
            _copy(_local(perceptual.weights, workspace, "train.perceptual.weights"), folder / INIT_PERCEPTUAL, SAVE_VGG)
        if isinstance(init, Random):
            return
        origin = _local(init.path, workspace, "train.init.path")
        _copy(origin / INIT_CONFIG, folder / INIT_CONFIG)
        if not (origin / INIT_WEIGHTS).exists() and (pickled := origin / "diffusion_pytorch_model.bin").exists():
            found = f"{named(pickled)}: is a pickle, which is never read"
            raise UserError(f"train.init.path: {found}; allowed: {INIT_WEIGHTS}")
        _copy(origin / INIT_WEIGHTS, folder / INIT_WEIGHTS)
        log.info("init: copied an AutoencoderKL from %s", named(origin))


def _utf8(name: str | Path) -> str:
    r"""The name with each byte that is not UTF-8, for which DVC has no place, as \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _copy(origin: Path, target: Path, advice: str = "") -> None:
    try:
        with opened(origin) as (source, _), new_file(target) as file:
            if target.suffix == ".safetensors" and source.peek(9)[8:9] != b"{":
                raise UserError(f"{named(origin)}: is not a safetensors file")
            shutil.copyfileobj(source, file)
    except UserError as error:
        raise UserError(f"{error}{advice}") from None


def _local(path: str, workspace: Workspace, key: str = "data.source.path") -> Path:
    """A path in params: relative to the workspace or, in DVC's copies of the repository, to the original."""
    try:
        found = workspace.root / (given := expanded(path, key))
        if not found.exists():
            found = workspace.repository / given
    except OSError as error:  # too long
        raise UserError(f"{key}: {shown(path)}: {error.strerror}; allowed: a file or folder") from None
    for written in (workspace.raw, workspace.init):
        here, there = (Path(os.path.realpath(place)) for place in (found, written))  # a link may be a loop
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise UserError(f"{key}: {shown(path)} overlaps {written}, which fetch writes; allowed: files elsewhere")
    return found
