"""What clients keep between their visits, on disk, so that its size does not count against memory."""

from pathlib import Path

from fedbench.federation.payload import StateDict, decode, encode


class ClientStates:
    """One file per client; a state of an earlier stage, whose model had another shape, counts as none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, client: int, stage: int, state: StateDict) -> None:
        """Keep `state` (CPU or GPU tensors); it replaces what was kept before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(client, stage)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(encode(state))
        temporary.replace(path)
        self._path(client, stage - 1).unlink(missing_ok=True)

    def load(self, client: int, stage: int) -> StateDict | None:
        """What was kept at this stage, or None."""
        path = self._path(client, stage)
        return decode(path.read_bytes()) if path.is_file() else None

    def _path(self, client: int, stage: int) -> Path:
        return self.folder / f"client{client:06d}-stage{stage}.safetensors"
