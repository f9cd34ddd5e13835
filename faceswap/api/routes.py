"""The routes: each path and method with its handler."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ..intake import defer_continue
from . import (
    deliveries,
    faces,
    files,
    jobs,
    metrics,
    openapi,
    page,
    rate_limit,
    service,
    signing,
    status,
    swap,
    uploads,
)
from .keys import STOPPING, SUBMITTER
from .middleware import add_common_headers


def add_routes(app: web.Application) -> None:
    """Add every public route, and the objects that only handlers share."""
    service.add_questions(app)
    app[STOPPING] = asyncio.Event()
    app[page.SAMPLE] = page.SampleClip()
    app.on_shutdown.append(_stop)
    app.on_response_prepare.append(_complete)
    app.add_routes(
        [
            web.post("/face-swap", swap.post_face_swap, expect_handler=defer_continue),
            web.post("/faces", faces.post_faces, expect_handler=defer_continue),
            web.get("/face-swap-ws", swap.face_swap_socket, allow_head=False),
            web.get("/status/{prompt_id}", status.get_status),
            web.get("/events/{prompt_id}", jobs.get_events, allow_head=False),
            web.get("/preview/{prompt_id}", jobs.get_preview),
            web.get("/jobs", jobs.get_jobs),
            web.post("/jobs/{prompt_id}/cancel", jobs.post_cancel),
            web.post("/jobs/{prompt_id}/retry", jobs.post_retry),
            web.patch("/jobs/{prompt_id}", jobs.patch_job),
            web.delete("/jobs/{prompt_id}", jobs.delete_job),
            web.get("/jobs/{prompt_id}/thumbnail", files.get_thumbnail),
            web.get("/jobs/{prompt_id}/deliveries", deliveries.get_deliveries),
            web.post("/jobs/{prompt_id}/deliveries/redeliver", deliveries.post_redeliver),
            web.post("/jobs/{prompt_id}/links", signing.post_links),
            web.get("/jobs/{prompt_id}/video", files.get_video),
            web.get("/jobs/{prompt_id}/image", files.get_image),
            web.get("/download/{filename}", files.download),
            web.options("/uploads", uploads.options_uploads),
            web.post("/uploads", uploads.post_uploads),
            web.get("/uploads/{upload_id}", uploads.get_upload),
            web.patch("/uploads/{upload_id}", uploads.patch_upload, expect_handler=defer_continue),
            web.post("/uploads/{upload_id}", uploads.post_upload, expect_handler=defer_continue),
            web.delete("/uploads/{upload_id}", uploads.delete_upload),
            web.get("/health", service.get_health),
            web.get("/livez", service.get_livez),
            web.get("/readyz", service.get_readyz),
            web.get("/metrics", metrics.get_metrics),
            web.get("/openapi.json", openapi.get_openapi),
            web.get("/docs", openapi.get_docs),
            web.get("/", page.get_root),
            web.get("/web/{name}", page.get_web_file),
        ]
    )
    openapi.add_description(app)


async def _complete(request: web.Request, response: web.StreamResponse) -> None:
    """Count an answer and add the headers that are not its handler's, just before it is sent."""
    add_common_headers(request, response)
    rate_limit.add_allowance(request, response)
    uploads.add_tus_headers(request, response)
    metrics.count_request(request, response)


async def _stop(app: web.Application) -> None:
    app[STOPPING].set()
    app[SUBMITTER].uploads.stop()
