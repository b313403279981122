"""The worker: its pool lets a flow run choose no command."""

import asyncio

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from pipeline.services.worker import JOB, POOL, TEMPLATE, make_pool


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
        make_pool(client)
        assert client.read_work_pool(POOL).base_job_template == TEMPLATE
