"""Who may keep the coordinator waiting, and for how long.

A call takes a thread from its first byte on, and holds it while its message comes in or while its
answers go out. So each caller has few places: one call more ends the one that has waited longest
for its caller, so that what a broken line left behind does not keep a member out. And a call whose
caller sends and takes nothing for a while is ended; it can be made again, and goes on where it
stood. What the coordinator itself takes long for does not count.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tapestry.errors import UnavailableError
from tapestry.wire.bulk import PUT_FRAGMENT
from tapestry.wire.limits import CALLS_OF_ONE, COMMIT_SECONDS, STALL_SECONDS
from tapestry.wire.statuses import status_from_errors


@dataclass(eq=False, slots=True)
class _Place:
    """One call."""

    end: Callable[[], object]
    stall_seconds: float
    waits_since: float | None = None
    """When it began to wait for its caller; None while the coordinator is at work."""


class Places(grpc.ServerInterceptor):
    """Gives every call a place while it lasts.

    A call of one message is served like one whose messages stream, which look the same on the wire:
    only then does gRPC tell that it began, and not first that its message is here.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with all places free."""
        self._clock = clock
        self._lock = threading.Lock()
        self._taken: dict[str, list[_Place]] = {}
        self.refused: Counter[str] = Counter()
        """Calls that ended with an error of ours, by its status."""

    @property
    def waiting(self) -> int:
        """How many calls wait for their callers."""
        return sum(place.waits_since is not None for place in self._all())

    def _all(self) -> list[_Place]:
        with self._lock:
            return [place for places in self._taken.values() for place in places]

    def end_stalled(self) -> None:
        """End the calls whose callers keep still; to be called every now and then."""
        now = self._clock()
        for place in self._all():
            since = place.waits_since
            if since is not None and now - since > place.stall_seconds:
                place.end()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Put a place around whatever serves the call."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        is_fragment = handler_call_details.method == PUT_FRAGMENT  # behind others, and large
        stall_seconds = COMMIT_SECONDS if is_fragment else STALL_SECONDS
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.request_streaming:
            gathering = self._gathering(handler.stream_unary, stall_seconds)
            return grpc.stream_unary_rpc_method_handler(gathering, *codecs)
        if handler.response_streaming:
            streaming = self._streaming(handler.unary_stream, stall_seconds)
            return grpc.stream_stream_rpc_method_handler(streaming, *codecs)
        unary = self._unary(handler.unary_unary, stall_seconds)
        return grpc.stream_unary_rpc_method_handler(unary, *codecs)

    def _unary(
        self, serve: Callable[[Any, grpc.ServicerContext], Any], stall_seconds: float
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        def placed(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: ANN401
            with self._place(context, stall_seconds) as place:
                return serve(self._only(requests, context, place), context)

        return placed

    def _streaming(
        self, serve: Callable[[Any, grpc.ServicerContext], Iterator[Any]], stall_seconds: float
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]]:
        def placed(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._place(context, stall_seconds) as place:
                for response in serve(self._only(requests, context, place), context):
                    with self._waiting(place):
                        yield response

        return placed

    def _gathering(
        self,
        serve: Callable[[Iterator[Any], grpc.ServicerContext], Any],
        stall_seconds: float,
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        def placed(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:  # noqa: ANN401
            with self._place(context, stall_seconds) as place:
                place.waits_since = self._clock()  # for its turn too, behind others of its caller
                return serve(self._each(requests, place), context)

        return placed

    def _each(self, requests: Iterator[Any], place: _Place) -> Iterator[Any]:
        """Yield the messages of a call; to wait for all of them is one waiting."""
        since = place.waits_since or self._clock()
        while True:
            with self._waiting(place, since=since):
                request = next(requests, None)
            if request is None:
                return
            paused = self._clock()
            yield request
            del request  # so that no piece is held while the next one comes
            since += self._clock() - paused

    def _only(self, requests: Iterator[Any], context: grpc.ServicerContext, place: _Place) -> Any:  # noqa: ANN401
        """Return the call's one message."""
        with self._waiting(place):
            request = next(requests, None)
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return request

    @contextmanager
    def _waiting(self, place: _Place, *, since: float | None = None) -> Iterator[None]:
        place.waits_since = self._clock() if since is None else since
        try:
            yield
        finally:
            place.waits_since = None

    @contextmanager
    def _place(self, context: grpc.ServicerContext, stall_seconds: float) -> Iterator[_Place]:
        """Take a place, at another call's expense if need be."""
        caller, place = _caller(context), _Place(context.cancel, stall_seconds)
        try:
            with status_from_errors(context):
                self._take(caller, place)
            yield place
        except Exception:
            code = getattr(context, "code", lambda: None)()
            with self._lock:
                self.refused["unknown" if code is None else code.name.lower()] += 1
            raise
        finally:
            self._leave(caller, place)

    def _take(self, caller: str, place: _Place) -> None:
        """Add a place.

        Raises:
            UnavailableError: The coordinator is at work for all that the caller has.
        """
        with self._lock:
            places = self._taken.setdefault(caller, [])
            oldest = None
            if len(places) >= CALLS_OF_ONE:
                waiting = {p: since for p in places if (since := p.waits_since) is not None}
                if not waiting:
                    raise UnavailableError(f"{len(places)} calls of {caller} are under way: wait")
                oldest = min(waiting, key=waiting.__getitem__)
                places.remove(oldest)
            places.append(place)
        if oldest is not None:
            oldest.end()

    def _leave(self, caller: str, place: _Place) -> None:
        """Give a place back, unless another call has it already."""
        with self._lock:
            places = self._taken.get(caller, [])
            if place in places:
                places.remove(place)
            if not places:
                self._taken.pop(caller, None)


def _caller(context: grpc.ServicerContext) -> str:
    """Return the name in the certificate, or where the call comes from if there is none."""
    names = context.auth_context().get("peer_spiffe_id", ())
    return next((bytes(name).decode() for name in names), context.peer().rsplit(":", 1)[0])
