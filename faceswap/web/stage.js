// The stage: the clip or picture that is worked on, the faces found in it, and its time line.

import { showPicture } from "./api.js";
import { $, h, icon, renderList, setText, show } from "./dom.js";
import { clickPerson } from "./patch.js";
import { bench, changed, setDuration, sourceOf, sources } from "./state.js";
import { Timeline } from "./timeline.js";
import { clock, letter } from "./words.js";

const SETTLE_MS = 300;
const KEYS = { i: "set-start", o: "set-end", t: "try", " ": "play" };

const video = $("clip");
const still = $("still");
let settling = 0;
let hooks; // {onsettled(clip), onmoved()}

const timeline = new Timeline({
  onseek(seconds) {
    hooks.onmoved();
    video.pause();
    video.currentTime = seconds;
    showTime();
  },
  onsettled: settle,
  ontrim(seconds) {
    timeline.seek(seconds);
    renderStage();
    settle();
  },
});

/** Put a clip on the stage, or take the last one off. */
export function putOnStage(clip) {
  bench.current = clip;
  bench.armed = null;
  video.pause();
  const isVideo = Boolean(clip && !clip.isPicture && clip.url);
  if (isVideo) video.src = clip.url;
  else video.removeAttribute("src");
  if (clip?.isPicture && clip.url) showPicture(still, clip.url);
  else {
    still.removeAttribute("src");
    delete still.dataset.path;
  }
  timeline.show(clip);
  showTime();
  changed();
}

export const stripGrew = (clip) => clip === bench.current && timeline.draw(clip);
export const pauseStage = () => video.pause();

/** Return the address of what the stage shows, or null where the browser shows nothing. */
export async function pictureOnStage() {
  const clip = bench.current;
  if (!clip.isPlayable) return null;
  return clip.isPicture ? still.src : (await canvasOfStage()).toDataURL("image/jpeg", 0.95);
}

export async function frameOnStage() {
  const canvas = await canvasOfStage();
  return new Promise((resolve, reject) => {
    const give = (blob) => (blob ? resolve(blob) : reject(new Error("The frame could not be read.")));
    canvas.toBlob(give, "image/jpeg", 0.92);
  });
}

async function canvasOfStage() {
  if (video.seeking) await new Promise((resolve) => video.addEventListener("seeked", resolve, { once: true }));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas;
}

/** Tell once the play head rests. */
function settle() {
  clearTimeout(settling);
  const clip = bench.current;
  const isToLook = () => clip && clip === bench.current && video.paused && !clip.isPicture && !bench.trial;
  settling = setTimeout(() => isToLook() && clip.foundAt !== clip.at && hooks.onsettled(clip), SETTLE_MS);
}

function togglePlay() {
  const clip = bench.current;
  if (!clip || clip.isPicture || !clip.isPlayable || bench.trial) return;
  if (!video.paused) return video.pause();
  if (video.currentTime >= clip.end - 0.05) video.currentTime = clip.start;
  video.play().catch(() => {}); // refused where it was not the user who asked
}

function showPlaying() {
  const isPlaying = !video.paused;
  $("play").replaceChildren(icon(isPlaying ? "pause" : "play"));
  $("play").setAttribute("aria-label", isPlaying ? "Pause" : "Play");
  renderBoxes();
}

function showTime() {
  const clip = bench.current;
  setText($("time"), clock(clip?.at ?? 0));
  setText($("length"), clip?.duration ? `of ${clock(clip.duration)}` : "");
  renderBoxes();
}

/** Go on with the part of the clip while it plays; at its end back to its start. */
function advance() {
  const clip = bench.current;
  if (!clip || video.paused) return;
  clip.at = video.currentTime;
  if (clip.at >= clip.end && clip.end < clip.duration) {
    video.pause();
    video.currentTime = clip.at = clip.start;
  }
  timeline.update();
  showTime();
}

export function renderStage() {
  const clip = bench.current;
  const isVideo = Boolean(clip && !clip.isPicture);
  show($("empty"), !clip);
  show($("screen"), Boolean(clip));
  show(video, isVideo && clip.isPlayable);
  show(still, Boolean(clip?.isPicture && clip.isPlayable));
  show($("unplayable"), Boolean(clip && !clip.isPlayable && !bench.trial));
  show($("transport"), isVideo);
  for (const id of ["set-start", "set-end"]) show($(id), Boolean(clip?.duration));
  show($("whole"), isVideo && (clip.start > 0 || clip.end < clip.duration));
  $("play").disabled = !clip?.isPlayable;
  if (timeline.clip !== clip || (clip?.duration && timeline.isHidden)) timeline.show(clip);
  const width = (isVideo ? video.videoWidth : still.naturalWidth) || clip?.width;
  const height = (isVideo ? video.videoHeight : still.naturalHeight) || clip?.height;
  $("screen").style.setProperty("--shape", width && height ? `${width / height}` : "1.7778");
  renderBoxes();
}

/** Draw the faces that were found around where they are, while their frame is the one on the stage. */
function renderBoxes() {
  const clip = bench.current;
  const isTheirFrame = () => clip.isPicture || (video.paused && clip.foundAt !== null && Math.abs(clip.foundAt - clip.at) < 0.5 / (clip.frameRate || 25));
  const found = clip && clip.isPlayable && !bench.trial && isTheirFrame() ? clip.found : [];
  const all = sources();
  renderList($("boxes"), found, (face) => `${clip.key} ${face.index}`, makeBox, (box, face) => {
    const source = sourceOf(clip, face.index, all);
    const [x, y, width, height] = face.box;
    const places = { x: x / clip.width, y: y / clip.height, w: width / clip.width, h: height / clip.height };
    for (const [name, value] of Object.entries(places)) box.style.setProperty(`--${name}`, String(value));
    box.dataset.colour = source ? String(source.place % 8) : "";
    box.classList.toggle("armed", bench.armed?.person === face.index);
    setText(box.firstChild, source ? letter(source.place) : "");
  });
}

function makeBox(face) {
  return h("div", { class: "box", onclick: () => clickPerson(face) }, h("span", { class: "badge" }));
}

/** Wire the stage up; `onsettled(clip)` is told when the play head rests, `onmoved()` when it moves, `onready()` at the first frame. */
export function prepareStage(given) {
  hooks = given;
  video.addEventListener("loadedmetadata", () => {
    const clip = bench.current;
    if (!clip) return;
    if (!clip.duration && Number.isFinite(video.duration)) setDuration(clip, video.duration);
    video.currentTime = clip.at;
    timeline.show(clip);
    showTime();
    changed();
  });
  video.addEventListener("loadeddata", () => bench.current && hooks.onready(bench.current));
  const fail = (event) => {
    if (!bench.current || !event.target.hasAttribute("src")) return;
    bench.current.isPlayable = false;
    changed();
  };
  video.addEventListener("error", fail);
  still.addEventListener("error", fail);
  still.addEventListener("load", renderStage);
  video.addEventListener("timeupdate", advance);
  for (const type of ["play", "pause"]) video.addEventListener(type, showPlaying);
  video.addEventListener("pause", settle);
  $("play").addEventListener("click", togglePlay);
  $("screen").addEventListener("click", (event) => event.target.closest(".box") || togglePlay());
  $("set-start").addEventListener("click", () => timeline.trim(bench.current.at, null));
  $("set-end").addEventListener("click", () => timeline.trim(null, bench.current.at));
  $("whole").addEventListener("click", () => {
    [bench.current.start, bench.current.end] = [0, bench.current.duration];
    timeline.update();
    renderStage();
    $("set-start").focus();
  });
  for (const id of ["stage", "transport", "timeline"]) $(id).addEventListener("keydown", pressKey);
}

function pressKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || (event.key === " " && event.target.closest("button, label"))) return;
  const id = KEYS[event.key.toLowerCase()];
  if (!id) return;
  event.preventDefault();
  $(id).click();
}
