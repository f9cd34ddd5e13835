// The page of the face swap service: the bench on which a swap is made ready, the queue, and one job at a time.

import { call, keepKey, session, UNREACHABLE, useKey } from "./api.js";
import { prepareBench } from "./bench.js";
import { $, h, prepareConfirm, setText, show, showMessage } from "./dom.js";
import { isSending, jobHash, prepareQueue, refresh, sendOff, stopRefreshing } from "./queue.js";
import { closeJob, openJob, prepareViewer } from "./viewer.js";

const HEALTH_MS = 5000;
const THEME_ITEM = "faceswap-theme";

const isLocked = () => !$("key-form").hidden;

// ── The key ──

function askForKey(message) {
  showMessage($("key-error"), message);
  if (isLocked()) return;
  closeJob();
  stopRefreshing();
  show($("key-form"), true);
  show($("bench"), false);
  $("key").focus();
}

function prepareKeyForm() {
  session.addEventListener("locked", (event) => askForKey(event.detail));
  $("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    useKey($("key").value.trim());
    try {
      await call("jobs?limit=1");
    } catch (error) {
      if (error.status !== 401) showMessage($("key-error"), error.message);
      return;
    }
    keepKey();
    $("key").value = "";
    show($("key-form"), false);
    refresh();
    refreshHealth();
    route();
  });
}

// ── The state of the service ──

async function refreshHealth() {
  if (document.hidden) return;
  try {
    showHealth(await call("health"));
  } catch (error) {
    setHealth("degraded", error.status ? error.message : "No answer");
    showAway(error.status ? null : [UNREACHABLE, "What is running goes on when it is back, and this page finds it again by itself.", ["Start it again on the server: faceswap serve"]]);
  }
}

function showHealth(health) {
  if (health.status === "healthy") {
    setHealth("healthy", "Ready");
    return showAway(null);
  }
  if (health.comfyui_status === "starting") {
    setHealth("starting", "The engine is starting");
    return showAway(null);
  }
  const problems = [...new Set((health.backends ?? []).flatMap((backend) => backend.problems))];
  if (health.comfyui_status === "unreachable") {
    setHealth("degraded", "ComfyUI is away");
    return showAway([
      "ComfyUI does not answer",
      health.outage || "Jobs are taken and wait; they go on by themselves when it is back.",
      [...(health.backends ?? []).map((backend) => `Is it running at ${backend.url}?`), "On the server, “faceswap doctor” tells what is missing."],
    ]);
  }
  if (health.workflow_status === "invalid") {
    setHealth("degraded", "ComfyUI lacks something");
    return showAway(["ComfyUI lacks what the workflow needs", "Jobs cannot be done until it is there.", problems]);
  }
  setHealth("degraded", health.outage || "Not everything works");
  return showAway(health.outage ? [health.outage, "Jobs wait, and go on by themselves.", []] : null);
}

function setHealth(state, text) {
  $("health").dataset.state = state;
  setText($("health"), text);
}

function showAway(message) {
  show($("away"), Boolean(message));
  if (!message) return;
  const [title, text, steps] = message;
  setText($("away-title"), title);
  setText($("away-text"), text);
  if ($("away-steps").textContent !== steps.join("")) $("away-steps").replaceChildren(...steps.map((step) => h("li", {}, step)));
}

// ── Where one is ──

/** Show the job that the address names, so that a reload, a bookmark and the back button find it again. */
function route() {
  if (isLocked()) return;
  const promptId = new URLSearchParams(location.hash.slice(1)).get("job");
  if (promptId) return void openJob(promptId);
  closeJob();
  show($("bench"), true);
  document.title = "Face swap";
}

async function submitClip(clip, request, isOnly) {
  const promptId = await sendOff(clip, request);
  const isAtBench = !location.hash.includes("job=") && !isLocked();
  if (promptId && isOnly && isAtBench) location.hash = jobHash(promptId).slice(1);
}

function prepareTheme() {
  const root = document.documentElement;
  root.dataset.theme = localStorage.getItem(THEME_ITEM) ?? "";
  $("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    localStorage.setItem(THEME_ITEM, root.dataset.theme);
  });
}

prepareTheme();
prepareConfirm();
prepareKeyForm();
prepareBench(submitClip);
prepareQueue();
prepareViewer();
window.addEventListener("hashchange", route);
window.addEventListener("beforeunload", (event) => isSending() && event.preventDefault());
document.addEventListener("visibilitychange", () => {
  if (document.hidden || isLocked()) return;
  refresh();
  refreshHealth();
});
setInterval(refreshHealth, HEALTH_MS);
route();
refresh();
refreshHealth();
performance.mark("usable"); // measured by `make page-speed`
