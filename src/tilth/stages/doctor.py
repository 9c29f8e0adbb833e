"""What runs left on this machine (snapshot managers that wait, sockets, shared memory), and its removal."""

from typing import Any

from tilth.recipe.console import quantity, say
from tilth.report import text_table
from tilth.train.survive.manager import Leftover, clean, leftovers
from tilth.train.survive.region import free_bytes, shared_folder


def doctor(remove: bool) -> dict[str, Any]:
    """Show every manager of this user on this machine; with `remove`, end those without a worker, and clear what
    managers that are gone have left. What a living worker uses is never touched."""
    found = leftovers()
    if found:
        say(text_table([row(one) for one in found], ["run", "place", "manager", "worker", "step", "memory", "state"]))
    else:
        say("No snapshot manager runs, and none has left anything.")
    folder = shared_folder()
    say(f"{folder}: {quantity(free_bytes(folder), 'B')} free")
    idle = [one for one in found if one.worker is None]
    for one in idle if remove else []:
        clean(one)
    if idle:
        say(f"{len(idle)} removed." if remove else f"{len(idle)} without a worker; to remove them: tilth doctor "
            f"--clean. A run that was cut off then goes on from its newest checkpoint.")
    return {"found": [{**vars(one), "paths": [str(path) for path in one.paths], "state": state(one)} for one in found],
            "removed": len(idle) if remove else 0, "shared_memory_free": free_bytes(folder)}


def row(one: Leftover) -> list[str]:
    return [one.key, str(one.place), str(one.pid or ""), str(one.worker or ""),
            "" if one.step is None else str(one.step), quantity(one.bytes, "B"), state(one)]


def state(one: Leftover) -> str:
    if one.worker:
        return "in use"
    return "waits for its run" if one.pid else "left behind"
