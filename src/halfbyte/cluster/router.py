"""Ray's way of choosing a replica, with the choice that `halfbyte serve --replicas` makes."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from halfbyte.server.routing import choose


class PrefixRouter(RequestRouter):
    """Sends a request to the replica that should have its `key` in its cache, unless that is clearly busier.

    Ray asks the replicas of the first list first, and those of the second if they do not take the request.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Take what the deployment's configuration says of its replicas; Ray calls this."""
        self._sequences: int = kwargs["sequences"]

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica that should answer, then all others."""
        if pending_request is None or "key" not in pending_request.kwargs or not candidate_replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        named = {each.replica_id.unique_id: each for each in candidate_replicas}
        cache = self.replica_queue_len_cache
        loads = {name: cache.get(each.replica_id) or 0 for name, each in named.items()}
        first = named[choose(pending_request.kwargs["key"], loads, self._sequences)]
        return [[first], [each for each in candidate_replicas if each is not first]]
