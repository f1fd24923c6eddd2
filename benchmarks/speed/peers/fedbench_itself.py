"""fedbench, with the engine that it is asked for. Its draws also depend on the round."""

import sys
from contextlib import closing
from pathlib import Path

from fedbench.workers import start_importing

if __name__ == "__main__" and '"processes"' in sys.argv[1]:
    start_importing()  # as the command line does

from workload import Workload, asked

from fedbench.federation.federation import Federation


def main() -> None:
    """Local training is its own (`training.local.fit`), with the arithmetic of `bare_fit`."""
    work = asked()
    workload = Workload(work)
    with closing(Federation(workload.experiment, Path(work.folder))) as federation:
        for record in federation.rounds():
            workload.report(sum(upload.num_steps for upload in record.uploads.values()), federation.server.state)


if __name__ == "__main__":
    main()
