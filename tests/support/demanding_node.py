"""`python -m support.demanding_node join ...`: a node whose socket takes the calls of `Demand` too,
so that a test can be a reader without any of the readers."""

from typing import Any

from node import cli, view
from node.status import Command

_commands = view.View.commands


def commands(self: view.View) -> dict[str, Command]:
    """All commands, and `demand` with a `call` and its `arguments`."""

    def demand(request: dict[str, Any]) -> dict[str, Any]:
        if self.demand is None:
            return {"ready": False}
        getattr(self.demand, request["call"])(*request["arguments"])
        return {"ready": True, "evicts": self.demand.evicts}

    return {**_commands(self), "demand": demand}


if __name__ == "__main__":
    view.View.commands = commands  # type: ignore[method-assign]
    cli.main()
