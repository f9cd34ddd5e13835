"""The figures of `GET /metrics`, read as Prometheus would."""

from __future__ import annotations

from pathlib import Path

from clips import make_clip
from prometheus_client.parser import text_string_to_metric_families
from service_rig import ServiceRig, service_and_engines
from waiting import eventually

from faceswap import samples


async def figures(service: ServiceRig) -> dict[tuple[str, ...], float]:
    """Return each figure by its name and the values of its labels, in the order of their names."""
    async with service.client.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = list(text_string_to_metric_families(await response.text()))
    samples_ = [sample for family in families for sample in family.samples]
    found = {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples_}
    assert len(found) == len(samples_)
    return found


async def test_a_job_shows_in_the_figures_of_every_stage_it_went_through(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=6)
    async with service_and_engines(tmp_path, paint=True) as (service, (engine,)):
        before, url = await figures(service), engine.url
        engine.hold()
        prompt_id = await service.post(clip)

        async def processing() -> bool:
            return (await figures(service))["faceswap_queue_jobs", "processing"] == 1

        await eventually(processing)
        assert (await figures(service))["faceswap_engine_prompts", url] == 1
        async with service.client.get(f"/events/{prompt_id}") as watching:
            await watching.content.readline()
            assert (await figures(service))["faceswap_watchers",] == 1
        engine.release()
        status = await service.ended(prompt_id)
        result = await service.download(status, tmp_path / "result.mp4")

        async def joined() -> dict[tuple[str, ...], float] | None:
            found, key = await figures(service), ("faceswap_stage_seconds_count", "done", "join")
            return found if found[key] > before.get(key, 0) else None

        after = await eventually(joined)  # it is counted when the job has ended

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert grown("faceswap_jobs_accepted_total") == 1
    assert {state: grown("faceswap_jobs_ended_total", state) for state in ("SUCCESS", "FAILED", "CANCELLED")} == {
        "SUCCESS": 1,
        "FAILED": 0,
        "CANCELLED": 0,
    }
    for stage in ("receive", "probe", "queue", "upload", "swap", "collect", "join"):
        assert grown("faceswap_stage_seconds_count", "done", stage) == 1, stage
    assert grown("faceswap_received_bytes_total") == clip.stat().st_size + samples.FACE.stat().st_size
    assert grown("faceswap_sent_bytes_total") == result.stat().st_size
    assert grown("faceswap_http_requests_total", "POST", "/face-swap", "200") == 1
    assert after["faceswap_engine_up", url] == 1
    assert after["faceswap_leases_held",] == 1
    assert after["faceswap_listener_reconnects_total", url] == 0
    assert after["faceswap_queue_jobs", "processing"] == after["faceswap_event_lag",] == 0
    assert after["faceswap_disk_free_bytes",] > 0


async def test_a_failed_job_is_counted_by_its_code_and_a_strange_request_makes_no_new_figure(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=3)
    async with service_and_engines(tmp_path, black_frame=True) as (service, _):
        before = await figures(service)
        await service.ended(await service.post(clip))
        async with service.client.request("PROPFIND", "/coffee/1234") as response:
            assert response.status == 404
        after = await figures(service)
    new = {key for key in after if key[0] == "faceswap_jobs_failed_total" and after[key] > before.get(key, 0)}
    assert len(new) == 1
    assert any(key[:3] == ("faceswap_http_requests_total", "other", "other") for key in after)
    assert not any("coffee" in word or "PROPFIND" in word for key in after for word in key)
