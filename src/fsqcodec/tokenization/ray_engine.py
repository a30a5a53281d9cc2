"""Parts on a Ray cluster: actors hold the model and write the shards, each takes another part when it is done with one.

All machines must see the source, the model and the output folder under the same paths. What travels through Ray are
numbers: a part whose actor dies is done again when Ray has started it anew, and its shard is the same.
"""

import os
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from .run import Run, Settings

OBJECT_STORE_BYTES = 2**27  # of a cluster that is started here


def tokenize_parts(run: "Run", parts: list[int], address: str | None) -> Iterator[dict[str, float]]:
    """Write the shards of `parts`; yields `num_rows`, `seconds` of audio and `num_errors` of each.

    Args:
        address: of a cluster; by default one is started, unless `ray.init` was called before.

    Raises `ValueError` as `Run.tokenize_part`, `ConnectionError` where there is no cluster.
    """
    if not parts:
        return
    if not ray.is_initialized():
        local = {} if address else {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") else "CPU"
    worker_class = ray.remote(**{f"num_{kind.lower()}s": 1}, max_restarts=-1, max_task_retries=-1)(_Worker)
    arguments = run.settings, os.path.abspath(run.output_dir), os.getcwd()
    waiting = iter(parts)
    running = {}  # by what an actor is asked for, the actor: one that is not here any more ends, and frees its device
    for part in islice(waiting, int(resources[kind])):
        worker = worker_class.remote(*arguments)
        running[worker.tokenize_part.remote(part)] = worker
    while running:
        (done,), _ = ray.wait(list(running))
        worker = running.pop(done)
        if (part := next(waiting, None)) is not None:
            running[worker.tokenize_part.remote(part)] = worker
        del worker
        try:
            yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error


class _Worker:
    def __init__(self, settings: "Settings", output_dir: str, working_dir: str):
        self.settings, self.output_dir, self.working_dir = settings, output_dir, working_dir

    @cached_property
    def run(self) -> "Run":
        """Made with the first part, so that what goes wrong is an error of a task, which Ray passes on as it is."""
        from .run import Run

        os.chdir(self.working_dir)  # what relative paths are meant from
        return Run(self.settings, Path(self.output_dir), None)

    def tokenize_part(self, part: int) -> dict[str, float]:
        rows = list(self.run.tokenize_part(part))
        return {
            "num_rows": len(rows),
            "seconds": sum(row.num_samples for row in rows) / self.run.codec.input_sampling_rate,
            "num_errors": sum(row.error is not None for row in rows),
        }
