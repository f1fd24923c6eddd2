"""What clients keep between their visits, on disk, so that its size does not count against memory."""

from pathlib import Path

from fedbench.encoders.tensor_groups import StateDict
from fedbench.federation.payload import decode, encode
from fedbench.files import write_atomically


class ClientStates:
    """A file for each client and round; a state of an earlier stage, whose model had another shape, is none.

    The state of the visit before the latest one stays until the next: a round that is run again, because the run
    was killed in it, finds what it found the first time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, client: int, stage: int, round_index: int, state: StateDict) -> None:
        """Keep `state` (CPU or GPU tensors) as of this round."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = [path for path in self._files(client) if self._round(path) < round_index]
        write_atomically(self.folder / f"client{client:06d}-{round_index:06d}-{stage}.safetensors", encode(state))
        for path in before[:-1]:
            path.unlink()

    def load(self, client: int, stage: int, round_index: int) -> StateDict | None:
        """What was kept at this stage before this round, or None."""
        before = [path for path in self._files(client) if self._round(path) < round_index]
        if not before or before[-1].stem.rsplit("-", 1)[1] != str(stage):
            return None
        return decode(before[-1].read_bytes())

    def _files(self, client: int) -> list[Path]:
        return sorted(self.folder.glob(f"client{client:06d}-*.safetensors"))

    @staticmethod
    def _round(path: Path) -> int:
        return int(path.stem.split("-")[1])
