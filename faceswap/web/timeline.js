// The time line under a clip: a strip of its frames, the play head, and the two ends of the part that is swapped.

import { $, show } from "./dom.js";
import { clock } from "./words.js";

const SHORTEST_S = 0.04;
const PICTURE_PX = 64;
const STRIP_HEIGHT_PX = 56;

/** Tells `onseek(seconds)` while the play head is moved, `onsettled()` after that, `ontrim()` when an end was moved. */
export class Timeline {
  constructor({ onseek, onsettled, ontrim }) {
    this.root = $("timeline");
    this.head = $("playhead");
    this.start = $("trim-start");
    this.end = $("trim-end");
    this.canvas = $("strip");
    this.onseek = onseek;
    this.ontrim = ontrim;
    this.clip = null;
    this.head.addEventListener("input", () => this.seek(Number(this.head.value)));
    this.head.addEventListener("change", onsettled);
    this.start.addEventListener("input", () => this.trim(Number(this.start.value), null));
    this.end.addEventListener("input", () => this.trim(null, Number(this.end.value)));
    for (const input of [this.head, this.start, this.end]) input.addEventListener("keydown", (event) => this.step(event));
    this.canvas.addEventListener("pointerdown", (event) => this.drag(event, onsettled));
    new ResizeObserver(() => this.clip && this.draw(this.clip)).observe(this.canvas);
  }

  /** Show a clip, whose `duration`, `start`, `end` and `at` are seconds. */
  show(clip) {
    this.clip = clip;
    const visible = Boolean(clip && !clip.isPicture && clip.duration);
    show(this.root, visible);
    if (!visible) return;
    for (const input of [this.head, this.start, this.end]) input.max = String(clip.duration);
    this.update();
    this.draw(clip);
  }

  get isHidden() {
    return this.root.hasAttribute("hidden");
  }

  update() {
    const { duration, start, end, at } = this.clip;
    for (const [input, value] of [[this.head, at], [this.start, start], [this.end, end]]) {
      input.value = String(value);
      input.setAttribute("aria-valuetext", clock(value));
    }
    for (const [name, value] of Object.entries({ at, start, end })) this.root.style.setProperty(`--${name}`, String(value / duration));
  }

  seek(seconds) {
    this.clip.at = seconds;
    this.update();
    this.onseek(seconds);
  }

  trim(start, end) {
    const clip = this.clip;
    if (start !== null) clip.start = Math.min(start, clip.end - SHORTEST_S);
    if (end !== null) clip.end = Math.max(end, clip.start + SHORTEST_S);
    this.update();
    this.ontrim(start !== null ? clip.start : clip.end);
  }

  /** Move by one frame with an arrow key, by a second with shift or page keys; ranges alone move by a share of all. */
  step(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const frame = 1 / (this.clip.frameRate || 25);
    const size = event.shiftKey || event.key.startsWith("Page") ? Math.sign(steps[event.key]) : steps[event.key] * frame;
    const input = event.target;
    input.value = String(Number(input.value) + size);
    input.dispatchEvent(new Event("input"));
    input.dispatchEvent(new Event("change"));
  }

  drag(event, onsettled) {
    if (event.button) return;
    const box = this.canvas.getBoundingClientRect();
    const move = ({ clientX }) => this.seek(Math.max(0, Math.min(1, (clientX - box.left) / box.width)) * this.clip.duration);
    const end = () => {
      this.canvas.removeEventListener("pointermove", move);
      onsettled();
    };
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end, { once: true });
    this.canvas.addEventListener("pointercancel", () => this.canvas.removeEventListener("pointermove", move), { once: true });
    this.head.focus({ preventScroll: true });
    event.preventDefault();
    move(event);
  }

  /** Draw the frames of a clip that were read so far, and read the others. */
  draw(clip) {
    const width = this.canvas.clientWidth;
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [width * scale, STRIP_HEIGHT_PX * scale];
    const pictures = clip.strip ?? [];
    const each = this.canvas.width / Math.max(1, Math.round(width / PICTURE_PX));
    const context = this.canvas.getContext("2d");
    for (let place = 0; place * each < this.canvas.width - 1; place += 1) {
      const picture = pictures[Math.min(pictures.length - 1, Math.floor(((place + 0.5) * each * pictures.length) / this.canvas.width))];
      if (picture) cover(context, picture, place * each, each, this.canvas.height);
    }
  }
}

function cover(context, picture, left, width, height) {
  const scale = Math.max(width / picture.width, height / picture.height);
  const [part, rest] = [width / scale, height / scale];
  context.drawImage(picture, (picture.width - part) / 2, (picture.height - rest) / 2, part, rest, left, 0, width, height);
}

/** Read small pictures of a clip, evenly over its length, and tell after each. */
export async function readStrip(clip, pictures, ondrawn) {
  const video = document.createElement("video");
  video.muted = true;
  video.preload = "auto";
  video.src = clip.url;
  try {
    await event(video, "loadeddata");
    clip.strip = [];
    for (let place = 0; place < pictures && !clip.isGone; place += 1) {
      video.currentTime = ((place + 0.5) / pictures) * video.duration;
      await event(video, "seeked");
      const height = 2 * STRIP_HEIGHT_PX;
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [Math.round((height * video.videoWidth) / video.videoHeight), height];
      canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
      clip.strip.push(canvas);
      ondrawn();
    }
  } catch {
    // The browser cannot read this clip: it goes without a strip.
  } finally {
    video.removeAttribute("src");
    video.load();
  }
}

function event(element, type) {
  return new Promise((resolve, reject) => {
    element.addEventListener(type, resolve, { once: true });
    element.addEventListener("error", reject, { once: true });
  });
}
