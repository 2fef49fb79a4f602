"""Which model a node means, all models of this tracker, and the budgets of their accounts. Pure."""

from math import inf
from random import Random
from typing import Any

from p2p import messages as m
from p2p.errors import Refused
from p2p.ids import NodeId
from tracker.budget import Budget
from tracker.model import Model, Sends
from tracker.view import budget_status, model_status

MAX_MODELS = 10_000


def account_of(url: str) -> str:
    """The account of an origin whose node named none: its scheme and host."""
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.partition("/")[0].rpartition("@")[2]


class Directory:
    """Models by name.

    Args:
      origin: the model for nodes that name none.
      wall: unix time at `now` 0.
      rate_bytes_s, requests_s: what each account's origin may be asked; None: it is found out.
    """

    def __init__(
        self,
        origin: str,
        start_with: int,
        wall: float,
        rng: Random,
        rate_bytes_s: float | None = None,
        requests_s: float | None = None,
    ) -> None:
        self._origin = origin
        self._start_with = start_with
        self._wall = wall
        self._rng = rng
        self._limits = rate_bytes_s, requests_s
        self.models: dict[str, Model] = {}
        self.budgets: dict[str, Budget] = {}

    def _name(self, join: m.Join) -> str:
        if join.model:
            return join.model
        if join.origin or self._origin:
            return (join.origin or self._origin).rstrip("/")
        if len(self.models) == 1:
            return next(iter(self.models))
        raise Refused(
            "model", "no model was named: use --origin URL or --model NAME at the node, or "
            "--origin URL at the tracker",
        )  # fmt: skip

    def join(self, node: NodeId, join: m.Join, now: float) -> tuple[Model, Sends]:
        """A node joins the model that it means.

        Raises:
          Refused: it names none and there is no default, or there are too many.
        """
        name = self._name(join)
        if name not in self.models:
            if len(self.models) >= MAX_MODELS:
                raise Refused("model", f"this tracker has {MAX_MODELS} models already")
            origin = join.origin or self._origin
            budget = self._budget(join.account or account_of(origin))
            self.models[name] = Model(name, origin, self._start_with, self._wall, self._rng, budget)
        model = self.models[name]
        return model, model.joined(node, join, now)

    def _budget(self, account: str) -> Budget:
        return self.budgets.setdefault(account, Budget(*self._limits))

    def tick(self, now: float) -> Sends:
        """Do what has become due in every model."""
        sends: Sends = []
        for model in self.models.values():
            if model.next_deadline() <= now:
                sends += model.tick(now)
        return sends

    def next_deadline(self) -> float:
        """When `tick` is due."""
        return min((model.next_deadline() for model in self.models.values()), default=inf)

    def status(self) -> dict[str, Any]:
        """What people see."""
        return {
            "models": [model_status(model) for model in self.models.values()],
            "budgets": [budget_status(*entry) for entry in self.budgets.items()],
        }
