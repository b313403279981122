import struct
from pathlib import Path

import numpy as np
import pytest

from data_files import idx_bytes, packed
from vaeline.data.sources.idx import read_idx
from vaeline.errors import UserError

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
WHOLE = idx_bytes(IMAGES)


@pytest.mark.parametrize("pack", [bytes, packed])
def test_idx_round_trips_plain_and_gzipped(tmp_path: Path, pack) -> None:
    path = tmp_path / "images"
    path.write_bytes(pack(WHOLE))
    np.testing.assert_array_equal(read_idx(path, 3), IMAGES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "starts with nothing; allowed: 00 00 08 03"),
        (b"PK\3\4" + WHOLE, "starts with 50 4b 03 04; allowed: 00 00 08 03"),
        (idx_bytes(IMAGES[0]), "starts with 00 00 08 02; allowed: 00 00 08 03"),
        (bytes([0, 0, 0x0D, 3]) + WHOLE[4:], "starts with 00 00 0d 03"),
        (WHOLE[:9], "ends within its header; allowed: 3 sizes"),
        (WHOLE[:-1], "only 23 bytes after its header; allowed: exactly 2 x 3 x 4 = 24"),
        (WHOLE[:4] + struct.pack(">3I", 2, 3, 5) + bytes(24), "only 24 bytes after its header; allowed: exactly 2 x 3"),
        (WHOLE + b"x", "more bytes after its header; allowed: exactly 2 x 3 x 4 = 24"),
        (WHOLE[:4] + struct.pack(">3I", 0, 3, 4), "its header claims 0 x 3 x 4 bytes"),
        (WHOLE[:4] + b"\xff" * 12 + bytes(24), "claims 4294967295 x 4294967295 x 4294967295 bytes"),
        (packed(WHOLE[:4] + b"\xff" * 12 + bytes(24)), "claims 4294967295 x 4294967295 x 4294967295 bytes"),
        (packed(WHOLE)[:-9], "broken gzip"),
        (packed(WHOLE[:-1]), "only 23 bytes after its header; allowed: exactly 2 x 3 x 4"),
        (packed(WHOLE)[:-8] + bytes(8), "broken gzip: CRC check failed"),
        (packed(WHOLE)[:10] + bytes([255] * 20), "broken gzip"),
    ],
)  # fmt: skip
def test_anything_but_a_whole_idx_file_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_idx(path, 3)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "\n" not in message


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: cannot be read: No such file"):
        read_idx(tmp_path / "nowhere", 3)
