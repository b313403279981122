"""Two real processes over gloo against one: the same steps, but for rounding."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from preloaded_process import PROCESSES
from small_training import CPU, Recorder, bumps, model, options, splits
from vaeline import config
from vaeline.data.batches import open_images
from vaeline.errors import UserError
from vaeline.training.build import build_model
from vaeline.training.device import Settings
from vaeline.training.process_group import ProcessGroup
from vaeline.training.randomness import Noise
from vaeline.training.splits import Splits, validate
from vaeline.training.trainer import Result, train

TOLERANCE = 2e-4  # relative: float32 sums in another order, over some tens of steps


class Job(NamedTuple):
    """A training, by one process or by one of a group; the last batch of an epoch has one image."""

    section: config.Train = options(epochs=4, flips=True)
    data: Splits = replace(splits(97), whole=bumps(97, 1, 10))
    model: config.Model = model()

    def train(self, group: ProcessGroup, folder: Path) -> Result:
        """Every process in a folder of its own: only that of rank zero is written."""
        recorder, own = Recorder(), folder / f"{group.size}-{group.rank}"
        how: dict[str, Any] = {"settings": Settings(checkpoint_seconds=0.0, log_every=3), "group": group}
        result = train(self.model, self.section, self.data, device=CPU, checkpoints=own, tracker=recorder, **how)
        assert (own.exists(), bool(recorder.points), bool(recorder.images)) == (group.is_rank_zero,) * 3
        return result


BINARY = Job(
    options(epochs=3, objective="iwae", samples=3, estimator="doubly-reparameterised"),
    splits(97, binarise="dynamic"),
    model(config.Bernoulli(kind="bernoulli")),
)


def validation(group: ProcessGroup) -> list[float]:
    vae = build_model(model(), (1, 8, 8), "elbo", seed=1)
    return list(asdict(validate(vae, open_images(bumps(1203, seed=3), CPU), Noise(1, CPU), group=group)).values())


def join(folder: Path, job: Job, rank: int) -> None:
    """Validate, train and diverge as one of two, and keep what came of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=2)
    group = ProcessGroup(rank, 2)
    np.save(folder / f"{rank}.npy", np.array(validation(group)))
    save_file(job.train(group, folder).model.state_dict(), folder / f"weights-{rank}")
    with pytest.raises(UserError, match="training diverged: the loss or its gradient is not finite at step"):
        job._replace(section=job.section.model_copy(update={"learning_rate": 1e30})).train(group, folder / "diverged")
    dist.destroy_process_group()


@pytest.mark.parametrize("job", [Job(), BINARY], ids=["elbo-gaussian", "iwae-bernoulli-dynamic"])
def test_mistake_8_two_processes_take_the_steps_that_one_takes_and_validate_and_diverge_together(
    tmp_path: Path, job: Job
):
    processes = [PROCESSES.Process(target=join, args=(tmp_path, job, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    alone = job.train(ProcessGroup(), tmp_path)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    found = [np.load(tmp_path / f"{rank}.npy").tolist() for rank in (0, 1)]
    assert found[0] == found[1] == pytest.approx(validation(ProcessGroup()), rel=1e-13)
    zero, other = (load_file(tmp_path / f"weights-{rank}") for rank in (0, 1))
    assert all(torch.equal(zero[name], other[name]) for name in zero)
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(zero[name], tensor, rtol=TOLERANCE * 10, atol=TOLERANCE)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_a_group_takes_each_row_of_a_batch_once(size: int, count: int):
    places = [ProcessGroup(rank, size).rows(count) for rank in range(size)]
    taken = [row for rows, fraction in places if fraction for row in range(count)[rows]]
    assert taken == list(range(count))
    assert sum(fraction for _, fraction in places) == pytest.approx(1)
    assert all(len(range(count)[rows]) >= 1 for rows, _ in places)


def test_a_group_refuses_free_bits(tmp_path: Path):
    with pytest.raises(UserError, match=r"^train\.free_bits: .* 2 processes.*allowed: 0$"):
        Job(options(free_bits=0.1)).train(ProcessGroup(0, 2), tmp_path)
