// The page of the face swap service: a form, one job watched live, and the list of recent jobs.
// All addresses are relative to the page, so that it works behind a path prefix. Everything shown is set as text.

const KINDS = ["video", "image"];
const OPTIONS = {
  face_index: String,
  source_face_index: String,
  detect_gender: String,
  face_restore_model: String,
  face_restore_visibility: Number,
  face_boost: (text) => text === "true",
  crf: Number,
  frame_rate: Number,
};
const STATES = {
  QUEUED: "Waiting",
  PROCESSING: "Running",
  SUCCESS: "Done",
  FAILED: "Failed",
  CANCELLED: "Cancelled",
};
const ENDED = ["SUCCESS", "FAILED", "CANCELLED"];
const RECENT_JOBS = 12;
const REFRESH_MS = 5000;
const RECONNECT_MS = 3000;
const SIGNED_S = 24 * 3600;
const KEY_ITEM = "faceswap-key";
const UNREACHABLE = "The service does not answer. Is it still running?";

const $ = (id) => document.getElementById(id);
const chosen = { video: null, image: null };
const thumbnails = { video: null, image: null };
let upload = null;
let watched = null;
let original = null;
let key = sessionStorage.getItem(KEY_ITEM); // of this tab only, and gone with it

/** Return the message of an error answer (problem+json, RFC 9457, or any other text) for the user. */
function problemMessage(status, text) {
  try {
    const problem = JSON.parse(text);
    if (problem.detail || problem.title) return problem.detail || problem.title;
  } catch {
    // Not the service's own answer: only the status can be shown.
  }
  return status ? `The service answered with an error (${status}).` : UNREACHABLE;
}

/** Request a path and return its JSON; throws an Error with a message to show and the HTTP status (0: no answer). */
async function call(path, init) {
  let response;
  try {
    response = await fetch(path, { ...init, headers: authorization() });
  } catch {
    throw Object.assign(new Error(UNREACHABLE), { status: 0 });
  }
  const text = await response.text();
  if (response.status === 401) askForKey(key && problemMessage(response.status, text));
  if (!response.ok) throw Object.assign(new Error(problemMessage(response.status, text)), { status: response.status });
  return text ? JSON.parse(text) : null;
}

function authorization() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function askForKey(message) {
  showMessage($("key-error"), message);
  if (!$("key-form").hidden) return;
  show($("key-form"), true);
  show($("swap-form"), false);
  show($("job"), false);
  show($("recent"), false);
  $("key").focus();
}

function prepareKeyForm() {
  $("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    key = $("key").value.trim();
    try {
      await call("jobs?limit=1");
    } catch (error) {
      if (error.status !== 401) showMessage($("key-error"), error.message);
      return;
    }
    sessionStorage.setItem(KEY_ITEM, key);
    $("key").value = "";
    show($("key-form"), false);
    refresh();
    route();
  });
}

/**
 * Return what an address of each thing of a job ends with, so that players, pictures and event sources, which send no
 * key, are let in: a signature where there is a key.
 */
async function signatures(promptId) {
  if (!key) return {};
  const path = `jobs/${encodeURIComponent(promptId)}/links?expires_in=${SIGNED_S}`;
  const { links } = await call(path, { method: "POST" });
  return Object.fromEntries(Object.entries(links).map(([name, link]) => [name, new URL(link, location.href).search]));
}

/** Return an address with more parameters, which may begin with a question mark or an ampersand. */
function withQuery(path, ...queries) {
  const given = queries.filter(Boolean).map((query) => query.replace(/^[?&]/, ""));
  return given.length ? `${path}?${given.join("&")}` : path;
}

/** Return the path of a result, from the `/download/…` of a status document or a bare file name. */
function downloadPath(result) {
  const name = decodeURIComponent(result.replace(/^\/download\//, ""));
  return `download/${encodeURIComponent(name)}`;
}

function show(element, visible) {
  element.toggleAttribute("hidden", !visible); // SVG elements have no property `hidden`
}

function showMessage(element, message) {
  element.textContent = message || "";
  show(element, Boolean(message));
}

function createElement(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function announce(text) {
  if ($("announcement").textContent !== text) $("announcement").textContent = text;
}

function formatSeconds(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function formatBytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function setState(chip, state) {
  chip.textContent = STATES[state] || state;
  chip.dataset.state = state;
}

function chooseFile(kind, file) {
  chosen[kind] = file;
  if (thumbnails[kind] && thumbnails[kind] !== original?.url) URL.revokeObjectURL(thumbnails[kind]);
  thumbnails[kind] = URL.createObjectURL(file);
  $(`${kind}-url`).value = "";
  $(`${kind}-name`).textContent = `${file.name} · ${formatBytes(file.size)}`;
  const thumbnail = $(`${kind}-thumb`);
  // The fragment makes all browsers show the first picture before playing.
  thumbnail.src = thumbnails[kind] + (kind === "video" ? "#t=0.1" : "");
  show(thumbnail, true);
  show($(`${kind}-glyph`), false);
  showMessage($("form-error"), "");
}

function clearFile(kind) {
  chosen[kind] = null;
  $(`${kind}-file`).value = "";
  $(`${kind}-name`).textContent = "The address below is used";
  show($(`${kind}-thumb`), false);
  show($(`${kind}-glyph`), true);
}

function kindOf(file) {
  return KINDS.find((kind) => file.type.startsWith(`${kind}/`));
}

function prepareForm() {
  for (const kind of KINDS) {
    const drop = $(`${kind}-drop`);
    const input = $(`${kind}-file`);
    input.addEventListener("change", () => input.files[0] && chooseFile(kind, input.files[0]));
    $(`${kind}-thumb`).addEventListener("error", () => {
      show($(`${kind}-thumb`), false);
      show($(`${kind}-glyph`), true);
    });
    $(`${kind}-url`).addEventListener("input", (event) => event.target.value && clearFile(kind));
    drop.addEventListener("dragenter", () => drop.classList.add("over"));
    drop.addEventListener("dragleave", (event) => drop.contains(event.relatedTarget) || drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      const [file] = event.dataTransfer.files;
      if (event.dataTransfer.files.length === 1 && !kindOf(file)) chooseFile(kind, file);
    });
  }
  // Both files may be dropped at once, anywhere on the page: each is assigned by its type.
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    KINDS.forEach((kind) => $(`${kind}-drop`).classList.remove("over"));
    for (const file of event.dataTransfer.files) {
      if (kindOf(file)) chooseFile(kindOf(file), file);
    }
  });
  $("swap-form").addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
  $("swap-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submitForm();
  });
}

/** Focus the first field that cannot be sent and return the message about it, or null if there is none. */
function validate() {
  const fields = [...$("swap-form").querySelectorAll("input:not([type=file])")];
  fields.forEach((field) => field.setAttribute("aria-invalid", String(!field.checkValidity())));
  const wrong = fields.find((field) => !field.checkValidity());
  if (wrong) {
    if (wrong.closest("details")) $("options").open = true;
    wrong.focus();
    const label = wrong.closest("label").firstChild.textContent.trim();
    return `“${wrong.type === "url" ? "Address" : label}” can be ${wrong.dataset.allowed || "an http or https address"}.`;
  }
  const missing = KINDS.find((kind) => !chosen[kind] && !$(`${kind}-url`).value.trim());
  if (!missing) return null;
  $(`${missing}-file`).focus();
  return missing === "video" ? "Choose the video first." : "Choose a picture of the face first.";
}

function formBody() {
  const body = new FormData();
  const name = $("output_name").value.trim();
  if (name) body.append("output_name", name);
  const consent = $("consent").value.trim();
  if (consent) body.append("consent", consent);
  const options = {};
  for (const [option, read] of Object.entries(OPTIONS)) {
    const value = $(option).value.trim();
    if (value) options[option] = read(value);
  }
  body.append("options", JSON.stringify(options));
  // The files last: a wrong field is refused before they are sent.
  for (const kind of ["image", "video"]) {
    if (chosen[kind]) body.append(kind, chosen[kind]);
    else body.append(`${kind}_url`, $(`${kind}-url`).value.trim());
  }
  return body;
}

/** Send the form, and show the upload's progress in the place of the job's. */
function submitForm() {
  const mistake = validate();
  showMessage($("form-error"), mistake);
  if (mistake) return;
  // XMLHttpRequest, because fetch does not report the progress of an upload.
  upload = new XMLHttpRequest();
  upload.open("POST", "face-swap");
  upload.setRequestHeader("Prefer", "respond-async");
  for (const [name, value] of Object.entries(authorization())) upload.setRequestHeader(name, value);
  upload.upload.addEventListener("progress", (event) => {
    if (event.lengthComputable) showPercentage((100 * event.loaded) / event.total);
    $("figures").textContent = `${formatBytes(event.loaded)} of ${formatBytes(event.total)}`;
  });
  upload.upload.addEventListener("load", () => {
    $("step").textContent = "Checking the files…";
    $("figures").textContent = "";
  });
  upload.addEventListener("load", ({ target }) => {
    upload = null;
    if (target.status === 401) return askForKey(problemMessage(target.status, target.responseText));
    if (target.status >= 300) return rejectUpload(problemMessage(target.status, target.responseText));
    const { prompt_id: promptId } = JSON.parse(target.responseText);
    original = chosen.video ? { promptId, url: thumbnails.video } : null;
    location.hash = `job=${promptId}`;
  });
  upload.addEventListener("error", () => rejectUpload(UNREACHABLE));
  upload.addEventListener("abort", () => rejectUpload("The upload was cancelled."));
  clearJob(chosen.video?.name || "New job");
  upload.send(formBody());
}

function rejectUpload(message) {
  upload = null;
  showForm();
  showMessage($("form-error"), message);
}

function clearJob(name) {
  show($("swap-form"), false);
  show($("job"), true);
  show($("running"), true);
  ["result", "download", "retry", "another", "preview", "warnings", "job-error"].forEach((id) => show($(id), false));
  ["original", "swapped"].forEach((id) => $(id).removeAttribute("src"));
  $("job-name").textContent = name;
  $("step").textContent = upload ? "Sending the files…" : "";
  $("figures").textContent = "";
  $("cancel").disabled = false;
  show($("cancel"), true);
  setState($("job-state"), upload ? "Uploading" : "QUEUED");
  showPercentage(0);
  $("job-name").focus();
}

function showForm() {
  stopWatching();
  show($("job"), false);
  show($("swap-form"), $("key-form").hidden);
  document.title = "Face swap";
}

function showPercentage(percentage) {
  $("progress").value = percentage;
  $("percentage").textContent = Math.floor(percentage);
  document.title = `${Math.floor(percentage)}% – Face swap`;
}

function stopWatching() {
  watched?.source?.close();
  watched = null;
}

/** Show a job and follow it to its end; its event stream begins with the stored events, however late it is opened. */
async function openJob(promptId) {
  stopWatching();
  clearJob("");
  const job = { promptId, source: null };
  watched = job;
  let status;
  try {
    status = await call(`status/${encodeURIComponent(promptId)}`);
    job.signed = await signatures(promptId);
  } catch (error) {
    if (watched !== job || error.status === 401) return;
    if (error.status === 404) return showUnknown(error.message);
    $("step").textContent = error.message;
    setTimeout(() => watched === job && openJob(promptId), RECONNECT_MS);
    return;
  }
  if (watched !== job) return;
  $("job-name").textContent = status.output_prefix;
  if (status.status === "SUCCESS") showResult(status.result, status.warnings, status.bytes);
  else if (ENDED.includes(status.status)) showEnd(status.status, status.error);
  else follow(job);
}

function showUnknown(message) {
  showForm();
  history.replaceState(null, "", location.pathname + location.search);
  showMessage($("form-error"), message);
}

function follow(job) {
  const source = new EventSource(withQuery(`events/${encodeURIComponent(job.promptId)}`, job.signed.events));
  job.source = source;
  const on = (type, handle) =>
    source.addEventListener(type, (event) => watched === job && event.data && handle(JSON.parse(event.data), event.lastEventId));

  on("queued", (data) => {
    const ahead = data.queue_position > 1 ? `, ${data.queue_position - 1} ahead` : "";
    showStep(`Waiting for its turn${ahead}`);
  });
  on("executing", (data) => {
    setState($("job-state"), "PROCESSING");
    showStep(data.message);
  });
  on("status", (data) => showStep(data.message));
  on("progress", showProgress);
  on("preview", (_, id) => {
    const path = `preview/${encodeURIComponent(job.promptId)}`;
    $("preview").src = withQuery(path, job.signed.preview, `n=${encodeURIComponent(id)}`);
    show($("preview"), true);
  });
  on("completed", async (data) => {
    try {
      job.signed = await signatures(job.promptId); // before its end there was no result to sign a link to
    } catch {
      return openIfEnded(job);
    }
    if (watched === job) showResult(data.filename, data.warnings, data.bytes);
  });
  // The events of a retried job include its earlier end; only its status tells how it is now.
  on("cancelled", () => openIfEnded(job));
  on("error", () => openIfEnded(job));
  source.addEventListener("error", (event) => {
    if (event.data !== undefined || watched !== job) return; // an event with data is the job's own "error", not the connection's
    $("step").textContent = "The connection was lost, trying again…";
    // The browser reconnects by itself, unless the answer was not a stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => watched === job && openJob(job.promptId), RECONNECT_MS);
  });
}

async function openIfEnded(job) {
  let status;
  try {
    status = await call(`status/${encodeURIComponent(job.promptId)}`);
  } catch {
    setTimeout(() => watched === job && openJob(job.promptId), RECONNECT_MS);
    return;
  }
  if (watched !== job || !ENDED.includes(status.status)) return;
  if (status.status === "SUCCESS") openJob(job.promptId);
  else showEnd(status.status, status.error);
}

function showStep(text) {
  $("step").textContent = text;
  announce(text);
}

function showProgress(data) {
  setState($("job-state"), "PROCESSING");
  showPercentage(data.percentage);
  const figures = [`${data.current} of ${data.total} frames`];
  if (data.fps) figures.push(`${data.fps.toFixed(data.fps < 10 ? 1 : 0)} fps`);
  if (data.eta_seconds !== null && data.eta_seconds !== undefined) figures.push(`${formatSeconds(data.eta_seconds)} left`);
  $("figures").textContent = figures.join(" · ");
  if (data.percentage >= 10) announce(`${Math.floor(data.percentage / 10) * 10} percent done`);
}

function finish(state) {
  stopWatching();
  setState($("job-state"), state);
  show($("running"), false);
  show($("cancel"), false);
  show($("another"), true);
  document.title = `${STATES[state]} – Face swap`;
  announce(STATES[state]);
  refreshJobs();
}

function showResult(result, warnings, bytes) {
  const own = original?.promptId === watched?.promptId ? original : null;
  const [path, signature] = [downloadPath(result), watched?.signed.result];
  finish("SUCCESS");
  $("swapped").src = withQuery(path, signature, "inline=1");
  show($("original-figure"), Boolean(own));
  if (own) $("original").src = own.url;
  $("download").href = withQuery(path, signature);
  $("download").textContent = bytes ? `Download · ${formatBytes(bytes)}` : "Download";
  $("warnings").replaceChildren(...(warnings || []).map((warning) => createElement("li", "", warning)));
  show($("warnings"), Boolean(warnings?.length));
  show($("result"), true);
  show($("download"), true);
}

function showEnd(state, message) {
  const promptId = watched?.promptId;
  finish(state);
  $("retry").onclick = () => retry(promptId);
  show($("retry"), true);
  showMessage($("job-error"), message || (state === "CANCELLED" ? "The job was cancelled." : "The job failed."));
}

async function cancel() {
  if (upload) return upload.abort();
  if (!watched) return;
  $("cancel").disabled = true;
  showStep("Cancelling…");
  try {
    await call(`jobs/${encodeURIComponent(watched.promptId)}/cancel`, { method: "POST" });
  } catch (error) {
    $("cancel").disabled = false;
    if (error.status !== 409) showStep(error.message); // 409: it has ended meanwhile, as its events show
  }
}

async function retry(promptId) {
  try {
    await call(`jobs/${encodeURIComponent(promptId)}/retry`, { method: "POST" });
    openJob(promptId);
  } catch (error) {
    showMessage($("job-error"), error.message);
  }
}

/** Play, pause and seek the original together with the result. */
function synchronizePlayers() {
  const [first, second] = [$("swapped"), $("original")];
  const hasOriginal = () => second.hasAttribute("src");
  first.addEventListener("play", () => hasOriginal() && second.play());
  first.addEventListener("pause", () => hasOriginal() && second.pause());
  first.addEventListener("seeking", () => {
    if (hasOriginal()) second.currentTime = first.currentTime;
  });
}

function jobRow(job) {
  const row = createElement("li");
  const name = createElement("span", "name", job.output_prefix);
  const chip = createElement("span", "chip");
  setState(chip, job.status);
  name.append(chip);
  const notes = [new Date(job.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })];
  if (job.status === "PROCESSING") notes.push(`${Math.floor(job.progress.percentage)}%`);
  if (job.status === "QUEUED" && job.queue_position) notes.push(`place ${job.queue_position} in the queue`);
  if (job.error) notes.push(job.error);
  const links = createElement("span", "links");
  const open = createElement("a", "", ENDED.includes(job.status) ? "Show" : "Watch");
  open.href = `#job=${encodeURIComponent(job.prompt_id)}`;
  open.setAttribute("aria-label", `${open.textContent} ${job.output_prefix}`);
  links.append(open);
  if (job.result) {
    const download = createElement("a", "", "Download");
    download.href = downloadPath(job.result);
    download.download = "";
    download.setAttribute("aria-label", `Download ${job.output_prefix}`);
    if (key) download.addEventListener("click", (event) => downloadSigned(event, job));
    links.append(download);
  }
  row.append(name, createElement("span", "note", notes.join(" · ")), links);
  return row;
}

async function downloadSigned(event, job) {
  event.preventDefault();
  try {
    const { result } = await signatures(job.prompt_id);
    location.assign(withQuery(downloadPath(job.result), result));
  } catch (error) {
    showMessage($("form-error"), error.message);
  }
}

async function refreshJobs() {
  let jobs;
  try {
    ({ jobs } = await call(`jobs?limit=${RECENT_JOBS}`));
  } catch {
    return; // refreshHealth() shows it
  }
  const list = $("jobs");
  const known = JSON.stringify(jobs);
  if (list.dataset.known === known) return; // replacing the rows would move the focus away from a link
  const focused = document.activeElement?.closest("#jobs a")?.href;
  list.dataset.known = known;
  list.replaceChildren(...jobs.map(jobRow));
  [...list.querySelectorAll("a")].find((link) => link.href === focused)?.focus();
  show($("recent"), jobs.length > 0);
}

async function refreshHealth() {
  let [state, text] = ["degraded", UNREACHABLE];
  try {
    const health = await call("health");
    state = health.status;
    if (state === "healthy") text = "Ready";
    else if (health.comfyui_status === "starting") text = "The engine is starting";
    else if (health.outage) text = health.outage;
    else if (health.comfyui_status === "unreachable") text = "The engine cannot be reached";
    else if (health.workflow_status === "invalid") text = health.backends.flatMap((backend) => backend.problems)[0];
    else text = "Not everything works";
  } catch (error) {
    text = error.message;
  }
  $("health").dataset.state = state;
  if ($("health").textContent !== text) $("health").textContent = text;
}

function refresh() {
  if (document.hidden) return;
  refreshHealth();
  if ($("key-form").hidden) refreshJobs();
}

/** Show the job that the address names, so that a reload, a bookmark and the back button find it again. */
function route() {
  if (upload) upload.abort();
  const promptId = new URLSearchParams(location.hash.slice(1)).get("job");
  if (promptId) openJob(promptId);
  else showForm();
}

prepareForm();
prepareKeyForm();
synchronizePlayers();
$("cancel").addEventListener("click", cancel);
window.addEventListener("hashchange", route);
window.addEventListener("beforeunload", (event) => upload && event.preventDefault());
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, REFRESH_MS);
refresh();
route();
