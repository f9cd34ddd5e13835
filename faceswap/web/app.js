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
const UNREACHABLE = "The service does not answer. Is it still running?";

const $ = (id) => document.getElementById(id);
const chosen = { video: null, image: null };
const thumbnails = { video: null, image: null };
let upload = null;
let watched = null;
let original = null;

/** One sentence for a person out of an error answer's text (problem+json, RFC 9457, or anything else). */
function problemSentence(status, text) {
  try {
    const problem = JSON.parse(text);
    if (problem.detail || problem.title) return problem.detail || problem.title;
  } catch {
    // Not from the service itself; the status has to do.
  }
  return status ? `The service answered with an error (${status}).` : UNREACHABLE;
}

/** The JSON of an answer; throws an Error whose message is a sentence to show, with the HTTP status (0: no answer). */
async function call(path, init) {
  let response;
  try {
    response = await fetch(path, init);
  } catch {
    throw Object.assign(new Error(UNREACHABLE), { status: 0 });
  }
  const text = await response.text();
  if (!response.ok) throw Object.assign(new Error(problemSentence(response.status, text)), { status: response.status });
  return text ? JSON.parse(text) : null;
}

/** The path of a result, from the `/download/…` of a status document or a bare file name. */
function downloadPath(result) {
  const name = decodeURIComponent(result.replace(/^\/download\//, ""));
  return `download/${encodeURIComponent(name)}`;
}

function show(element, visible) {
  element.toggleAttribute("hidden", !visible); // SVG elements have no property `hidden`
}

function tell(element, sentence) {
  element.textContent = sentence || "";
  show(element, Boolean(sentence));
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function announce(text) {
  if ($("announcement").textContent !== text) $("announcement").textContent = text;
}

function inTime(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function inBytes(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function setState(chip, state) {
  chip.textContent = STATES[state] || state;
  chip.dataset.state = state;
}

function choose(kind, file) {
  chosen[kind] = file;
  if (thumbnails[kind] && thumbnails[kind] !== original?.url) URL.revokeObjectURL(thumbnails[kind]);
  thumbnails[kind] = URL.createObjectURL(file);
  $(`${kind}-url`).value = "";
  $(`${kind}-name`).textContent = `${file.name} · ${inBytes(file.size)}`;
  const thumbnail = $(`${kind}-thumb`);
  // The fragment makes a browser that shows nothing before playing show the first picture.
  thumbnail.src = thumbnails[kind] + (kind === "video" ? "#t=0.1" : "");
  show(thumbnail, true);
  show($(`${kind}-glyph`), false);
  tell($("form-error"), "");
}

function forget(kind) {
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
    input.addEventListener("change", () => input.files[0] && choose(kind, input.files[0]));
    $(`${kind}-thumb`).addEventListener("error", () => {
      show($(`${kind}-thumb`), false);
      show($(`${kind}-glyph`), true);
    });
    $(`${kind}-url`).addEventListener("input", (event) => event.target.value && forget(kind));
    drop.addEventListener("dragenter", () => drop.classList.add("over"));
    drop.addEventListener("dragleave", (event) => drop.contains(event.relatedTarget) || drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      const [file] = event.dataTransfer.files;
      if (event.dataTransfer.files.length === 1 && !kindOf(file)) choose(kind, file);
    });
  }
  // Both files may be dropped at once, anywhere: each finds its place by its type.
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    KINDS.forEach((kind) => $(`${kind}-drop`).classList.remove("over"));
    for (const file of event.dataTransfer.files) {
      if (kindOf(file)) choose(kindOf(file), file);
    }
  });
  $("swap-form").addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
  $("swap-form").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
}

/** The sentence about the first field that cannot be sent, with the focus put there, or null. */
function findMistake() {
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
  const options = {};
  for (const [option, read] of Object.entries(OPTIONS)) {
    const value = $(option).value.trim();
    if (value) options[option] = read(value);
  }
  body.append("options", JSON.stringify(options));
  // The files last: what is wrong with a field is told before they are sent.
  for (const kind of ["image", "video"]) {
    if (chosen[kind]) body.append(kind, chosen[kind]);
    else body.append(`${kind}_url`, $(`${kind}-url`).value.trim());
  }
  return body;
}

/** Send the form; the upload is shown like a job's first stretch. */
function start() {
  const mistake = findMistake();
  tell($("form-error"), mistake);
  if (mistake) return;
  // XMLHttpRequest, because fetch does not tell how much of a body was sent.
  upload = new XMLHttpRequest();
  upload.open("POST", "face-swap");
  upload.setRequestHeader("Prefer", "respond-async");
  upload.upload.addEventListener("progress", (event) => {
    if (event.lengthComputable) showPercentage((100 * event.loaded) / event.total);
    $("figures").textContent = `${inBytes(event.loaded)} of ${inBytes(event.total)}`;
  });
  upload.upload.addEventListener("load", () => {
    $("step").textContent = "Checking the files…";
    $("figures").textContent = "";
  });
  upload.addEventListener("load", ({ target }) => {
    upload = null;
    if (target.status >= 300) return refuse(problemSentence(target.status, target.responseText));
    const { prompt_id: promptId } = JSON.parse(target.responseText);
    original = chosen.video ? { promptId, url: thumbnails.video } : null;
    location.hash = `job=${promptId}`;
  });
  upload.addEventListener("error", () => refuse(UNREACHABLE));
  upload.addEventListener("abort", () => refuse("The upload was cancelled."));
  clearJob(chosen.video?.name || "New job");
  upload.send(formBody());
}

function refuse(sentence) {
  upload = null;
  showForm();
  tell($("form-error"), sentence);
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
  show($("swap-form"), true);
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

/** Show a job and follow it to its end; its events say everything, from its beginning, however late one comes. */
async function openJob(promptId) {
  stopWatching();
  clearJob("");
  const job = { promptId, source: null };
  watched = job;
  let status;
  try {
    status = await call(`status/${encodeURIComponent(promptId)}`);
  } catch (error) {
    if (watched !== job) return;
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

function showUnknown(sentence) {
  showForm();
  history.replaceState(null, "", location.pathname + location.search);
  tell($("form-error"), sentence);
}

function follow(job) {
  const source = new EventSource(`events/${encodeURIComponent(job.promptId)}`);
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
    $("preview").src = `preview/${encodeURIComponent(job.promptId)}?n=${encodeURIComponent(id)}`;
    show($("preview"), true);
  });
  on("completed", (data) => showResult(data.filename, data.warnings, data.bytes));
  // A job that was retried tells of its earlier end too; how it stands now, its status says.
  on("cancelled", () => openIfEnded(job));
  on("error", () => openIfEnded(job));
  source.addEventListener("error", (event) => {
    if (event.data !== undefined || watched !== job) return; // an event called "error" is the job's, not the connection's
    $("step").textContent = "The connection was lost, trying again…";
    // The browser reconnects by itself, unless it was answered with anything but a stream.
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
  if (watched === job && ENDED.includes(status.status)) showEnd(status.status, status.error);
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
  if (data.eta_seconds !== null && data.eta_seconds !== undefined) figures.push(`${inTime(data.eta_seconds)} left`);
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
  finish("SUCCESS");
  const path = downloadPath(result);
  $("swapped").src = `${path}?inline=1`;
  show($("original-figure"), Boolean(own));
  if (own) $("original").src = own.url;
  $("download").href = path;
  $("download").textContent = bytes ? `Download · ${inBytes(bytes)}` : "Download";
  $("warnings").replaceChildren(...(warnings || []).map((warning) => element("li", "", warning)));
  show($("warnings"), Boolean(warnings?.length));
  show($("result"), true);
  show($("download"), true);
}

function showEnd(state, sentence) {
  const promptId = watched?.promptId;
  finish(state);
  $("retry").onclick = () => retry(promptId);
  show($("retry"), true);
  tell($("job-error"), sentence || (state === "CANCELLED" ? "The job was cancelled." : "The job failed."));
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
    if (error.status !== 409) showStep(error.message); // 409: it has ended meanwhile, and its events say how
  }
}

async function retry(promptId) {
  try {
    await call(`jobs/${encodeURIComponent(promptId)}/retry`, { method: "POST" });
    openJob(promptId);
  } catch (error) {
    tell($("job-error"), error.message);
  }
}

/** Play the two videos as one: what is done to the result is done to the original. */
function playTogether() {
  const [first, second] = [$("swapped"), $("original")];
  const together = () => second.hasAttribute("src");
  first.addEventListener("play", () => together() && second.play());
  first.addEventListener("pause", () => together() && second.pause());
  first.addEventListener("seeking", () => {
    if (together()) second.currentTime = first.currentTime;
  });
}

function jobRow(job) {
  const row = element("li");
  const name = element("span", "name", job.output_prefix);
  const chip = element("span", "chip");
  setState(chip, job.status);
  name.append(chip);
  const notes = [new Date(job.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })];
  if (job.status === "PROCESSING") notes.push(`${Math.floor(job.progress.percentage)}%`);
  if (job.status === "QUEUED" && job.queue_position) notes.push(`place ${job.queue_position} in the queue`);
  if (job.error) notes.push(job.error);
  const links = element("span", "links");
  const open = element("a", "", ENDED.includes(job.status) ? "Show" : "Watch");
  open.href = `#job=${encodeURIComponent(job.prompt_id)}`;
  open.setAttribute("aria-label", `${open.textContent} ${job.output_prefix}`);
  links.append(open);
  if (job.result) {
    const download = element("a", "", "Download");
    download.href = downloadPath(job.result);
    download.download = "";
    download.setAttribute("aria-label", `Download ${job.output_prefix}`);
    links.append(download);
  }
  row.append(name, element("span", "note", notes.join(" · ")), links);
  return row;
}

async function refreshJobs() {
  let jobs;
  try {
    ({ jobs } = await call(`jobs?limit=${RECENT_JOBS}`));
  } catch {
    return; // the line about the engine's health says so
  }
  const list = $("jobs");
  const known = JSON.stringify(jobs);
  if (list.dataset.known === known) return; // replacing the rows would take the focus away from a link
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
  refreshJobs();
}

/** The address names the job that is shown, so that a reload, a bookmark and the back button find it again. */
function route() {
  if (upload) upload.abort();
  const promptId = new URLSearchParams(location.hash.slice(1)).get("job");
  if (promptId) openJob(promptId);
  else showForm();
}

prepareForm();
playTogether();
$("cancel").addEventListener("click", cancel);
window.addEventListener("hashchange", route);
window.addEventListener("beforeunload", (event) => upload && event.preventDefault());
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, REFRESH_MS);
refresh();
route();
