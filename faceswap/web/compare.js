// Before and after under one slider: two pictures, or two videos that play in step, the sound from the result.

import { h, icon, iconButton, setText } from "./dom.js";
import { clock } from "./words.js";

const JUMP_S = 0.3; // drift beyond which the follower jumps
const GENTLE = 0.1; // how much faster or slower it may play to catch up

function media({ isVideo, url }, className, name) {
  if (!isVideo) return h("img", { class: className, src: url, alt: name });
  return h("video", { class: className, src: url, playsinline: true, preload: "auto", tabindex: "-1", "aria-label": name });
}

/**
 * Fill a container with the comparison. `after` and `before` (or null) are `{url, isVideo}`; `offset` is where in the
 * original the result begins, `at` where it is held if the result is a picture.
 */
export class Compare {
  constructor(container, { before, after, offset = 0, at = null, name = "" }) {
    this.offset = offset;
    this.at = at;
    this.after = media(after, "after", name);
    this.before = before && media(before, "before", "Before");
    this.view = h("div", { class: "view" }, this.after);
    this.root = h("div", { class: "compare", dir: "ltr" }, this.view);
    if (this.before) this.addSlider();
    if (after.isVideo) this.addControls();
    this.after.addEventListener(after.isVideo ? "loadedmetadata" : "load", () => this.fit(), { once: true });
    container.replaceChildren(this.root);
  }

  /** Give the view the shape of the result, which the original has as well. */
  fit() {
    const [width, height] = [this.after.videoWidth || this.after.naturalWidth, this.after.videoHeight || this.after.naturalHeight];
    if (width && height) this.view.style.setProperty("--shape", `${width / height}`);
  }

  addSlider() {
    this.slider = h("input", { type: "range", class: "slider", min: 0, max: 100, step: 1, value: 50, "aria-label": "Before and after" });
    this.slider.addEventListener("input", () => this.divide());
    this.parts = [
      h("span", { class: "tag left", "aria-hidden": "true" }, "Before"),
      h("span", { class: "tag right", "aria-hidden": "true" }, "After"),
      h("span", { class: "divider", "aria-hidden": "true" }, h("span", { class: "knob" }, icon("sides"))),
    ];
    this.view.append(this.before, ...this.parts, this.slider);
    this.before.addEventListener("error", () => this.dropBefore());
    if (this.before.tagName === "VIDEO") {
      this.before.muted = true;
      if (this.at !== null) this.before.addEventListener("loadedmetadata", () => (this.before.currentTime = this.at), { once: true });
    }
    this.divide();
  }

  divide() {
    this.view.style.setProperty("--divide", `${this.slider.value}%`);
    this.slider.setAttribute("aria-valuetext", `${this.slider.value} percent of the picture show the original`);
  }

  /** Show the result alone, when the original is gone or cannot be shown. */
  dropBefore() {
    if (!this.before) return;
    [this.before, this.slider, ...this.parts].forEach((part) => part.remove());
    this.before = null;
    this.root.dispatchEvent(new Event("alone"));
  }

  addControls() {
    this.play = iconButton("play", "Play", () => this.toggle());
    this.sound = iconButton("sound", "Mute", () => this.mute());
    this.time = h("span", { class: "time" }, clock(0));
    this.seek = h("input", { type: "range", class: "seek", min: 0, max: 1, step: "any", value: 0, "aria-label": "Place in the result" });
    const large = iconButton("large", "Full screen", () => this.enlarge());
    this.root.append(h("div", { class: "controls" }, this.play, this.time, this.seek, this.sound, large));
    this.seek.addEventListener("input", () => (this.after.currentTime = Number(this.seek.value)));
    this.view.addEventListener("dblclick", () => this.toggle());
    this.after.loop = true;
    const on = (type, handle) => this.after.addEventListener(type, handle);
    on("loadedmetadata", () => this.showTime());
    on("timeupdate", () => this.showTime());
    on("play", () => this.follow());
    on("pause", () => this.follow());
    on("seeking", () => this.place());
    on("waiting", () => this.before?.pause());
    on("playing", () => this.follow());
    this.before?.addEventListener("loadedmetadata", () => this.place());
  }

  get isPlaying() {
    return !this.after.paused;
  }

  toggle() {
    if (this.isPlaying) this.after.pause();
    else this.after.play().catch(() => {}); // refused where it was not the user who asked
  }

  mute() {
    this.after.muted = !this.after.muted;
    this.sound.replaceChildren(icon(this.after.muted ? "mute" : "sound"));
    this.sound.setAttribute("aria-label", this.after.muted ? "Sound on" : "Mute");
  }

  enlarge() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.root.requestFullscreen?.();
  }

  showTime() {
    const { currentTime, duration } = this.after;
    this.seek.max = String(duration || 1);
    this.seek.value = String(currentTime);
    this.seek.setAttribute("aria-valuetext", clock(currentTime));
    this.seek.style.setProperty("--share", String(duration ? currentTime / duration : 0));
    setText(this.time, duration ? `${clock(currentTime)} / ${clock(duration)}` : clock(currentTime));
  }

  /** Put the original where the result is. */
  place() {
    if (this.before?.tagName === "VIDEO") this.before.currentTime = this.after.currentTime + this.offset;
  }

  /** Play or pause the original with the result. */
  follow() {
    this.play.replaceChildren(icon(this.isPlaying ? "pause" : "play"));
    this.play.setAttribute("aria-label", this.isPlaying ? "Pause" : "Play");
    if (this.before?.tagName !== "VIDEO") return;
    if (this.isPlaying) {
      this.before.play().catch(() => {});
      this.keepStep();
    } else {
      this.before.pause();
      this.before.playbackRate = 1;
      this.place();
    }
  }

  /** Let the original run a little faster or slower while it is not where the result is. */
  keepStep() {
    if (this.stepping) return;
    this.stepping = true;
    const look = () => {
      if (!this.isPlaying || !this.before || !this.root.isConnected) {
        this.stepping = false;
        return;
      }
      const drift = this.before.currentTime - this.after.currentTime - this.offset;
      if (Math.abs(drift) > JUMP_S) this.place();
      else this.before.playbackRate = 1 - Math.max(-GENTLE, Math.min(GENTLE, drift));
      requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }

  close() {
    this.root.remove();
    for (const element of [this.before, this.after]) element?.removeAttribute("src");
  }
}
