// The jobs: what is on its way, in work and finished, each a card; one event stream makes the running one lively.

import { call, callWithJson, downloadPath, hasKey, jobPath, showPicture, signatures, withQuery } from "./api.js";
import { $, announce, confirm, h, iconButton, renderList, setText, show, showMessage } from "./dom.js";
import { trials } from "./trial.js";
import { withUploads } from "./tus.js";
import { ago, bytes, count, duration, ENDED, moment, percent, rate, STATES, stepWords } from "./words.js";

const PAGE = 24;
const BUSY_MS = 1500;
const IDLE_MS = 5000;
const RECONNECT_MS = 3000;
const LOWEST_PRIORITY = -10;
const HIGHEST_PRIORITY = 10;
const RETRIES_MS = [1000, 3000, 8000];

/** "change" when jobs were looked at, "live" with what the running job tells, "again" with a job to be opened anew. */
export const queue = new EventTarget();

const pending = []; // sent off here, but their files or the request are still on their way
let jobs = [];
let wanted = PAGE;
let cursor = null;
let timer = 0;
let stream = null;
let watched = null; // the job that the viewer shows, whose stream comes first

export const nameOf = (job) => job.label || job.output_prefix;
export const jobHash = (promptId) => `#job=${encodeURIComponent(promptId)}`;

// ── Sent off ──

/** Send a clip's job off once its files are there; resolves to its id, or null when it was given up. */
export async function sendOff(clip, prepared) {
  const entry = {
    key: `pending ${clip.key}`,
    name: clip.name,
    picture: clip.strip?.[0] ?? null,
    uploads: [...prepared.uploads],
    id: null, // of its job, once there is one
    isStopped: false,
    problem: null,
  };
  const key = idempotencyKey();
  pending.push(entry);
  for (const upload of entry.uploads) upload.addEventListener("change", render);
  render();
  let job = null;
  while (!job && !entry.isStopped) {
    try {
      job = await withUploads(entry.uploads, () => submit(entry, prepared, key));
    } catch (error) {
      if (entry.isStopped) break;
      await askToRetry(entry, error.message);
    }
  }
  prepared.release();
  entry.id = job && job.prompt_id;
  await refresh();
  remove(entry);
  return entry.id;
}

async function askToRetry(entry, message) {
  entry.problem = message;
  announce(`${entry.name}: ${message}`);
  render();
  await new Promise((resolve) => (entry.retry = resolve));
  entry.problem = null;
  for (const upload of entry.uploads) if (upload.error) upload.start();
  render();
}

async function submit(entry, prepared, key) {
  const body = await prepared.body();
  const headers = { Prefer: "respond-async", "Idempotency-Key": key };
  for (const pause of [...RETRIES_MS, null]) {
    if (entry.isStopped) return null;
    try {
      return await call("face-swap", { method: "POST", body, headers });
    } catch (error) {
      if (error.status || pause === null) throw error;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
  return null;
}

/** Return a name for a request by which the service knows it again, if its answer was lost. */
function idempotencyKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function remove(entry) {
  if (pending.includes(entry)) pending.splice(pending.indexOf(entry), 1);
  render();
}

function stop(entry) {
  entry.isStopped = true;
  remove(entry);
  entry.retry?.();
}

export const isSending = () => pending.some((entry) => !entry.id && !entry.problem);

// ── Looked at ──

export function watch(job) {
  watched = job;
  follow();
}

/** Look at the jobs now, and again after a pause that depends on what they do. */
export async function refresh() {
  clearTimeout(timer);
  try {
    const answer = await call(`jobs?limit=${wanted}`);
    jobs = answer.jobs;
    cursor = answer.next_cursor;
    render();
    follow();
    queue.dispatchEvent(new Event("change"));
  } catch {
    // The state of the service is shown at the top of the page.
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(refresh, jobs.some((job) => !ENDED.includes(job.status)) ? BUSY_MS : IDLE_MS);
}

export function stopRefreshing() {
  clearTimeout(timer);
  jobs = [];
  render();
}

export const jobOf = (promptId) => jobs.find((job) => job.prompt_id === promptId);

/** Follow the events of one job: the one in the viewer, else the first that runs. */
function follow() {
  const isGoing = (job) => job && !ENDED.includes((jobOf(job.prompt_id) ?? job).status);
  const job = isGoing(watched) ? watched : jobs.find((one) => one.status === "PROCESSING" && !trials.has(one.prompt_id));
  if (stream?.id === job?.prompt_id) return;
  stream?.source?.close();
  stream = job ? { id: job.prompt_id, source: null } : null;
  if (job) openStream(stream);
}

async function openStream(own) {
  let signed;
  try {
    signed = await signatures(own.id);
  } catch {
    return closeStream(own);
  }
  if (stream !== own) return;
  own.source = new EventSource(withQuery(`events/${encodeURIComponent(own.id)}`, signed.events));
  const on = (type, handle) => own.source.addEventListener(type, (event) => stream === own && event.data && handle(JSON.parse(event.data), event.lastEventId));
  on("queued", () => tell(own.id, {}));
  on("executing", (data) => tell(own.id, { step: data.message }));
  on("status", (data) => tell(own.id, { step: data.message }));
  on("progress", (data) => tell(own.id, { progress: data }));
  on("preview", (_, number) => tell(own.id, { preview: withQuery(`preview/${encodeURIComponent(own.id)}`, `n=${encodeURIComponent(number)}`) }));
  for (const type of ["completed", "cancelled", "error"]) on(type, refresh);
  own.source.addEventListener("error", (event) => {
    // An event with data is the job's own; the browser connects again by itself, unless the answer was no stream.
    if (event.data === undefined && own.source.readyState === EventSource.CLOSED) closeStream(own);
  });
}

function closeStream(own) {
  setTimeout(() => {
    if (stream !== own) return;
    own.source?.close();
    stream = null;
    refresh();
  }, RECONNECT_MS);
}

function tell(id, news) {
  const job = jobOf(id);
  if (job) apply(job, news);
  queue.dispatchEvent(new CustomEvent("live", { detail: { id, ...news } }));
  render();
}

/** Bring what is known of a job up to date with what its stream told. */
export function apply(job, { step, progress, preview }) {
  if (step) job.progress.step = step;
  if (preview) job.preview = preview;
  if (!progress) return;
  job.status = "PROCESSING";
  Object.assign(job.progress, { percentage: progress.percentage, current: progress.current, total: progress.total, fps: progress.fps });
  job.eta_seconds = progress.eta_seconds;
}

/** Return one line about a job under way. */
export function words(job) {
  if (job.status === "QUEUED") {
    const parts = [stepWords(job.progress.step)];
    if (job.queue_position) parts.push(job.queue_position === 1 ? "next" : `place ${count(job.queue_position)}`);
    if (job.wait_seconds > 1) parts.push(`starts in about ${duration(job.wait_seconds)}`);
    return parts.join(" · ");
  }
  const parts = [job.progress.step === "Queued" ? "Starting" : stepWords(job.progress.step)];
  if (job.progress.percentage) parts.push(percent(job.progress.percentage));
  if (job.eta_seconds !== null && job.eta_seconds !== undefined) parts.push(`${duration(job.eta_seconds)} left`);
  return parts.join(" · ");
}

/** Return the numbers about a job under way. */
export function figures(job) {
  const { current, total, fps } = job.progress;
  if (job.status !== "PROCESSING" || !total) return "";
  return [`${count(current)} of ${count(total)} frames`, fps ? rate(fps) : null].filter(Boolean).join(" · ");
}

// ── Shown ──

function render() {
  const visible = jobs.filter((job) => !trials.has(job.prompt_id));
  const place = (job) => job.queue_position ?? 0;
  const running = visible.filter((job) => job.status === "PROCESSING");
  const waiting = visible.filter((job) => job.status === "QUEUED").sort((one, other) => place(one) - place(other));
  const active = [...running.reverse(), ...waiting];
  const ended = visible.filter((job) => ENDED.includes(job.status));
  const unknown = pending.filter((entry) => !jobOf(entry.id));
  renderList($("active"), [...active, ...unknown], (one) => one.key ?? one.prompt_id, (one) => (one.key ? makePending(one) : makeRow(one)), (row, one) => {
    if (one.key) updatePending(row, one);
    else updateRow(row, one, waiting);
  });
  renderList($("finished"), ended, (job) => job.prompt_id, makeCard, updateCard);
  show($("queue"), active.length + unknown.length > 0);
  show($("ended"), ended.length > 0);
  show($("more"), Boolean(cursor));
}

function makePending(entry) {
  const picture = h("canvas", { class: "thumb", "aria-hidden": "true" });
  if (entry.picture) {
    [picture.width, picture.height] = [entry.picture.width, entry.picture.height];
    picture.getContext("2d").drawImage(entry.picture, 0, 0);
  }
  return h(
    "li",
    { class: "job" },
    picture,
    h("div", { class: "about" }, h("h3", { dir: "auto" }, entry.name), h("p", { class: "words" }), h("progress", { max: 100, "aria-label": `${entry.name}: sent` }), h("p", { class: "alert", role: "alert", hidden: true })),
    h("div", { class: "row tight" }, h("button", { type: "button", class: "small again", hidden: true, onclick: () => entry.retry?.() }, "Try again"), iconButton("close", `Remove ${entry.name}`, () => stop(entry))),
  );
}

function updatePending(row, entry) {
  const size = entry.uploads.reduce((sum, upload) => sum + upload.file.size, 0);
  const sent = entry.uploads.reduce((sum, upload) => sum + upload.sent, 0);
  row.querySelector("progress").value = size ? (100 * sent) / size : 100;
  setText(row.querySelector(".words"), sent < size ? `Sending · ${bytes(sent)} of ${bytes(size)}` : "Checking the files…");
  showMessage(row.querySelector(".alert"), entry.problem);
  show(row.querySelector("progress"), !entry.problem);
  show(row.querySelector(".words"), !entry.problem);
  show(row.querySelector(".again"), Boolean(entry.problem));
}

function thumbnail(job) {
  const picture = h("img", { alt: "", loading: "lazy" });
  picture.addEventListener("error", () => picture.classList.add("missing"));
  picture.addEventListener("load", () => picture.classList.remove("missing"));
  return h("a", { class: "thumb", href: jobHash(job.prompt_id), tabindex: "-1", "aria-hidden": "true" }, picture);
}

function makeRow(job) {
  const name = nameOf(job);
  const id = job.prompt_id;
  return h(
    "li",
    { class: "job" },
    thumbnail(job),
    h("div", { class: "about" }, h("h3", { dir: "auto" }, h("a", { href: jobHash(id) }, name)), h("p", { class: "words" }), h("progress", { max: 100, "aria-label": `${name}: progress` })),
    h("div", { class: "row tight" }, iconButton("up", `Move ${name} up`, () => move(id, -1), "icon-button up"), iconButton("down", `Move ${name} down`, () => move(id, 1), "icon-button down"), iconButton("close", `Cancel ${name}`, () => cancel(id))),
  );
}

function updateRow(row, job, waiting) {
  const place = waiting.indexOf(job);
  row.classList.toggle("running", job.status === "PROCESSING");
  showPicture(row.querySelector("img"), job.preview ?? withQuery(jobPath(job.prompt_id, "thumbnail"), "v=0"));
  setText(row.querySelector(".words"), words(job));
  row.querySelector("progress").value = job.progress.percentage;
  show(row.querySelector("progress"), job.status === "PROCESSING");
  show(row.querySelector(".up"), place >= 0 && waiting.length > 1);
  show(row.querySelector(".down"), place >= 0 && waiting.length > 1);
  row.querySelector(".up").disabled = place === 0;
  row.querySelector(".down").disabled = place === waiting.length - 1;
}

function makeCard(job) {
  const name = nameOf(job);
  const id = job.prompt_id;
  const download = h("a", { class: "icon-button download", download: "", "aria-label": `Download ${name}`, title: "Download", hidden: true }, iconButton("download", "").firstChild);
  download.addEventListener("click", (event) => hasKey() && downloadSigned(event, id));
  return h(
    "li",
    { class: "card finished" },
    thumbnail(job),
    h("div", { class: "about" }, h("h3", { dir: "auto" }, h("a", { href: jobHash(id) }, name)), h("p", { class: "note" }, h("span", { class: "chip" }), h("time", {}))),
    h("p", { class: "reason", hidden: true }),
    h("div", { class: "row tight" }, download, iconButton("again", `${name} again with other options`, () => queue.dispatchEvent(new CustomEvent("again", { detail: id }))), h("span", { class: "grow" }), iconButton("delete", `Delete ${name}`, () => erase(id))),
  );
}

function updateCard(card, job) {
  const chip = card.querySelector(".chip");
  setText(chip, STATES[job.status]);
  chip.dataset.state = job.status;
  const time = card.querySelector("time");
  setText(time, ago(job.finished_at));
  time.dateTime = job.finished_at;
  time.title = moment(job.finished_at);
  const download = card.querySelector(".download");
  show(download, Boolean(job.result));
  if (job.result) download.href = downloadPath(job.result);
  showMessage(card.querySelector(".reason"), job.status === "FAILED" ? job.error : "");
  showPicture(card.querySelector("img"), withQuery(jobPath(job.prompt_id, "thumbnail"), `v=${Date.parse(job.finished_at)}`));
}

// ── Done with them ──

async function downloadSigned(event, id) {
  event.preventDefault();
  await attempt(async () => location.assign(withQuery(downloadPath(jobOf(id).result), (await signatures(id)).result)));
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    if (error.status !== 409 && error.status !== 404) announce(error.message); // these two: it has changed meanwhile, as the list shows
  }
  await refresh();
}

export const cancel = (id) => attempt(() => call(jobPath(id, "cancel"), { method: "POST" }));

export async function erase(id) {
  const job = jobOf(id);
  const isWanted = await confirm(`Delete ${job ? `“${nameOf(job)}”` : "this job"}?`, "The result, the clip and the pictures are erased for good.", "Delete");
  if (!isWanted) return false;
  await attempt(() => call(jobPath(id), { method: "DELETE" }));
  announce("Deleted.");
  return true;
}

/** Move a waiting job by one place, by the fewest changes of priorities that make this order. */
async function move(id, by) {
  const waiting = jobs.filter((job) => job.status === "QUEUED" && !trials.has(job.prompt_id)).sort((one, other) => one.queue_position - other.queue_position);
  const place = waiting.findIndex((job) => job.prompt_id === id);
  if (place + by < 0 || place + by >= waiting.length) return;
  waiting.splice(place + by, 0, ...waiting.splice(place, 1));
  const changes = prioritiesFor(waiting);
  await attempt(() => Promise.all(changes.map(([job, priority]) => callWithJson(jobPath(job.prompt_id), "PATCH", { priority }))));
  const moved = jobOf(id);
  if (moved?.queue_position) announce(`${nameOf(moved)} is at place ${moved.queue_position}.`);
}

/** Return the jobs whose priority must change for them to come in this order, with the new one. */
export function prioritiesFor(ordered) {
  const priorities = ordered.map((job) => job.options.priority ?? 0);
  for (let place = ordered.length - 2; place >= 0; place -= 1) {
    const comesByAge = ordered[place].created_at < ordered[place + 1].created_at;
    priorities[place] = Math.max(priorities[place], priorities[place + 1] + (comesByAge ? 0 : 1));
  }
  const excess = Math.max(0, Math.max(...priorities) - HIGHEST_PRIORITY);
  return ordered
    .map((job, place) => [job, Math.max(LOWEST_PRIORITY, priorities[place] - excess)])
    .filter(([job, priority]) => priority !== (job.options.priority ?? 0));
}

export function prepareQueue() {
  $("more").addEventListener("click", () => {
    wanted = Math.min(200, wanted + PAGE);
    refresh();
  });
}
