"""Export to diffusers: a folder that `AutoencoderKL.from_pretrained` reads, config.json and safetensors.

Its `encode` takes pixels as u8 / 127.5 - 1; (`decode(z)` + 1) / 2 is the likelihood's output, the picture on [0, 1].
"""

import json
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import save

from vaeline import config
from vaeline.config.train import INIT_CONFIG, INIT_WEIGHTS
from vaeline.core.autoencoder_kl import to_diffusers
from vaeline.errors import UserError, optional_imports
from vaeline.io.atomic_write import write_files
from vaeline.serving.model_files import LoadedModel
from vaeline.training.build import kl_sizes

# in float64, where rounding does not grow with the network: |difference| <= TOLERANCE * max(1, |vaeline's|)
TOLERANCE = 1e-9
EXAMPLES = 4  # images on which both are compared


@torch.no_grad()
def export_diffusers(loaded: LoadedModel, folder: Path) -> tuple[float, float]:
    """Write the two files of a model on the CPU; those of an earlier export are replaced together.

    Returns the largest difference of the encoder's numbers and of the pictures between diffusers and vaeline, both in
    float64, in parts of max(1, |value|). Raises UserError, before anything is written, where one is above TOLERANCE,
    and for another network than AutoencoderKL.
    """
    vae, network, description = loaded.vae, loaded.config.model.network, loaded.config
    if not isinstance(network, config.AutoencoderKl) or vae.deterministic:
        found = f"model.network.kind: found '{network.kind}'" if not vae.deterministic else "objective: 'autoencoder'"
        raise UserError(f"{found}; allowed for diffusers: 'autoencoder-kl', trained as a VAE")
    with optional_imports("diffusion"):
        import diffusers
    sizes = kl_sizes(network)
    arguments = sizes.arguments(vae.shape) | {"sample_size": max(vae.shape[1:])}
    arguments |= {"scaling_factor": description.scale_factor or 1.0, "shift_factor": description.shift_factor}
    theirs, weights = diffusers.AutoencoderKL(**arguments), to_diffusers(vae.state_dict())
    theirs.load_state_dict(weights)
    pixels = torch.randint(0, 256, (EXAMPLES, *vae.shape), generator=torch.Generator().manual_seed(EXAMPLES))
    ours, theirs, pixels = deepcopy(vae).double(), theirs.double().eval(), pixels.double()
    for part in (*ours.modules(), *theirs.modules()):
        if hasattr(part, "upcast_softmax"):  # to float32, which is down here
            part.upcast_softmax = False
    posterior, found = ours.encode(ours.likelihood.observe(pixels, None)), theirs.encode(pixels / 127.5 - 1).latent_dist
    pictures = (theirs.decode(posterior.mean.view(-1, *sizes.latents(vae.shape))).sample + 1) / 2
    pairs = [(found.mean.flatten(1), posterior.mean), (found.logvar.flatten(1), posterior.log_variance)]
    pairs += [(pictures, ours.decode(posterior.mean))]
    errors = [float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs]
    if not all(error <= TOLERANCE for error in errors):  # NaN is not
        raise UserError(f"{folder}: diffusers differs by {max(errors):.1e}; allowed: {TOLERANCE:.0e}; nothing written")
    about = dict(theirs.config) | {"_class_name": "AutoencoderKL", "_diffusers_version": diffusers.__version__}
    about = {name: value for name, value in about.items() if not name.startswith("_use_default")}
    text = json.dumps(about | {"_vaeline_model_digest": loaded.digest}, indent=2, sort_keys=True) + "\n"
    content = save(weights, {"format": "pt"})  # one key: safetensors puts several in any order
    write_files({folder / INIT_WEIGHTS: content, folder / INIT_CONFIG: text.encode()})
    return max(errors[:2]), errors[2]
