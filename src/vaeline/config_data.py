"""Section `data` of `params.yaml`: where images come from and how they are split. See `config.py`."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from vaeline.io.yaml_config import Section

Binarise = Literal["none", "static", "dynamic"]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[FiniteFloat, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Download(Section):
    """A public data set, fetched and checked against pinned SHA-256 digests."""

    kind: Literal["fashion-mnist", "mnist", "kmnist", "cifar10", "svhn"]


class Digits(Section):
    """scikit-learn's 1,797 digits of 8 x 8 pixels; needs no network."""

    kind: Literal["digits"]


class Folder(Section):
    """A folder of PNG or JPEG images; its subfolders, if any, are the labels."""

    kind: Literal["folder"]
    path: str
    size: Annotated[int, Field(ge=4, le=1024)] | None = None  # resize to size x size pixels
    mode: Literal["L", "RGB"] | None = None  # convert


class Npz(Section):
    """An .npz file with `images` (uint8, N x H x W or N x H x W x C) and, if wanted, `labels` (N)."""

    kind: Literal["npz"]
    path: str


class Shapes(Section):
    """Synthetic shapes with known factors: shape, size, position, angle, hue."""

    kind: Literal["shapes"]
    count: Annotated[int, Field(ge=10, le=10_000_000)] = 20_000
    size: Annotated[int, Field(ge=8, le=512)] = 32  # pixels
    seed: Seed = 1


Source = Annotated[Download | Digits | Folder | Npz | Shapes, Field(discriminator="kind")]


class Data(Section):
    """Section `data`: serves the stages fetch (`data.source`) and prepare."""

    source: Source
    binarise: Binarise
    validation: Count | Fraction
    test: Literal["auto"] | Count | Fraction
    seed: Seed
