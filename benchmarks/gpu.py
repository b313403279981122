"""`python -m benchmarks.gpu OUTPUT.md`: training on a GPU against an eager loop over a DataLoader and the roofline.

With `--device cpu` the same code in small. A step's roof is the larger of two times: floating-point operations of the
matrix products and convolutions over the measured rate of a matrix product; and the fewest bytes (uint8 pixels read,
float32 parameters and both of Adam's moments read and written) over the measured rate of a copy.
"""

import argparse
import hashlib
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import Speedometer, best, pixels, sections
from vaeline import config
from vaeline.core.objectives import elbo_terms
from vaeline.data.batches import open_images
from vaeline.evaluation.split_metrics import evaluate
from vaeline.training.build import build_model
from vaeline.training.device import Settings, reproducible
from vaeline.training.randomness import Noise
from vaeline.training.splits import Splits, validate
from vaeline.training.step import Batch, State, Stepper, losses
from vaeline.training.trainer import train

SHAPE = (1, 28, 28)
BINARY = config.Bernoulli(kind="bernoulli")
MLP = config.Model(latent_dim=20, network=config.Mlp(kind="mlp", hidden=[400]), likelihood=BINARY)
NETWORKS = {
    "MLP 784-400-20": MLP,
    "conv 32-64": config.Model(latent_dim=20, network=config.Conv(kind="conv"), likelihood=BINARY),
    "AutoencoderKL 32-64-64": config.Model(
        latent_dim=196, network=config.AutoencoderKl(kind="autoencoder-kl"), likelihood=config.Gaussian(kind="gaussian")
    ),
}
TWO_EPOCHS = sections()[1].model_copy(update={"epochs": 2})
LEARNED = MLP.model_copy(update={"likelihood": config.Gaussian(kind="gaussian")})
COLUMNS = (
    "network | batch | images/s | µs a step | µs of its graph | DataLoader loop, images/s | times | "
    "GFLOP | MB | roof, µs | of the roof | first step, s | peak, MiB"
)


def seconds(run: Callable[[], object], calls: int = 1, repeats: int = 1) -> float:
    """Seconds a call in the best of some runs of `calls` in a row; the device is waited for after a run."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else bool
    return best(lambda: ([run() for _ in range(calls)], wait()), repeats) / calls


class Measures:
    """Each measure is a line of text."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.images = np.where(pixels(2**16 if self.cuda else 64) > 99, 255, 0).astype(np.uint8)

    def ceilings(self) -> str:
        """The roofs: operations a second of a matrix product, bytes a second (read and written) of a copy."""
        size, dtype = (8192, torch.bfloat16) if self.cuda else (256, torch.float32)
        a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
        source = torch.randn(2**30 if self.cuda else 2**20, device=self.device)
        target = torch.empty_like(source)
        self.product = 2 * size**3 / seconds(lambda: a @ b, 10, 3)
        self.copying = 2 * source.nbytes / seconds(lambda: target.copy_(source), 5, 3)
        name = f"{torch.cuda.get_device_name() if self.cuda else 'CPU'}, PyTorch {torch.__version__}"
        return f"{name}: {self.product / 1e12:.2f} TFLOP/s, {self.copying / 1e9:,.0f} GB/s"

    def captured(self) -> str:
        """Captured steps with a learned sigma against plain ones, over batches of two sizes."""
        own, ends, sizes = torch.from_numpy(pixels(128)).to(self.device).float(), [], []
        for captures in (True, False):
            state, noise = State(build_model(LEARNED, SHAPE, "elbo", 1).to(self.device)), Noise(1, self.device)
            stepper = Stepper(state, TWO_EPOCHS)
            stepper.captures &= captures
            for number in range(20):
                noise.restart("step", number)
                x = own[: 128 if number % 3 else 77]
                stepper(Batch(x, noise.uniform(x.shape), noise.normal(len(x), 20)), 1e-3, torch.ones(()))
            ends.append(torch.cat([p.detach().flatten() for p in state.parameters]))
            sizes += sorted(stepper.graphs)
        return f"graphs for batches of {sizes}; largest difference {(ends[0] - ends[1]).abs().max().item():.1e}"

    def resumed(self) -> str:
        """Digests of weights, with a learned sigma: trained twice, and with two stops in the middle of epochs."""
        data, digests = Splits(pixels(2000 if self.cuda else 300), pixels(100), "none"), []
        for stops in ((-1,), (-1,), (2, 4, -1)):
            with tempfile.TemporaryDirectory() as folder:
                for stop in stops:
                    tracker = SimpleNamespace(flush=lambda: None, image=lambda *image: None)
                    tracker.metrics = lambda values, step, at=stop: step == at and signal.raise_signal(signal.SIGTERM)
                    where = {"checkpoints": Path(folder), "settings": Settings(log_every=1), "tracker": tracker}
                    with suppress(SystemExit):
                        result = train(LEARNED, TWO_EPOCHS, data, device=self.device, **where)
                weights = b"".join(w.numpy().tobytes() for w in result.model.state_dict().values())
                digests.append(hashlib.sha256(weights).hexdigest()[:16])
        return f"{'bit-identical' if len(set(digests)) == 1 else 'DIFFERENT'}: {', '.join(digests)}"

    def against_float64(self, section: config.Model) -> str:
        """Relative errors of the loss and of its gradient on a fresh batch."""
        own, normal, results = (torch.rand(64, *SHAPE) < 0.2) * 255, torch.randn(64, section.latent_dim), []
        for like in (torch.ones((), dtype=torch.float64), torch.ones((), device=self.device)):
            model = build_model(section, SHAPE, "elbo", 1).to(like)
            loss, _ = losses(model, Batch(own.to(like), None, normal.to(like)), like, 0.0)
            gradient = torch.autograd.grad(loss, list(model.parameters()))
            results.append((loss.item(), torch.cat([g.double().cpu().flatten() for g in gradient])))
        (exact, reference), (loss, gradient) = results
        return f"loss {abs(loss / exact - 1):.1e}, gradient {(gradient - reference).norm() / reference.norm():.1e}"

    def evaluation(self) -> str:
        """Seconds of what the stage evaluate measures, k = 100, and of an epoch's validation, by the MLP."""
        model, images = build_model(MLP, SHAPE, "elbo", 1).to(self.device), self.images[:10_000]
        source, noise = open_images(images, self.device), Noise(1, self.device)
        validation = seconds(lambda: validate(model, source, noise), repeats=2)
        how = {"importance_samples": 100, "proposal": "laplace", "active_units_threshold": 0.01, "seed": 1}
        whole = seconds(lambda: evaluate(model, images[:500], images, **how))
        return f"{len(images):,} images: {whole:.2f} s; an epoch's validation of as many: {validation * 1e3:.1f} ms"

    def loader_speed(self, section: config.Model, size: int) -> float:
        """Images a second of a loop with a DataLoader of one worker, in float32, that looks at the loss."""
        model, cuda = build_model(section, SHAPE, "elbo", 1).to(self.device), self.cuda
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        data = TensorDataset(torch.from_numpy(self.images).float() / 255)
        batches = iter(DataLoader(data, size, shuffle=True, num_workers=int(cuda), pin_memory=cuda))

        def step() -> None:
            x = next(batches)[0].to(self.device)
            optimiser.zero_grad()
            loss = -elbo_terms(model, x, torch.randn(len(x), model.latent_dim, device=self.device)).elbo.mean()
            loss.backward()
            loss.item()
            optimiser.step()

        step()
        return size / seconds(step, 2 if not cuda else 6 if size > 1000 else 60)

    def row(self, section: config.Model, size: int) -> str:
        """The columns after the network's name."""
        state = State(build_model(section, SHAPE, "elbo", 1).to(self.device))
        own = torch.from_numpy(self.images[:size]).to(self.device).float()
        batch, one = Batch(own, None, torch.randn(size, section.latent_dim, device=self.device)), torch.ones(())
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(losses(state.model, batch, one.to(self.device), 0.0)[0], state.parameters)
        flop, traffic = counter.get_total_flops(), own[0].numel() * size + 24 * sum(p.numel() for p in state.parameters)
        roof = max(flop / self.product, traffic / self.copying)
        stepper = Stepper(state, options := TWO_EPOCHS.model_copy(update={"batch_size": size}))
        first = seconds(lambda: stepper(batch, 1e-3, one))
        replay = stepper.graphs[size][1].replay if stepper.graphs else lambda: stepper(batch, 1e-3, one)
        graph = seconds(replay, 100 if self.cuda else 1, 3)
        speed, images = Speedometer(), np.tile(self.images, (4 if size > 1000 else 1, 1, 1, 1))
        with tempfile.TemporaryDirectory() as folder:
            where = {"checkpoints": Path(folder), "settings": Settings(log_every=len(images) // size // 2)}
            torch.cuda.reset_peak_memory_stats() if self.cuda else None
            train(section, options, Splits(images, images[:500], "none"), tracker=speed, device=self.device, **where)
        peak = torch.cuda.max_memory_allocated() if self.cuda else 0
        step, loop = size / speed.best, self.loader_speed(section, size)
        return (
            f"{size} | {speed.best:,.0f} | {step * 1e6:,.0f} | {graph * 1e6:,.0f} | {loop:,.0f} | "
            f"{speed.best / loop:.1f} | {flop / 1e9:.3f} | {traffic / 1e6:.1f} | {roof * 1e6:.1f} | "
            f"{roof / step:.1%} | {first:.2f} | {peak / 2**20:,.0f}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure; after each measure the file is there as far as it goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    chosen = parser.parse_args(arguments)
    measures, text = Measures(torch.device(chosen.device)), ""
    networks = NETWORKS if measures.cuda else {"MLP 784-400-20": MLP}
    lines: list[tuple[Any, ...]] = [
        ("{}\n", measures.ceilings),
        ("- captured steps against plain ones, learned sigma: {}", measures.captured),
        ("- trained twice, and stopped and resumed, learned sigma: {}", measures.resumed),
        *((f"- precision against float64, {name}: {{}}", measures.against_float64, m) for name, m in networks.items()),
        ("- evaluate, MLP: {}", measures.evaluation),
        (f"\n| {COLUMNS} |\n{'|---' * len(COLUMNS.split(' | '))}|", str),
    ]
    for size in (4096, 128) if measures.cuda else (16,):
        lines += [(f"| {name} | {{}} |", measures.row, section, size) for name, section in networks.items()]
    with reproducible(measures.device):
        for line, measure, *parameters in lines:
            try:
                text += line.format(measure(*parameters)) + "\n"
            except Exception as error:  # the rest can be measured all the same
                text += line.format(repr(error).partition("\n")[0]) + "\n"
            chosen.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
