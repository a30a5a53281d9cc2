"""Parts on a Ray cluster: Ray Data hands their numbers to a pool of actors, which hold the model and write the shards.

All machines must see the source, the model and the output folder under the same paths. What travels through Ray are
numbers: a part whose actor dies is done again by another one, and its shard is the same.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.data import ActorPoolStrategy, DataContext

if TYPE_CHECKING:
    from .run import Run, Settings

OBJECT_STORE_BYTES = 2**27  # of a cluster that is started here
PARTS_IN_FLIGHT = 2  # of an actor: one is worked on while the next is on its way


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
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") else "CPU"
    pool = ActorPoolStrategy(size=min(len(parts), int(resources[kind])), max_tasks_in_flight_per_actor=PARTS_IN_FLIGHT)
    done = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts)).map_batches(
        _Worker,
        fn_constructor_args=(run.settings, os.path.abspath(run.output_dir), os.getcwd()),
        batch_size=1,
        compute=pool,
        **{f"num_{kind.lower()}s": 1},
    )
    try:
        for row in done.iter_rows():
            if failure := row.pop("failure"):
                raise ValueError(failure)
            yield row
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _cause(error: BaseException) -> BaseException:
    """What an actor raised, below what Ray says about it."""
    inner = getattr(error, "cause", None) or error.__cause__
    return error if inner is None else _cause(inner)


class _Worker:
    def __init__(self, settings: "Settings", output_dir: str, working_dir: str):
        from .run import Run

        os.chdir(working_dir)  # what relative paths are meant from
        self.run = Run(settings, Path(output_dir), None)

    def __call__(self, batch: dict) -> dict:
        try:
            done = [list(self.run.tokenize_part(int(part))) for part in batch["part"]]
        except ValueError as error:  # as a row, since not every version of Ray passes on what an exception was
            return {"num_rows": [0], "seconds": [0.0], "num_errors": [0], "failure": [str(error)]}
        rate = self.run.codec.input_sampling_rate
        return {
            "num_rows": [len(rows) for rows in done],
            "seconds": [sum(row.num_samples for row in rows) / rate for rows in done],
            "num_errors": [sum(row.error is not None for row in rows) for rows in done],
            "failure": [""] * len(done),
        }
