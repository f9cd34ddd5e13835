// One job, large: live while it runs, before and after under one slider when it is done.

import { call, downloadPath, hasKey, jobPath, request, showPicture, signatures, signLinks, withQuery } from "./api.js";
import { reopen } from "./bench.js";
import { Compare } from "./compare.js";
import { $, announce, h, setText, show, showMessage } from "./dom.js";
import { apply, cancel, erase, figures, jobOf, nameOf, queue, refresh, watch, words } from "./queue.js";
import { bytes, count, ENDED, percent, STATES } from "./words.js";

const RECONNECT_MS = 3000;
const SHARED_S = 7 * 24 * 3600;

let job = null;
let shownEnd = null; // the end that is on the page, so that it is built once
let compare = null;

export async function openJob(promptId) {
  closeJob();
  job = { prompt_id: promptId };
  show($("bench"), false);
  show($("job"), true);
  clear(jobOf(promptId));
  $("job-name").focus({ preventScroll: true });
  scrollTo({ top: 0 });
  await look(promptId);
}

export function closeJob() {
  job = null;
  shownEnd = null;
  compare?.close();
  compare = null;
  watch(null);
  $("result").replaceChildren();
  show($("job"), false);
}

function clear(known) {
  for (const id of ["result", "result-note", "warnings", "job-error", "download", "retry", "share", "delete", "shared", "preview"]) show($(id), false);
  setText($("job-name"), known ? nameOf(known) : "");
  setText($("step"), "");
  setText($("figures"), "");
  setText($("percentage"), "");
  $("progress").value = 0;
  delete $("preview").dataset.path;
  show($("running"), true);
}

async function look(promptId) {
  let status;
  try {
    status = await call(`status/${encodeURIComponent(promptId)}`);
  } catch (error) {
    if (job?.prompt_id !== promptId || error.status === 401) return;
    if (error.status === 404) return showUnknown();
    setText($("step"), error.message);
    setTimeout(() => job?.prompt_id === promptId && look(promptId), RECONNECT_MS);
    return;
  }
  if (job?.prompt_id !== promptId) return;
  job = status;
  watch(job);
  render();
}

function showUnknown() {
  history.replaceState(null, "", "#");
  window.dispatchEvent(new HashChangeEvent("hashchange"));
  showMessage($("form-error"), "This job is not known, or was deleted.");
}

function render() {
  setText($("job-name"), nameOf(job));
  setText($("job-state"), STATES[job.status]);
  $("job-state").dataset.state = job.status;
  const isOver = ENDED.includes(job.status);
  document.title = isOver ? `${STATES[job.status]} – Face swap` : `${percent(job.progress.percentage)} – Face swap`;
  show($("cancel"), !isOver);
  show($("delete"), isOver);
  show($("again"), isOver);
  show($("running"), !isOver);
  if (!isOver) return renderRunning();
  if (shownEnd === job.finished_at) return;
  shownEnd = job.finished_at;
  announce(`${nameOf(job)}: ${STATES[job.status]}.`);
  renderEnd();
}

function renderRunning() {
  shownEnd = null;
  for (const id of ["result", "warnings", "job-error", "download", "retry", "share"]) show($(id), false);
  $("cancel").disabled = job.progress.step === "Cancelling";
  const { percentage } = job.progress;
  setText($("percentage"), job.status === "QUEUED" ? placeWords(job) : percent(percentage));
  $("progress").value = percentage;
  setText($("step"), words({ ...job, progress: { ...job.progress, percentage: 0 } }));
  setText($("figures"), figures(job));
  show($("preview"), true);
  showPicture($("preview"), job.preview ?? withQuery(jobPath(job.prompt_id, "thumbnail"), "v=0"));
  if (percentage >= 10) announce(`${percent(Math.floor(percentage / 10) * 10)} done`);
}

function placeWords({ queue_position: place }) {
  if (!place) return "…";
  return place === 1 ? "Next" : `Place ${count(place)}`;
}

async function renderEnd() {
  const own = job;
  const isDone = own.status === "SUCCESS";
  show($("retry"), !isDone);
  show($("share"), isDone && hasKey());
  showMessage($("job-error"), isDone ? "" : own.error || (own.status === "CANCELLED" ? "This job was cancelled." : "This job failed."));
  $("warnings").replaceChildren(...own.warnings.map((warning) => h("li", {}, warning)));
  show($("warnings"), own.warnings.length > 0);
  if (!isDone) return;
  let signed;
  try {
    signed = await signatures(own.prompt_id);
  } catch (error) {
    return showMessage($("job-error"), error.message);
  }
  if (!isShown(own)) return;
  const path = downloadPath(own.result);
  $("download").href = withQuery(path, signed.result);
  setText($("download"), own.bytes ? `Download · ${bytes(own.bytes)}` : "Download");
  show($("download"), true);
  await showResult(own, withQuery(path, signed.result, "inline=1"), withQuery(jobPath(own.prompt_id, "video"), signed.video, "inline=1"));
}

/** Tell whether the page still shows the end of a job; its status may have come once more since. */
function isShown(own) {
  return job?.prompt_id === own.prompt_id && shownEnd === own.finished_at;
}

async function showResult(own, url, original) {
  const { at, start } = own.options;
  const isMoving = /\.gif$/i.test(own.result); // and cannot be held in step
  const isVideo = own.media !== "image" && !isMoving;
  const before = isMoving ? null : await typeOf(original);
  if (!isShown(own)) return;
  const container = $("result");
  show(container, true);
  compare?.close();
  compare = new Compare(container, {
    after: { url, isVideo },
    before: before && { url: original, isVideo: before.startsWith("video/") },
    offset: start ?? 0,
    at: at ?? (isVideo ? null : (start ?? 0)),
    name: nameOf(own),
  });
  const note = before || isMoving ? "" : "The original is erased already, so there is nothing to compare with.";
  showMessage($("result-note"), note);
  compare.root.addEventListener("alone", () => showMessage($("result-note"), "Your browser cannot show the original."));
  compare.after.addEventListener("error", () => isShown(own) && compare.after.hasAttribute("src") && resultGone(own));
}

/** Return the media type of the original, or null when it was erased. */
async function typeOf(path) {
  try {
    return (await request(path, { method: "HEAD" })).headers.get("Content-Type");
  } catch {
    return null;
  }
}

/** Tell why the result cannot be shown. */
async function resultGone(own) {
  try {
    await request(downloadPath(own.result), { method: "HEAD" });
    showMessage($("result-note"), "Your browser cannot show this result; download it to see it.");
  } catch (error) {
    show($("result"), false);
    show($("download"), false);
    showMessage($("job-error"), error.status === 410 || error.status === 404 ? "The result was erased from the server." : error.message);
  }
}

async function retry() {
  try {
    await call(jobPath(job.prompt_id, "retry"), { method: "POST" });
    await look(job.prompt_id);
    refresh();
  } catch (error) {
    showMessage($("job-error"), error.message);
  }
}

async function share() {
  try {
    const { result } = await signLinks(job.prompt_id, SHARED_S);
    const field = $("shared-link");
    field.value = withQuery(result.split("?")[0], new URL(result).search, "inline=1");
    show($("shared"), true);
    field.select();
    await navigator.clipboard?.writeText(field.value);
    announce("The link is copied.");
  } catch (error) {
    if (error.status) showMessage($("job-error"), error.message);
  }
}

export async function openAgain(promptId) {
  const status = jobOf(promptId) ?? (await call(`status/${encodeURIComponent(promptId)}`));
  if (location.hash.includes("job=")) location.hash = "";
  await reopen(status);
}

export function prepareViewer() {
  queue.addEventListener("live", ({ detail }) => {
    if (!job?.progress || detail.id !== job.prompt_id) return;
    apply(job, detail);
    if (!ENDED.includes(job.status)) render();
  });
  queue.addEventListener("change", () => {
    if (!job?.status) return;
    const known = jobOf(job.prompt_id);
    if (!known || (known.status !== job.status && ENDED.includes(known.status)) || (ENDED.includes(job.status) && !ENDED.includes(known.status))) return void look(job.prompt_id);
    if (ENDED.includes(known.status)) return;
    job = { ...known, preview: job.preview ?? known.preview };
    render();
  });
  queue.addEventListener("again", ({ detail }) => openAgain(detail).catch((error) => showMessage($("form-error"), error.message)));
  $("cancel").addEventListener("click", () => {
    $("cancel").disabled = true;
    setText($("step"), "Cancelling…");
    cancel(job.prompt_id);
  });
  $("retry").addEventListener("click", retry);
  $("share").addEventListener("click", share);
  $("again").addEventListener("click", () => openAgain(job.prompt_id));
  $("delete").addEventListener("click", async () => {
    if (await erase(job.prompt_id)) location.hash = "";
  });
}
