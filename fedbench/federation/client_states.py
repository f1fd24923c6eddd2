"""What clients keep between their visits, on disk, so that its size does not count against memory."""

import sys
from pathlib import Path

from fedbench.errors import UserError
from fedbench.files import write_atomically
from fedbench.tensor_file import DamagedError, pack, unpack
from fedbench.training.visit import Kept

OLDER = 2  # visits before the latest whose files stay


class ClientStates:
    """A folder for each client that keeps something, with a file for each of its last visits.

    The states of the two visits before the latest one stay: a run goes on from its newest checkpoint or, where
    that was damaged, from the one before it, and a round that is run again finds what it found the first time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, client: int, round_index: int, stage: int, kept: Kept) -> None:
        """Keep `kept` as of this round; nothing is written for a client that keeps nothing."""
        if not kept:
            return
        before = self._before(client, round_index)
        tensors = {
            f"{plugin}/{part}/{key}": value.detach().cpu().contiguous()
            for plugin, parts in kept.items()
            for part, values in parts.items()
            for key, value in values.items()
        }
        path = self._folder(client) / f"{round_index:06d}-{stage}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, pack({"client": client, "round": round_index}, tensors))
        for old in before[:-OLDER]:
            old.unlink()

    def load(self, client: int, round_index: int, stage: int) -> tuple[bool, Kept]:
        """What was kept before this round, and whether in this stage; (False, {}) if nothing was.

        UserError: it is not what was written.
        """
        before = self._before(client, round_index)
        if not before:
            return False, {}
        kept: Kept = {}
        try:
            _, tensors = unpack(before[-1])
        except DamagedError as error:
            raise UserError(f"what client {client} kept: {error}; the run can only be begun anew") from error
        for name, value in tensors.items():
            plugin, part, key = name.split("/", 2)
            kept.setdefault(plugin, {}).setdefault(part, {})[key] = value
        return before[-1].stem.split("-")[1] == str(stage), kept

    def damaged(self, round_index: int) -> Path | None:
        """The first file that a client would need in this round or later, and that is not what was written."""
        clients = sorted(int(folder.name) for folder in self.folder.glob("[0-9]*"))
        for newest in (before[-1] for client in clients if (before := self._before(client, round_index))):
            try:
                unpack(newest)
            except DamagedError:
                return newest
        return None

    def reach_back_to(self, round_index: int) -> bool:
        """Whether what clients had kept before this round is still there, for those that had kept something."""
        clients = (int(folder.name) for folder in self.folder.glob("[0-9]*"))
        return all(
            self._before(client, round_index) or len(self._before(client, sys.maxsize)) <= OLDER
            for client in clients
        )

    def _before(self, client: int, round_index: int) -> list[Path]:
        """Files of earlier rounds, in their order."""
        files = sorted(self._folder(client).glob("*.safetensors"))
        return [path for path in files if int(path.stem.split("-")[0]) < round_index]

    def _folder(self, client: int) -> Path:
        return self.folder / f"{client:06d}"
