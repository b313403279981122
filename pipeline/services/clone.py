"""Clone of the repository at a commit, for what must not touch the user's working tree."""

import configparser
import shutil
from pathlib import Path

from vaeline.errors import UserError
from vaeline.io.git import git, try_git


def make_clone(root: Path, folder: Path, commit: str, *, stash: str = "", cache: Path | None = None) -> Path:
    """Clone `folder` of the repository around `root` at `commit`, with `stash` applied; returns its folder of dvc.yaml.

    Git's objects are shared. With DVC's folder `cache`, that is shared too and dvc.lock is copied, tracked or not, so
    that DVC knows what is done; without, the clone has a cache of its own. Raises UserError where Git fails and where
    the commit has no dvc.yaml.
    """
    top, prefix, objects = git(root, "rev-parse", "--show-toplevel", "--show-prefix", "--git-path", "objects").split(
        "\n"
    )
    folder = folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "-q", "--shared", "--no-checkout", top, str(folder))
    # --shared does just this, but not for a shallow repository
    alternates = folder / ".git" / "objects" / "info" / "alternates"
    alternates.write_text(f"{(root / objects).resolve()}\n", encoding="utf-8")
    git(folder, "-c", "core.hooksPath=/dev/null", "checkout", "-q", "--detach", commit)
    if stash:
        git(folder, "stash", "apply", "-q", stash)
    for name, default in (("user.name", "vaeline"), ("user.email", "vaeline@localhost")):  # DVC commits experiments
        git(folder, "config", name, try_git(root, "config", name) or default)
    project = folder / prefix
    if not (project / "dvc.yaml").is_file():
        raise UserError(f"commit {commit} has no {prefix}dvc.yaml")
    if cache and (root / "dvc.lock").exists():
        shutil.copy(root / "dvc.lock", project / "dvc.lock")
    _set_cache(root, project, cache)
    return project


def _set_cache(root: Path, project: Path, cache: Path | None) -> None:
    """Name the clone's DVC cache; a shared one is linked in the way that this machine's settings ask for."""
    local = configparser.ConfigParser(interpolation=None)
    local.read(root / ".dvc" / "config.local", encoding="utf-8")
    settings = configparser.ConfigParser(interpolation=None)
    links = dict(local["cache"]) if cache and local.has_section("cache") else {}
    settings["cache"] = {**links, "dir": str(cache or project / ".dvc" / "cache")}
    with (project / ".dvc" / "config.local").open("w", encoding="utf-8") as file:
        settings.write(file)
