"""`vaeline init`: the sections `data` and `register` of params.yaml for a folder of images."""

import json
import re
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from vaeline.config import parse_params
from vaeline.data.sources.images import read_image, scan
from vaeline.errors import UserError
from vaeline.io.atomic_write import write_file
from vaeline.io.safe_read import shown
from vaeline.io.yaml_config import parse_yaml, read_yaml

LOOKED_AT = 2000  # images, evenly spread over the folder
SIDES = (64, 32)  # pixels, the larger first
DATA = re.compile(r"^data:[ \t]*\n(?:[ \t].*\n|[ \t]*\n)*", re.MULTILINE)  # what is indented below it
NAME = re.compile(r"(^register:.*?\bname: *)[^,}\s]+", re.MULTILINE | re.DOTALL)
SMALL = 2000  # images, of which a larger fraction is held out


def write_params(params: Path, folder: Path) -> list[str]:
    """Replace the two sections for the images of a folder; lines on what was found and chosen.

    Comments and the other sections stay. Raises UserError, params.yaml as it was, where the folder's images cannot be
    read or the other sections do not fit.
    """
    if not folder.is_dir():
        raise UserError(f"--images: {folder}: is not a folder; allowed: a folder of PNG or JPEG images")
    now = read_yaml(params)
    parse_params(now, str(params))
    data, name, lines = propose(folder.absolute())
    data["seed"] = now["data"]["seed"]
    text = DATA.sub(lambda found: _section(data, found[0]), params.read_text(encoding="utf-8"), count=1)
    text = NAME.sub(lambda found: found[1] + _literal(name), text, count=1)
    wanted = now | {"data": data, "register": now["register"] | {"name": name}}
    if parse_yaml(text, str(params)) != wanted:
        raise UserError(f"{params}: data and register are not written as vaeline init can change; set them by hand")
    parse_params(wanted, str(params))
    write_file(params, text.encode())
    return [*lines, f"written to {params}: data, register.name; next: vaeline run"]


def _section(data: dict[str, Any], before: str) -> str:
    """The section `data` as text, with the comments that stood beside its keys before."""
    notes = dict(re.findall(r"^  (\w+):[^#\n]*(#.*)", before, re.MULTILINE))
    lines = ["data:", "  source:", *(f"    {key}: {_literal(value)}" for key, value in data["source"].items())]
    for key, value in data.items():
        if key != "source":
            lines.append(f"  {f'{key}: {_literal(value)}':<25} {notes.get(key, '')}".rstrip())
    return "\n".join([*lines, "", ""])


def _literal(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*", value) and parse_yaml(value, "") == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def propose(folder: Path) -> tuple[dict[str, Any], str, list[str]]:
    """What section `data` is to hold, the model's name, and lines on why."""
    classes, files = scan(folder)
    sizes, modes, transparent = _look([path for path, _ in files[:: -(-len(files) // LOOKED_AT)]])
    source: dict[str, Any] = {"kind": "folder", "path": str(folder)}
    lines = [f"{len(files):,} images in {shown(str(folder))}: {_range(sizes)} pixels, {', '.join(sorted(modes))}"]
    if classes:
        counts = Counter(label for _, label in files)
        held = ", ".join(f"{shown(name, most=30)} {counts[i]:,}" for i, name in enumerate(classes[:10]))
        lines.append(f"classes, by subfolder: {held}{', ...' if len(classes) > 10 else ''}")
    side = int(median(min(size) for size in sizes))
    if len(set(sizes)) > 1 or len(set(sizes[0])) > 1 or side > max(SIDES):
        source |= {"size": next((s for s in SIDES if s <= side), max(4, side)), "fit": "crop"}
        lines.append(
            f"size: {source['size']}, from shorter sides of {side} in the median; fit: crop, or stretch, or pad"
        )
    if transparent or modes not in ({"L"}, {"RGB"}):
        source["mode"] = "L" if modes <= {"1", "L", "LA"} else "RGB"
        lines.append(f"mode: {source['mode']}{', transparent pixels on white (background)' if transparent else ''}")
    fraction = 0.15 if len(files) < SMALL else 0.1
    lines.append(f"validation and test: {fraction:.0%} each")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._")[:100] or "images"
    return {"source": source, "binarise": "none", "validation": fraction, "test": "auto"}, name, lines


def _look(paths: list[Path]) -> tuple[list[tuple[int, int]], set[str], bool]:
    """Their sizes, modes, and whether a pixel may be transparent; nothing is decoded."""
    from PIL import Image

    sizes, modes, transparent = [], set(), False
    for path in paths:
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                sizes.append(image.size)
                modes.add(image.mode)
                transparent |= image.has_transparency_data
        except Exception:  # Pillow raises many kinds
            height, width = read_image(path, mode="RGB").shape[1:]  # says what is wrong with it
            sizes.append((width, height))
            modes.add("RGB")
    return sizes, modes, transparent


def _range(sizes: list[tuple[int, int]]) -> str:
    least, most = (min(sizes, key=lambda size: size[0] * size[1]), max(sizes, key=lambda size: size[0] * size[1]))
    return " x ".join(map(str, least)) + ("" if least == most else f" to {' x '.join(map(str, most))}")
