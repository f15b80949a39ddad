"""What may be changed: records published and taken out of service, fetches counted, inventories
put."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request

from registry.digest import canonical_json
from registry.errors import TrustListUnreadable, UntrustedArtifact
from registry.inventory import ModelInventory
from registry.server.guard import PUBLISHED, REPLACED
from registry.server.memory import Fetches
from registry.signing import ArtifactStatement, GivenSignatures, SigningKeys, statements
from registry.store import Registry
from registry.wire import API, Digest, InventoryKey, Prefix, Publication, Published, Revocation


class Publisher:
    """Puts what was sent into service, once its signatures are verified. `accepts_unsigned`: what
    carries none is taken as that, and no client uses its artifacts."""

    def __init__(self, registry: Registry, keys: SigningKeys, *, accepts_unsigned: bool) -> None:
        self._registry, self._keys, self._accepts_unsigned = registry, keys, accepts_unsigned

    def publish(self, sent: Publication, bodies: list[bytes], now: datetime) -> tuple[str, ...]:
        """Raises UntrustedArtifact where a signature is missing, or is none by a trusted key."""
        signer = sent.signer
        for record, body in zip(sent.records, bodies, strict=True):
            for statement in statements(record, body):
                self._verify(statement, signer)
        return self._registry.publish(sent.records, now=now, keys=signer, bodies=bodies)

    def _verify(self, statement: ArtifactStatement, signer: GivenSignatures) -> None:
        signature = signer.sign(statement)
        if signature is None and self._accepts_unsigned:
            return
        try:
            self._keys.verify(statement, signature)
        except TrustListUnreadable:
            raise  # the service's trouble, not the publisher's
        except UntrustedArtifact as error:
            raise UntrustedArtifact(error.message, hint=TRUST_HINT) from error


TRUST_HINT = "Whoever runs this registry adds the publisher's key with `tuner keys trust`."


class Writing:
    """`now` is the service's clock: no client says when something happened."""

    def __init__(
        self,
        registry: Registry,
        publisher: Publisher,
        fetches: Fetches,
        now: Callable[[], datetime],
    ) -> None:
        self._registry, self._publisher = registry, publisher
        self._fetches, self._now = fetches, now

    def router(self) -> APIRouter:
        routes = APIRouter(prefix=API, tags=["records"])
        routes.post("/records", status_code=201)(self.publish)
        routes.post("/records/{record_id}/revoke")(self.revoke)
        routes.post("/records/{record_id}/rollback")(self.rollback)
        routes.put("/records/{record_id}/pin")(self.pin)
        routes.delete("/records/{record_id}/pin")(self.unpin)
        routes.post("/fetches/{record_id}", status_code=204)(self.note_fetch)
        routes.put("/inventories", status_code=204)(self.put_inventory)
        return routes

    async def publish(self, sent: Publication, request: Request) -> Published:
        """Put records into service, all or none; the ids of those that are there then. A record
        that is there already changes nothing, and one that is older than another of its key,
        whatever became of that one, is not taken."""
        raw = json.loads(await request.body())["records"]
        bodies = [canonical_json(record) for record in raw]
        ids = await to_thread.run_sync(self._publisher.publish, sent, bodies, self._now())
        return _changed(request, *ids)

    def revoke(self, record_id: Prefix, sent: Revocation, request: Request) -> Published:
        """Take a record out of service for good."""
        revoked = self._registry.revoke(record_id, reason=sent.reason, now=self._now())
        return _changed(request, revoked)

    def rollback(self, record_id: Prefix, request: Request) -> Published:
        """Revoke a record and put the version before it into service, whose id is answered."""
        back = self._registry.rollback(record_id, now=self._now())
        return _changed(request, back.record.id)

    def pin(self, record_id: Prefix, request: Request) -> Published:
        """Prefer a record in service to all others for its own question."""
        return _changed(request, self._registry.pin(record_id, now=self._now()))

    def unpin(self, record_id: Prefix, request: Request) -> Published:
        """No longer prefer it."""
        return _changed(request, self._registry.unpin(record_id))

    def note_fetch(self, record_id: Digest) -> None:
        """Count that the record of this id was given out: written down soon."""
        self._fetches.note(record_id)

    def put_inventory(
        self, key: Annotated[InventoryKey, Query()], sent: ModelInventory, request: Request
    ) -> None:
        """Replace what is known of a model."""
        request.scope["state"][REPLACED] = key
        self._registry.put_inventory(key, sent, self._now())


def _changed(request: Request, *ids: str) -> Published:
    """The answer, which the audit names too."""
    request.scope["state"][PUBLISHED] = ids
    return Published(ids=ids)
