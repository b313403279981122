"""The worker: its pool lets a flow run choose no command, and its temporary files are its user's."""

import asyncio
import os
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from pipeline.services.worker import JOB, POOL, TEMPLATE, _make_pool, _own_folder
from vaeline.errors import UserError


def test_a_flow_runs_job_variables_choose_neither_command_nor_environment(prefect_api: str):
    """Mistake 22: job_variables."""
    values = {"command": "touch /tmp/x", "env": {"LD_PRELOAD": "x.so"}, "env.A": "b", "working_dir": "/etc"}

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        job = asyncio.run(ProcessJobConfiguration.from_template_and_values(TEMPLATE, values))
    assert (job.command, job.env, job.working_dir) == (JOB["command"], {}, None)


def test_a_pool_of_an_earlier_version_is_brought_up_to_date(prefect_api: str):
    with SyncPrefectClient(prefect_api) as client:
        default = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=default))
        _make_pool(client)
        assert client.read_work_pool(POOL).base_job_template == TEMPLATE


def test_each_user_has_a_folder_for_the_workers_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _own_folder() == _own_folder() == tmp_path / f"vaeline-{os.getuid()}"
    assert _own_folder().stat().st_mode & 0o777 == 0o700
    _own_folder().rename(tmp_path / "other")
    (tmp_path / f"vaeline-{os.getuid()}").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=f"vaeline-{os.getuid()}: must be a folder of this user's"):
        _own_folder()
