"""`GET /metrics`: the counters of this process, and what its parts show when they are asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from aiohttp import web
from prometheus_client import Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .. import __version__
from ..metrics import REGISTRY, REQUESTS
from .keys import FEED, HUB, NODE, SCHEDULER
from .service import COUNTS, FREE_BYTES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The text format that every Prometheus reads."""

OTHER = "other"
"""The route, or the method, of a request for what there is not: its own words could be without number."""
REMEMBERED = 1024
"""Counters that are found at once: finding one among all takes longer than counting."""
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


async def get_metrics(request: web.Request) -> web.Response:
    """Send the service's figures in the text format of Prometheus."""
    app = request.app
    counts = await app[COUNTS].answer()
    free_bytes = await app[FREE_BYTES].answer()
    shown = _Shown([*REGISTRY.collect(), *_families(app, counts, free_bytes)])
    return web.Response(
        body=generate_latest(shown), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    )


def count_request(request: web.Request, response: web.StreamResponse) -> None:
    """Count a request that is about to be answered."""
    resource = request.match_info.route.resource
    _counter(request.method, OTHER if resource is None else resource.canonical, response.status).inc()


@lru_cache(REMEMBERED)
def _counter(method: str, route: str, status: int) -> Counter:
    return REQUESTS.labels(method if method in METHODS else OTHER, route, str(status))


class _Shown:
    """The families of one answer, in place of a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(app: web.Application, counts: Mapping[str, int], free_bytes: int | None) -> Iterator[Metric]:
    """Yield what the parts show now. Nothing here asks a database or an engine."""
    hub, node, feed, backends = app[HUB], app[NODE], app[FEED], app[SCHEDULER].backends
    yield _labelled("faceswap_build_info", "The version that runs.", "version", {__version__: 1})
    yield _gauge("faceswap_database_up", "1 while the database answers.", bool(counts))
    queue = {state.lower(): count for state, count in counts.items()}
    yield _labelled("faceswap_queue_jobs", "Jobs that have not ended, of all nodes.", "state", queue)
    yield _gauge("faceswap_watchers", "Open event streams of this node.", hub.watchers)
    yield _gauge("faceswap_event_lag", "Events that the slowest watcher has not been sent yet.", hub.lag)
    if feed.is_shared:
        yield _gauge("faceswap_feed_listening", "1 while other nodes are heard.", feed.listening)
        yield _gauge("faceswap_nodes", "Nodes that are alive, this one included.", len(node.others) + 1)
        held = sum(lease.holder == node.name for lease in node.leases)
    else:
        held = len(node.held)
    yield _gauge("faceswap_leases_held", "Leases that this node holds.", held)
    if free_bytes is not None:
        yield _gauge("faceswap_disk_free_bytes", "Free bytes where the files lie.", free_bytes)
    healthy = {backend.name: backend.healthy for backend in backends}
    yield _labelled("faceswap_engine_up", "1 while an engine can be given work.", "engine", healthy)
    in_flight = {backend.name: len(backend.in_flight) for backend in backends}
    yield _labelled("faceswap_engine_prompts", "Prompts that an engine has.", "engine", in_flight)
    reconnects = CounterMetricFamily(
        "faceswap_listener_reconnects", "Times the socket to an engine was opened again.", labels=["engine"]
    )
    for backend in backends:
        reconnects.add_metric([backend.name], backend.listener.reconnects)
    yield reconnects


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
