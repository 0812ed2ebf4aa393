"""Start Ray on this machine, or connect to a cluster, and decide how many actors there are and what each gets."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

SPARE = 6  # Ray's CPUs beside the actors', to read, filter and write: with fewer, a resumed run may wait for ever

# Of a Ray that is started here. Its log monitor would list all log files ten times a second, which takes a tenth of a
# core, to send this process lines that it does not show (`log_to_driver`).
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "1e9",
}


@contextlib.contextmanager
def ray_session(address: str | None, actors: int | None) -> Iterator[str | None]:
    """Give the folder of Ray's own files, or None where it is not known; at the end, stop what was started here.

    Args:
      address: of a cluster; None starts Ray on this machine, or takes the session that the caller has begun.
      actors: how many are wanted, or None.

    Raises:
      ValueError: there is no cluster at the address.
    """
    import ray
    import ray.data

    if ray.is_initialized():
        if address is not None:
            raise ValueError(f"Ray runs already, so it is not connected to {address!r}: call ray.shutdown() first.")
        yield None
        return
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is our error to report, in one line
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        # Logical CPUs: they say how many processes there may be, not how much each computes.
        cpus = max(os.cpu_count() or 1, actors or 1) + SPARE
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        session = ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        try:
            session = ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"There is no Ray cluster at {address!r}: {error}") from None
    try:
        yield getattr(session, "address_info", {}).get("session_dir")
    finally:
        ray.shutdown()


def share_of_each(actors: int | None, whole_host: bool) -> tuple[str, int, dict[str, Any]]:
    """Return the kind of device that computes ("cpu", "gpu" or "tpu"), the number of actors, what each asks of Ray.

    Args:
      actors: the caller's choice. None is one for each accelerator, or one if there is none.
      whole_host: whether an actor uses all chips of a TPU host, as an encoder does, or one.

    Raises:
      ValueError: the cluster has fewer accelerators than actors, or too few CPUs.
    """
    import ray

    have = ray.cluster_resources()
    gpus, tpus = int(have.get("GPU", 0)), int(have.get("TPU", 0))
    if tpus:
        hosts = [int(node["Resources"]["TPU"]) for node in ray.nodes() if node["Alive"] and "TPU" in node["Resources"]]
        chips = min(hosts) if whole_host else 1
        kind, most, share = "tpu", tpus // chips, {"num_cpus": 1, "resources": {"TPU": chips}}
    elif gpus:
        kind, most, share = "gpu", gpus, {"num_cpus": 1, "num_gpus": 1}
    else:
        kind, most, share = "cpu", None, {"num_cpus": 1}
    if actors is not None and most is not None and actors > most:
        raise ValueError(f"actors must be at most {most} on this cluster, one for each accelerator, got {actors}.")
    number = actors or most or 1
    if have.get("CPU", 0) < number + SPARE:
        raise ValueError(
            f"The cluster must have {number + SPARE} CPUs for {number} actors, {SPARE} of them to read and write with, "
            f"got {have.get('CPU', 0):g}: start Ray with a larger --num-cpus, which only counts processes."
        )
    return kind, number, share
