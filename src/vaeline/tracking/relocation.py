"""The repository's own store after its folder was moved or copied: MLflow keeps absolute addresses of artifacts."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from vaeline.errors import UserError
from vaeline.io.locks import locked

ADDRESSES = {  # columns of MLflow's tables that may lead into the repository
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("storage_location", "source"),
}
OWN = "/.vaeline/artifacts"  # below the repository: where its experiments keep artifacts
WAIT_S = 60.0  # for another process's commit

log = logging.getLogger(__name__)


def relocate(database: Path) -> None:
    """Rewrite the addresses in a repository's `.vaeline/mlflow.db` that lead into the folder it was moved from.

    All of them in one transaction; nothing where they lead here already, or by another name of this folder. Raises
    UserError where the artifacts were left behind, or the database cannot be written.
    """
    repository = database.parents[1]
    try:
        if not (database.exists() and _elsewhere(database, repository)):
            return
        with locked(lock_of(database)):
            for old in _elsewhere(database, repository):
                _rewrite(database, Path(unquote(old.removeprefix("file://"))), repository)
    except sqlite3.OperationalError as error:
        raise UserError(f"{database}: {error}; it holds addresses of artifacts in another folder") from None


def lock_of(database: Path) -> Path:
    """Lock file of a sqlite store."""
    return database.with_name(f"{database.name}.lock")


def _elsewhere(database: Path, repository: Path) -> list[str]:
    """Other folders, as URIs, that experiments of the repository's own kind keep their artifacts in."""
    select = f"SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%{OWN}%'"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=WAIT_S)) as connection:
            found = {location.rpartition(OWN)[0] for (location,) in connection.execute(select)}
    except sqlite3.DatabaseError:
        return []  # new, or damaged: MLflow reports that
    return sorted(found - {repository.as_uri()})


def _rewrite(database: Path, old: Path, new: Path) -> None:
    there, here = Path(f"{old}{OWN}"), Path(f"{new}{OWN}")
    if there.exists() and here.exists() and there.samefile(here):
        return
    if there.exists() and not here.exists():
        fix = f"copy them too: cp -r '{there}' '{here}'; or move the database away: a new, empty one is made"
        raise UserError(f"{database}: its artifacts are in {there}, another repository's; {fix}")
    with closing(sqlite3.connect(database, timeout=WAIT_S)) as connection, connection:
        for table, columns in ADDRESSES.items():
            for column in columns:
                for before, after in ((f"{old.as_uri()}/", f"{new.as_uri()}/"), (f"{old}/", f"{new}/")):
                    update = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                    connection.execute(update, (after, len(before) + 1, len(before), before))
    log.warning("%s: moved or copied from %s: its runs and models now use the files here", database, old)
