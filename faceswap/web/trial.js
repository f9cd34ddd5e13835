// A trial of one frame: a job of its own, small and first in line, shown before and after, and erased once it is seen.

import { call, downloadPath, jobPath, request, withQuery } from "./api.js";
import { Compare } from "./compare.js";
import { $, announce, iconButton, setText, show, showMessage } from "./dom.js";
import { prepareRequest } from "./request.js";
import { pauseStage, pictureOnStage } from "./stage.js";
import { bench, changed, joinedOf } from "./state.js";
import { withUploads } from "./tus.js";
import { ENDED, stepWords } from "./words.js";

const PRIORITY = 10;
const WAIT_S = 20;
const RETRY_MS = 2000;

/** The jobs that are trials of this page, which its lists leave out. */
export const trials = new Set();

/** Try the frame on the stage. */
export async function tryFrame() {
  closeTrial();
  pauseStage();
  const clip = bench.current;
  const own = { id: null, isOver: false, before: null };
  bench.trial = own;
  tell(own, "Trying this frame…");
  const moment = clip.isPicture ? {} : { at: Math.round(clip.at * 1e4) / 1e4 };
  const prepared = prepareRequest(clip, joinedOf(clip), { priority: PRIORITY, ...moment });
  try {
    own.before = await pictureOnStage();
    const job = await withUploads(prepared.uploads, async () => {
      const body = await prepared.body();
      return own.isOver ? null : call("face-swap", { method: "POST", body, headers: { Prefer: "respond-async" } });
    });
    if (!job) return;
    own.id = job.prompt_id;
    trials.add(own.id);
    const status = await follow(own);
    if (status) await showEnd(own, status);
  } catch (error) {
    if (own.isOver) return;
    closeTrial();
    showMessage($("form-error"), error.message);
  } finally {
    prepared.release();
    if (own.id) erase(own.id);
  }
}

async function follow(own) {
  while (!own.isOver) {
    try {
      const status = await call(withQuery(`status/${encodeURIComponent(own.id)}`, `wait=${WAIT_S}`));
      if (status.status === "SUCCESS") return status;
      if (ENDED.includes(status.status)) throw Object.assign(new Error(status.error || "The trial was cancelled."), { status: 400 });
      tell(own, stepWords(status.progress.step));
    } catch (error) {
      if (error.status && error.status < 500) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS)); // the service is away, and will be back
    }
  }
  return null;
}

async function showEnd(own, status) {
  const blob = await (await request(withQuery(downloadPath(status.result), "inline=1"))).blob();
  if (own.isOver) return;
  own.url = URL.createObjectURL(blob);
  show($("trial-state"), false);
  show($("trial"), true);
  const before = own.before && { url: own.before, isVideo: false };
  own.compare = new Compare($("trial"), { after: { url: own.url, isVideo: false }, before, name: "The trial" });
  $("trial").append(iconButton("close", "Back to the clip", closeTrial, "icon-button leave"));
  announce("The trial is ready: move the slider to compare before and after.");
  (own.compare.slider ?? $("trial").querySelector("button")).focus({ preventScroll: true });
  changed();
}

function tell(own, text) {
  if (own.isOver) return;
  setText($("trial-step"), text);
  show($("trial-state"), true);
  changed();
}

async function erase(id) {
  try {
    await call(jobPath(id), { method: "DELETE" });
  } catch {
    trials.delete(id); // it is listed like any other job, to be deleted there
  }
}

/** Take the trial off the stage, or give it up. */
export function closeTrial() {
  const own = bench.trial;
  if (!own) return;
  const hadFocus = $("trial").contains(document.activeElement);
  own.isOver = true;
  own.compare?.close();
  if (own.url) URL.revokeObjectURL(own.url);
  bench.trial = null;
  $("trial").replaceChildren();
  show($("trial"), false);
  show($("trial-state"), false);
  if (hadFocus) $("try").focus({ preventScroll: true });
  changed();
}
