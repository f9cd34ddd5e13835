// The bench: files come and go, and what is ready is sent off to the queue.

import { jobPath, request, signatures, withQuery } from "./api.js";
import { $, h, iconButton, renderList, setText, show, showMessage } from "./dom.js";
import { look, lookAtPicture } from "./faces.js";
import { MOST_PICTURES, preparePatch, renderPatch } from "./patch.js";
import { fillFields, mistakeInFields, prepareRequest } from "./request.js";
import { prepareStage, putOnStage, renderStage, stripGrew } from "./stage.js";
import { bench, changed, clips, joinAll, joinedOf, makeClip, makePicture, onChange, pictures, sources } from "./state.js";
import { readStrip } from "./timeline.js";
import { closeTrial, tryFrame } from "./trial.js";
import { uploadOf } from "./tus.js";
import { clock, percent, plural } from "./words.js";

const STRIP_PICTURES = 14;
const SAMPLES = [["sample-clip.mp4", "video/mp4"], ["sample-face.jpg", "image/jpeg"]];
const PICTURE_NAMES = /\.(jpe?g|png|webp|heic|heif|avif|bmp|gif|tiff?)$/i;

const isPicture = (file) => file.type.startsWith("image/") || PICTURE_NAMES.test(file.name);
const complain = (message) => showMessage($("form-error"), message);

// ── Files come and go ──

/** Take files in; `zone` tells for which side they were meant, otherwise their kind does. */
function addFiles(files, zone = null) {
  for (const file of files) {
    const isFace = isPicture(file) && zone !== "clip";
    if (isFace && isFull()) continue;
    const source = { name: file.name, upload: uploadOf(file), url: URL.createObjectURL(file) };
    if (isFace) addPicture(source);
    else addClip({ ...source, isPicture: isPicture(file) });
  }
}

function isFull() {
  if (pictures.length < MOST_PICTURES) return false;
  complain(`At most ${MOST_PICTURES} pictures of faces can be used at a time.`);
  return true;
}

function addClip(source) {
  const clip = makeClip(source);
  clips.push(clip);
  clip.upload?.addEventListener("change", () => showSent(clip));
  if (clip.upload) clip.upload.finished.then(() => look(clip), (error) => refuse(clip, error));
  else look(clip);
  if (!clip.isPicture && clip.url) {
    readStrip(clip, STRIP_PICTURES, () => {
      stripGrew(clip);
      if (clip.strip.length === 1) renderClips();
    });
  }
  complain("");
  chooseClip(clip);
}

function addPicture(source) {
  const picture = makePicture(source);
  pictures.push(picture);
  lookAtPicture(picture);
  complain("");
  changed();
}

function refuse(clip, error) {
  if (error.name === "AbortError") return;
  clip.problem = error.message;
  changed();
}

function chooseClip(clip) {
  if (bench.current === clip) return changed();
  closeTrial();
  putOnStage(clip);
}

function removeClip(clip) {
  clip.isGone = true;
  clip.upload?.release();
  clips.splice(clips.indexOf(clip), 1);
  if (bench.current === clip) chooseClip(clips.at(-1) ?? null);
  if (clip.url?.startsWith("blob:")) URL.revokeObjectURL(clip.url);
  changed();
}

function removePicture(picture) {
  picture.upload?.release();
  pictures.splice(pictures.indexOf(picture), 1);
  if (picture.url?.startsWith("blob:")) URL.revokeObjectURL(picture.url);
  bench.armed = null;
  closeTrial();
  joinAll();
  changed();
  $("add-face").focus();
}

async function addSample() {
  $("sample").disabled = true;
  try {
    const fetchFile = async ([name, type]) => new File([await (await request(`web/${name}`)).blob()], name, { type, lastModified: 0 });
    addFiles(await Promise.all(SAMPLES.map(fetchFile)));
  } catch (error) {
    complain(error.message);
  } finally {
    $("sample").disabled = false;
  }
}

function addAddresses() {
  for (const [id, add] of [["video-url", addClip], ["image-url", addPicture]]) {
    const field = $(id);
    const address = field.value.trim();
    field.setAttribute("aria-invalid", String(!field.checkValidity()));
    if (!field.checkValidity()) {
      field.focus();
      return complain("An address must begin with http:// or https://.");
    }
    if (!address || (add === addPicture && isFull())) continue;
    add({ name: decodeURIComponent(address.split(/[?#]/)[0].split("/").pop()) || address, address, isPlayable: false });
    field.value = "";
  }
}

/** Put an earlier job on the bench again: its clip, its pictures, its options. */
export async function reopen(job) {
  try {
    const signed = await signatures(job.prompt_id);
    const url = withQuery(jobPath(job.prompt_id, "video"), signed.video, "inline=1");
    const type = (await request(url, { method: "HEAD" })).headers.get("Content-Type") ?? "";
    for (const clip of [...clips]) removeClip(clip);
    for (const picture of [...pictures]) removePicture(picture);
    fillFields(job.options);
    $("one_person").checked = Boolean(job.options.one_person);
    addClip({ name: job.label || job.output_prefix, job: job.prompt_id, url, isPicture: type.startsWith("image/"), again: job.options });
    await reopenPictures(job.prompt_id);
  } catch (error) {
    complain(error.message);
  }
  $("start").focus();
}

/** Fetch the pictures of a job and take them in anew: so some may be left out and others added. */
async function reopenPictures(promptId) {
  for (let number = 0; number < MOST_PICTURES; number += 1) {
    let blob;
    try {
      blob = await (await request(withQuery(jobPath(promptId, "image"), `number=${number}`))).blob();
    } catch (error) {
      if (number && error.status === 404) return;
      throw error;
    }
    addFiles([new File([blob], `face ${number + 1}.${blob.type.split("/")[1] || "png"}`, { type: blob.type, lastModified: 0 })], "face");
  }
}

// ── Off to the queue ──

/** Return why a clip cannot be swapped yet, or null. */
function mistakeIn(clip) {
  if (!clip) return focusOn("choose-clips", "Choose a clip first.");
  if (!pictures.length) return focusOn("add-face", "Choose a picture of a face first.");
  if (clip.problem) return `“${clip.name}”: ${clip.problem}`;
  if (pictures.every((picture) => picture.problem)) return pictures[0].problem;
  if (clip.people.length && sources().length && !clip.joins.size) {
    return `Nobody in “${clip.name}” gets a new face yet: click a face in the clip, then a new face.`;
  }
  return null;
}

function focusOn(id, message) {
  $(id).focus();
  return message;
}

function isReady(wanted) {
  const mistake = mistakeInFields() || (wanted.map(mistakeIn).find(Boolean) ?? null);
  complain(mistake);
  return !mistake;
}

function start(submit) {
  if (!isReady(clips.length ? clips : [null])) return;
  closeTrial();
  const all = [...clips];
  for (const clip of all) submit(clip, prepareRequest(clip, joinedOf(clip)), all.length === 1);
  for (const clip of all) removeClip(clip);
}

// ── All of it, as it is now ──

function render() {
  const clip = bench.current;
  renderStage();
  renderClips();
  renderPatch();
  setText($("start"), plural(Math.max(1, clips.length), clip?.isPicture ? "Swap the picture" : "Swap faces", "Swap # clips"));
  show($("try"), Boolean(clip));
  $("try").disabled = Boolean(bench.trial && !bench.trial.compare);
  setText($("try-label"), clip?.isPicture ? "Try it" : "Try this frame");
  show($("format-row"), !clips.length || clips.some((one) => !one.isPicture));
  show($("picture-format-row"), clips.some((one) => one.isPicture));
}

function renderClips() {
  renderList($("clips"), clips, (clip) => clip.key, makeTile, (tile, clip) => {
    clip.tile = tile;
    tile.classList.toggle("wrong", Boolean(clip.problem));
    tile.firstChild.setAttribute("aria-current", String(clip === bench.current));
    showSent(clip);
    const [picture, shown] = [clip.strip?.[0], tile.querySelector("canvas")];
    if (!picture || !shown || shown.dataset.drawn) return;
    shown.dataset.drawn = "yes";
    [shown.width, shown.height] = [picture.width, picture.height];
    shown.getContext("2d").drawImage(picture, 0, 0);
  });
  show($("tray"), clips.length > 0);
}

function showSent(clip) {
  const isSending = Boolean(clip.upload && !clip.upload.isDone && !clip.upload.error);
  clip.tile.classList.toggle("sending", isSending);
  clip.tile.style.setProperty("--sent", String(clip.upload?.share ?? 1));
  const length = clip.duration ? clock(clip.duration) : "";
  setText(clip.tile.querySelector(".note"), clip.problem || (isSending ? `${percent(100 * clip.upload.share)} sent` : length));
}

function makeTile(clip) {
  const picture = clip.isPicture && clip.url ? h("img", { src: clip.url, alt: "" }) : h("canvas", { "aria-hidden": "true" });
  const name = h("span", { class: "name", dir: "auto" }, clip.name);
  const remove = () => {
    removeClip(clip);
    ($("clips").querySelector("button") ?? $("choose-clips")).focus();
  };
  return h(
    "li",
    {},
    h("button", { type: "button", class: "tile", onclick: () => chooseClip(clip) }, picture, name, h("span", { class: "note" })),
    iconButton("close", `Remove ${clip.name}`, remove, "icon-button remove"),
  );
}

/** Wire the bench up; `submit(clip, request, isOnly)` takes what is sent off. */
export function prepareBench(submit) {
  onChange(render);
  preparePatch({ onjoined: closeTrial, onremove: removePicture });
  prepareStage({
    onsettled: look,
    onmoved: closeTrial,
    onready: (clip) => clip.upload && !clip.upload.isDone && !clip.people.length && look(clip),
  });
  $("bench").addEventListener("submit", (event) => {
    event.preventDefault();
    start(submit);
  });
  $("bench").addEventListener("input", (event) => event.target.removeAttribute("aria-invalid"));
  $("try").addEventListener("click", () => isReady([bench.current]) && tryFrame());
  $("sample").addEventListener("click", addSample);
  $("add-address").addEventListener("click", addAddresses);
  for (const id of ["video-url", "image-url"]) {
    $(id).addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      addAddresses();
    });
  }
  $("one_person").addEventListener("change", () => {
    for (const clip of clips) clip.isTouched = false;
    closeTrial();
    joinAll();
    changed();
  });
  for (const [id, field] of [["choose-clips", "video-file"], ["more-clips", "video-file"], ["add-face", "image-file"]]) {
    $(id).addEventListener("click", () => $(field).click());
  }
  for (const [id, zone] of [["video-file", "clip"], ["image-file", "face"]]) {
    $(id).addEventListener("change", (event) => {
      addFiles([...event.target.files], zone);
      event.target.value = "";
    });
  }
  prepareDropping();
  render();
}

/** Files may be dropped anywhere: pictures alone go to the side they are dropped on, all else by its kind. */
function prepareDropping() {
  const veil = $("dropping");
  let leaving = 0;
  const zoneAt = (event) => event.target.closest?.("[data-zone]")?.dataset.zone ?? null;
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    clearTimeout(leaving);
    show(veil, true);
    for (const zone of veil.children) zone.classList.toggle("over", zone.dataset.zone === zoneAt(event));
  });
  document.addEventListener("dragleave", () => {
    leaving = setTimeout(() => show(veil, false), 100);
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    show(veil, false);
    const files = [...event.dataTransfer.files];
    location.hash = "";
    addFiles(files, files.every(isPicture) ? zoneAt(event) : null);
  });
}
