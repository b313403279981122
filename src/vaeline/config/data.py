"""Section `data` of `params.yaml`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vaeline.io.yaml_config import BY_KIND, Count, Fraction, Location, Section, Seed

Shape = tuple[int, int, int]  # C, H, W
Binarise = Literal["none", "static", "dynamic"]
SHAPES: dict[str, Shape] = {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "svhn": (3, 32, 32)}
SHAPES |= dict.fromkeys(("fashion-mnist", "mnist", "kmnist"), (1, 28, 28))


class Download(Section):
    """A public data set, checked against pinned SHA-256 digests; digits: scikit-learn's 1,797, without a network."""

    kind: Literal["fashion-mnist", "mnist", "kmnist", "cifar10", "svhn", "digits"]


class Folder(Section):
    """A folder of PNG or JPEG images; its subfolders, if any, are the labels."""

    kind: Literal["folder"]
    path: Location  # of the folder, from the repository or absolute
    size: Annotated[int, Field(ge=4, le=1024)] | None = None  # resize to size x size pixels
    fit: Literal["crop", "stretch", "pad"] = "crop"  # how sides become equal; pad: with background
    mode: Literal["L", "RGB"] | None = None  # convert; transparent pixels are composited on background
    background: Literal["white", "black"] = "white"  # below transparent pixels, and of pad


class Npz(Section):
    """An .npz file with `images` (uint8, N x H x W or N x H x W x C) and, if wanted, `labels` (N, of any values)."""

    kind: Literal["npz"]
    path: Location  # of the file, from the repository or absolute


class Shapes(Section):
    """Synthetic shapes with known factors: shape, size, position, angle, hue."""

    kind: Literal["shapes"]
    count: Annotated[int, Field(ge=10, le=10_000_000)] = 20_000  # images
    size: Annotated[int, Field(ge=8, le=512)] = 32  # pixels
    seed: Seed = 1  # of the factors


Source = Annotated[Download | Folder | Npz | Shapes, BY_KIND]


class Crop(Section):
    """Square parts of images: the middle, or for training one at a random place, drawn anew each epoch."""

    kind: Literal["centre", "random"]
    size: Annotated[int, Field(ge=4, le=1024)]  # pixels


class Data(Section):
    """Section `data`: serves the stages fetch (`data.source`) and prepare."""

    source: Source
    crop: Crop | None = None
    binarise: Binarise  # grey values as probabilities of a white pixel: once, or for training anew each epoch
    validation: Count | Fraction  # images held out of the training split: a count, or a fraction
    test: Literal["auto"] | Count | Fraction  # auto: the source's own split, else as many as validation
    seed: Seed  # of the splits and of static binarisation

    @property
    def title(self) -> str:
        """Name of the data set for people: a folder's or file's own."""
        return Path(getattr(self.source, "path", "")).name or self.source.kind

    def known_shape(self) -> Shape | None:
        """The shape of prepared images where params decide it, with the fewest channels there may be.

        Raises ValueError as `cropped`.
        """
        shape = self.whole_shape()
        return shape and self.cropped(shape)

    def whole_shape(self) -> Shape | None:
        """The same before `crop`."""
        match self.source:
            case Shapes(size=size):
                return (3, size, size)
            case Folder(size=int(size), mode=mode):
                return (3 if mode == "RGB" else 1, size, size)
            case Download(kind=kind):
                return SHAPES[kind]
        return None

    def cropped(self, shape: Shape) -> Shape:
        """The shape of prepared images. Raises ValueError where images of this shape are smaller than the crop."""
        if self.crop is None:
            return shape
        if self.crop.size > min(shape[1:]):
            raise ValueError(f"data.crop.size: found {self.crop.size}; allowed: at most {min(shape[1:])} pixels here")
        return (shape[0], self.crop.size, self.crop.size)
